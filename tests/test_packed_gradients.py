"""Under compact storage gradients hold active entries alone, and nobody can tell but by memory."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import rigl
from sparseopt.gradients import usual_references
from sparseopt.layers import Layer
from sparseopt.scores import Context, score
from sparseopt.storage import state as storage_state
from sparseopt.storage.active_gradient import (
    WORTH_PACKING,
    ActiveGradient,
    holds_active_only,
)
from sparseopt.storage.deferred import unlock
from sparseopt.storage.zeroing import WHOLE, WIDTH, WINDOWS, zero_at_sentinels
from sparseopt.watched import ALONE


class Net(nn.Module):
    """Layers large enough that their gradients are packed, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(64, 64, 3)
        self.linear = nn.Linear(64, 600)
        self.attention = nn.MultiheadAttention(120, 2)
        self.small = nn.Linear(600, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = self.convolution(inputs[:, None, None].expand(-1, 64, 3, -1))
        hidden = self.linear(pixels.flatten(1)[:, :64]).relu()
        attended, _ = self.attention(*[hidden.view(-1, 5, 120)] * 3)
        return self.small(attended.reshape(-1, 600))


Pair = tuple[tuple[nn.Module, SparseOptimizer], ...]


def pair(algo: str = "rigl", **options: Any) -> Pair:
    """The same network under compact and masked storage, in float64."""
    torch.manual_seed(0)
    model = Net().double()
    options = {"sparsity": 0.8, "update_every": 2} | options
    made = []
    for storage in ("compact", "masked"):
        own = copy.deepcopy(model)
        adam = torch.optim.AdamW(own.parameters(), lr=0.01)
        made.append((own, SparseOptimizer(adam, algo, model=own, storage=storage, **options)))
    return tuple(made)


def backward(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    model(inputs.repeat(1, 3)).square().sum().backward()


def assert_same(pairs: Pair) -> None:
    (one, first), (other, second) = pairs
    for layer, beside in zip(first.layers, second.layers, strict=True):
        assert torch.equal(layer.mask, beside.mask), layer.name
    for (name, weight), beside in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, beside, rtol=0, atol=1e-12, msg=name)
        if weight.grad is not None:
            torch.testing.assert_close(weight.grad + 0, beside.grad, rtol=0, atol=1e-12, msg=name)


def in_both(pairs: Pair, act: Callable[[nn.Module], Any]) -> None:
    for model, _ in pairs:
        act(model)


def step_both(pairs: Pair) -> None:
    for _, optimizer in pairs:
        optimizer.step()


def zero_both(pairs: Pair, to_none: bool = True) -> None:
    for _, optimizer in pairs:
        optimizer.zero_grad(set_to_none=to_none)


def gradients(model: nn.Module) -> list[Tensor]:
    return [weight.grad for weight in model.parameters() if weight.grad is not None]


def test_gradients_of_large_sparse_layers_hold_active_entries_alone() -> None:
    (model, optimizer), _ = pair("static")
    backward(model)
    for layer in optimizer.layers:
        large = layer.numel >= WORTH_PACKING
        assert holds_active_only(layer.weight.grad) == large, layer.name
    assert {layer.numel >= WORTH_PACKING for layer in optimizer.layers} == {True, False}


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda model: None,
    "clipped by norm": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    "clipped by value": lambda model: nn.utils.clip_grad_value_(model.parameters(), 0.01),
    "clamped through data": lambda model: [g.data.clamp_(-0.01, 0.01) for g in gradients(model)],
    "scaled through numpy": lambda model: [g.numpy().__imul__(0.5) for g in gradients(model)],
    "through a view": lambda model: [g.view(-1)[::2].mul_(3.0) for g in gradients(model)],
    "noise": lambda model: [g.add_(0.01 * torch.ones_like(g)) for g in gradients(model)],
    "one entry": lambda model: [g.view(-1).__setitem__(0, 5.0) for g in gradients(model)],
    "replaced": lambda model: [
        setattr(p, "grad", p.grad.clone().mul_(2.0)) for p in model.parameters()
    ],
    "zeroed": lambda model: [g.zero_() for g in gradients(model)],
}


@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_into_gradients_reaches_the_step(write: str) -> None:
    pairs = pair("static")
    for seed in range(3):
        zero_both(pairs)
        in_both(pairs, lambda model, seed=seed: backward(model, seed))
        in_both(pairs, WRITES[write])
        step_both(pairs)
    (one, _), (other, _) = pairs
    for weight, beside in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(weight, beside, rtol=0, atol=1e-12)


@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("micro", [1, 3])
def test_micro_batches_and_updates_give_what_dense_gradients_give(
    algo: str, to_none: bool, micro: int
) -> None:
    pairs = pair(algo)
    for step in range(6):
        zero_both(pairs, to_none)
        for part in range(micro):
            in_both(pairs, lambda model, seed=10 * step + part: backward(model, seed))
        assert_same(pairs)
        in_both(pairs, lambda model: nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        step_both(pairs)
        assert_same(pairs)  # the gradients too: an update moves them to the new topology


def test_gradients_never_zeroed_go_on_through_updates() -> None:
    pairs = pair("rigl")
    for seed in range(6):
        in_both(pairs, lambda model, seed=seed: backward(model, seed))
        step_both(pairs)
        assert_same(pairs)


def test_a_gradient_in_memory_of_the_user_stays_there() -> None:
    (model, optimizer), _ = pair("static")
    weights = [layer.weight for layer in optimizer.layers]
    whole = torch.zeros(sum(weight.numel() for weight in weights), dtype=torch.float64)
    pieces = whole.split([weight.numel() for weight in weights])
    for weight, piece in zip(weights, pieces, strict=True):
        weight.grad = piece.view(weight.shape)
    backward(model)
    for layer, piece in zip(optimizer.layers, pieces, strict=True):
        assert layer.weight.grad.data_ptr() == piece.data_ptr()
        assert not isinstance(layer.weight.grad, ActiveGradient)
        assert piece.view(layer.shape)[~layer.mask].eq(0).all() and piece.ne(0).any()


def test_the_dense_gradient_of_an_update_is_not_held_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (model, optimizer), _ = pair("rigl", update_every=1)
    layer = optimizer.layers[0]
    memory = []
    layer.weight.register_post_accumulate_grad_hook(lambda p: memory.append(p.grad.data_ptr()))
    backward(model)
    assert optimizer._hooks.windows[id(layer)].dense.data_ptr() == memory[0]
    assert holds_active_only(layer.weight.grad)


def unscale(model: nn.Module) -> None:
    """As after ``scaler.scale(loss).backward()`` with a scale of 8."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(torch.zeros(()))  # makes its scale
    inner = torch.optim.SGD(model.parameters())
    scaler.unscale_(inner)


def alias_of(grad: Tensor) -> Tensor:
    return grad.detach()


SCALED: dict[str, Callable[[nn.Module], Any]] = {
    "nothing": lambda model: None,
    "clipped": lambda model: nn.utils.clip_grad_norm_(model.parameters(), 0.1),
    "clipped one by one": lambda model: nn.utils.clip_grad_norm_(
        model.parameters(), 0.1, foreach=False
    ),
    "multiplied": lambda model: [g.mul_(0.5) for g in gradients(model)],
    "divided": lambda model: [g.div_(4.0) for g in gradients(model)],
    "through an alias": lambda model: [alias_of(g).mul_(0.5) for g in gradients(model)],
    "through data": lambda model: [g.data.mul_(0.5) for g in gradients(model)],
    "through numpy": lambda model: [g.numpy().__imul__(0.5) for g in gradients(model)],
    "added to itself": lambda model: [g.add_(g) for g in gradients(model)],
    "all at once": lambda model: torch._foreach_mul_(gradients(model), 0.5),
    "unscaled": unscale,
    "replaced": lambda model: [
        setattr(p, "grad", p.grad.clone().mul_(2.0)) for p in model.parameters()
    ],
}


@pytest.mark.parametrize("storage", ["compact", "masked"])
@pytest.mark.parametrize("way", SCALED)
def test_growth_sees_the_dense_gradient_scaled_as_the_gradient_was(way: str, storage: str) -> None:
    seen: dict[str, Tensor] = {}

    @score(needs_gradient=True)
    def noting(layer: Layer, context: Context) -> Tensor:
        seen[layer.name] = layer.gradient.clone()
        return layer.gradient.abs()

    torch.manual_seed(0)
    model = Net().double()
    algorithm = dataclasses.replace(rigl(0.8), grow=noting)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), algorithm, model=model, storage=storage,
        update_every=1,
    )  # fmt: skip
    plain = copy.deepcopy(model)
    for one in (model, plain):
        backward(one)
    SCALED[way](model)
    factors = {}
    for layer in optimizer.layers:
        before = plain.get_parameter(layer.name).grad[layer.mask]
        factors[layer.name] = (layer.weight.grad.clone() + 0)[layer.mask].norm() / before.norm()
    optimizer.step()
    assert {"convolution.weight", "linear.weight"} <= set(seen)
    for name, gradient in seen.items():
        expected = plain.get_parameter(name).grad * factors[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("entries", [WHOLE, WHOLE + 1, 3 * WHOLE + 77])
def test_every_inactive_entry_is_looked_at_in_two_laps(entries: int) -> None:
    weight = torch.zeros(entries)
    layer = Layer("w", weight, (0, 0))
    layer.set_mask(torch.zeros(entries, dtype=torch.bool))
    turns = 1 if entries <= WHOLE else 2 * (entries // (WINDOWS * WIDTH) + 1)
    generator = torch.Generator().manual_seed(0)
    places = [0, entries - 1, *torch.randint(entries, (20,), generator=generator).tolist()]
    for place in places:
        weight[place] = 1.0
        assert not all(zero_at_sentinels(weight, layer, turn) for turn in range(turns)), place
        weight[place] = 0.0
    assert all(zero_at_sentinels(weight, layer, turn) for turn in range(turns))


class HalvesAndFailsOnce(torch.optim.SGD):
    """Writes its gradients in place, and has to be called again."""

    failed = False

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                weight.grad.mul_(0.5)
        if not self.failed:
            self.failed = True
            raise RuntimeError("once")
        return super().step(closure)


def test_a_step_made_again_grows_by_the_gradients_that_its_inner_optimizer_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage_state, "ELEMENTWISE", {HalvesAndFailsOnce})
    norms = []

    @score(needs_gradient=True)
    def noting(layer: Layer, context: Context) -> Tensor:
        norms.append(layer.gradient.norm())
        return layer.gradient.abs()

    for storage in ("masked", "compact"):
        torch.manual_seed(0)
        model = nn.Linear(256, 256).double()
        optimizer = SparseOptimizer(
            HalvesAndFailsOnce(model.parameters(), lr=0.1),
            dataclasses.replace(rigl(0.8), grow=noting),
            model=model, storage=storage, update_every=1,
        )  # fmt: skip
        model(torch.ones(2, 256, dtype=torch.float64)).square().mean().backward()
        with pytest.raises(RuntimeError, match="once"):
            optimizer.step()
        optimizer.step()
    torch.testing.assert_close(*norms, rtol=1e-9, atol=0)


# --- gradients in other hands ---------------------------------------------------------------------

HOLDS: dict[str, Callable[[nn.Parameter], Any]] = {
    "the gradient": lambda weight: weight.grad,
    "its data": lambda weight: weight.grad.data,
    "a view": lambda weight: weight.grad.view(-1),
}


@pytest.mark.parametrize("algo", ["static", "rigl"])
@pytest.mark.parametrize("hold", HOLDS)
def test_who_took_the_gradient_in_an_earlier_hook_may_write_it(hold: str, algo: str) -> None:
    if hold != "the gradient" and usual_references()[1] != ALONE[0]:
        pytest.skip("this torch holds a new gradient's memory itself")
    found = []
    for storage in ("masked", "compact"):
        torch.manual_seed(0)
        model, taken = nn.Linear(128, 64), []
        model.weight.register_post_accumulate_grad_hook(
            lambda weight, taken=taken: taken.append(HOLDS[hold](weight))
        )
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = SparseOptimizer(sgd, algo, sparsity=0.9, storage=storage, update_every=2)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.linspace(-1, 1, 512).view(4, 128)).square().sum().backward()
            taken[-1].mul_(100)
            optimizer.step()
        found.append(model.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_gradients_nobody_took_hold_active_entries_alone() -> None:
    for layer, inputs in (
        (nn.Linear(128, 64), torch.ones(4, 128)),
        (nn.Conv2d(32, 32, 3), torch.ones(1, 32, 5, 5)),
    ):
        sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
        optimizer = SparseOptimizer(sgd, "rigl", sparsity=0.9, storage="compact", update_every=2)
        for _ in range(4):  # with and without dense gradients for an update
            optimizer.zero_grad()
            layer(inputs).sum().backward()
            assert holds_active_only(layer.weight.grad)
            optimizer.step()


def large_gradient() -> tuple[nn.Linear, SparseOptimizer]:
    model = nn.Linear(128, 64)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(sgd, "static", sparsity=0.9, storage="compact")
    model(torch.ones(4, 128)).sum().backward()
    assert holds_active_only(model.weight.grad)
    return model, optimizer


def test_gradients_read_in_inference_mode_are_stepped_by() -> None:
    model, optimizer = large_gradient()
    before = model.weight.detach().clone()
    with torch.inference_mode():
        assert model.weight.grad.max() == 4
    optimizer.step()
    assert not torch.equal(before, model.weight)


def test_gradients_are_scaled_by_tensors_of_one_entry_of_any_shape() -> None:
    for shape in ((), (1,), (1, 1)):
        model, _ = large_gradient()
        model.weight.grad.mul_(torch.full(shape, 3.0)).div_(torch.full(shape, 2.0))
        assert model.weight.grad.max() == 6


@pytest.mark.skipif(unlock is None, reason="this torch hands out the address")
def test_what_goes_past_torch_to_the_memory_of_a_gradient_is_refused() -> None:
    model, _ = large_gradient()
    with pytest.raises(RuntimeError, match="data pointer"):
        torch.utils.dlpack.to_dlpack(model.weight.grad)
    assert torch.from_dlpack(model.weight.grad).max() == 4
