"""Sparse compute: the same training as with dense products, behind an unchanged module."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import RECIPES, Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sparseopt
from sparseopt import SparseOptimizer
from sparseopt.compute import MEASURED
from sparseopt.compute.linear import Forward
from sparseopt.storage.active_gradient import ActiveGradient, holds_active_only

pytestmark = [
    pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL"),
]

EXACT = {"rtol": 1e-10, "atol": 1e-10}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
ALL_RECIPES = [
    *RECIPES,
    *(
        Recipe(name)
        for name in sparseopt.available()
        if name not in ("static", "set", "rigl", "nm")
    ),
    Recipe("nm", {"n": 1, "m": 4}),
]


@pytest.fixture(autouse=True)
def in_double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24, bias=False), nn.Tanh(), nn.Linear(24, 6)
    )


def wrap(model: nn.Module, compute: Any = "sparse", algo: str = "rigl", **more: Any) -> Any:
    inner = OPTIMIZERS[more.pop("inner", "sgd")](model.parameters())
    sparsity = 0.75 if algo == "nm" else 0.8
    settings = {"sparsity": sparsity, "total_steps": 40, "update_every": 4} | more
    return SparseOptimizer(inner, algo, model=model, compute=compute, storage="compact", **settings)


def train(model: nn.Module, optimizer: Any, steps: int = 8, seed: int = 1, **how: Any) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad(how.get("set_to_none", True))
        for _ in range(how.get("micro", 1)):
            rows = int(torch.randint(1, 12, (), generator=draw))
            inputs = torch.randn(rows, 20, generator=draw)
            loss(model, inputs).backward()
        if how.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        optimizer.step()


def loss(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    return F.mse_loss(outputs, torch.ones_like(outputs)) * 3


def pair(**more: Any) -> tuple[tuple[nn.Module, Any], tuple[nn.Module, Any]]:
    one, other = network(), network()
    return (one, wrap(one, "dense", **more)), (other, wrap(other, "sparse", **more))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def computes_sparsely(model: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many sparse products one forward pass makes."""
    from sparseopt.compute.structure import Structure

    calls = []
    forward = Structure.forward

    def counted(self: Structure, *given: Any) -> Tensor:
        calls.append(self)
        return forward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Structure, "forward", counted)
        model(inputs)
    return len(calls)


# --- the same training ----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("inner", OPTIMIZERS)
@pytest.mark.parametrize("recipe", ALL_RECIPES, ids=str)
def test_training_is_the_same_as_with_dense_products(recipe: Recipe, inner: str) -> None:
    (dense, one), (sparse, other) = pair(algo=recipe.algo, inner=inner, **recipe.options)
    train(dense, one, 24, micro=2)
    train(sparse, other, 24, micro=2)
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    assert_same(dense, sparse)


@given(
    shape=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    outputs=st.integers(4, 30),
    inputs=st.integers(12, 40),
    bias=st.booleans(),
    sparsity=st.floats(0.75, 0.95),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_outputs_and_all_gradients_are_those_of_the_dense_layer(
    shape: list[int], outputs: int, inputs: int, bias: bool, sparsity: float, seed: int
) -> None:
    torch.manual_seed(seed)
    model = nn.ModuleList([nn.Linear(inputs, outputs, bias=bias), nn.Linear(outputs, 7)])
    optimizer = wrap(model, algo="static", sparsity=sparsity, include="0")
    plain = nn.Linear(inputs, outputs, bias=bias)
    plain.load_state_dict(model[0].state_dict())
    values = torch.randn(*shape, inputs)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    slopes = torch.randn(*shape, outputs)
    for layer, given_values in ((model[0], one), (plain, other)):
        result = layer(given_values)
        assert result.is_contiguous() and result.shape == slopes.shape
        result.backward(slopes)
    torch.testing.assert_close(model[0](values), plain(values), **EXACT)
    torch.testing.assert_close(one.grad, other.grad, **EXACT)
    mask = optimizer.layers[0].mask
    assert holds_active_only(model[0].weight.grad)
    torch.testing.assert_close(model[0].weight.grad + 0, plain.weight.grad * mask, **EXACT)
    if bias:
        torch.testing.assert_close(model[0].bias.grad, plain.bias.grad, **EXACT)


@pytest.mark.parametrize("clip", [0.1, 1e3])
@pytest.mark.parametrize("set_to_none", [True, False])
def test_clipping_and_accumulation_are_exact(clip: float, set_to_none: bool) -> None:
    (dense, one), (sparse, other) = pair()
    for model, optimizer in ((dense, one), (sparse, other)):
        train(model, optimizer, 14, micro=3, clip=clip, set_to_none=set_to_none)
    assert_same(dense, sparse)


def test_a_gradient_scaler_sees_the_same_gradients_and_skips_the_same_steps() -> None:
    results = []
    for model, optimizer in pair():
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        for step in range(12):
            optimizer.zero_grad()
            values = torch.full((3, 20), float("inf") if step == 5 else 0.1 * (step + 1))
            scaler.scale(loss(model, values)).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()
        results.append((model, optimizer.steps, scaler.get_scale()))
    assert results[0][1:] == results[1][1:] and results[0][1] == 11
    assert_same(results[0][0], results[1][0])


def test_a_closure_is_evaluated_with_current_weights() -> None:
    results = []
    for model, optimizer in pair():

        def closure(model: nn.Module = model, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(model, torch.ones(3, 20))
            value.backward()
            return value

        losses = [optimizer.step(closure).item() for _ in range(9)]
        results.append((model, losses))
    assert results[0][1] == pytest.approx(results[1][1], rel=1e-10)
    assert_same(results[0][0], results[1][0])


def test_gradients_of_several_forward_passes_add_up() -> None:
    (dense, one), (sparse, other) = pair()
    for model, optimizer in ((dense, one), (sparse, other)):
        values = torch.linspace(0, 1, 100).view(5, 20)
        (loss(model, values) + loss(model, -values)).backward()
        optimizer.step()
    assert_same(dense, sparse)


def test_a_penalty_on_the_weights_adds_to_their_gradients() -> None:
    (dense, one), (sparse, other) = pair()
    for model, optimizer in ((dense, one), (sparse, other)):
        for _ in range(6):
            optimizer.zero_grad()
            penalty = sum(p.abs().sum() + (p**2).sum() for p in model.parameters())
            (loss(model, torch.ones(4, 20)) + 0.1 * penalty).backward()
            optimizer.step()
    assert_same(dense, sparse)


def test_second_derivatives_are_exact() -> None:
    results = []
    for model, _ in pair():
        values = torch.linspace(-1, 1, 40).view(2, 20).requires_grad_()
        (slope,) = torch.autograd.grad(loss(model, values), values, create_graph=True)
        (slope**2).sum().backward()
        results.append((slope.detach(), values.grad, model[0].weight.grad + 0))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_gradients_asked_for_by_autograd_grad_are_exact() -> None:
    results = []
    for model, optimizer in pair(algo="static"):
        weights = [model[0].weight, model[2].weight]
        grads = torch.autograd.grad(loss(model, torch.ones(3, 20)), weights)
        assert all(p.grad is None for p in model.parameters())
        masks = [layer.mask for layer in optimizer.layers]
        results.append([g * mask for g, mask in zip(grads, masks, strict=False)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_backward_refuses_weights_that_were_changed_since_forward() -> None:
    model = network()
    optimizer = wrap(model)
    value = loss(model, torch.ones(3, 20))
    loss(model, torch.ones(3, 20)).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


# --- nothing is stale -----------------------------------------------------------------------------


def dense_outputs(model: nn.Module, values: Tensor) -> Tensor:
    plain = network()
    plain.load_state_dict(model.state_dict())
    return plain(values)


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "load_state_dict": lambda m: m.load_state_dict(network(3).state_dict()),
    "in place": lambda m: [p.mul_(2).add_(0.1) for p in m.parameters()],
    "through data": lambda m: [p.data.copy_(torch.randn_like(p)) for p in m.parameters()],
    "another memory": lambda m: [setattr(p, "data", torch.randn_like(p)) for p in m.parameters()],
    "scaled through data": lambda m: [p.data.mul_(3) for p in m.parameters()],
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("after", [0, 5])
def test_evaluation_sees_weights_written_from_elsewhere(write: str, after: int) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, after)
    values = torch.linspace(-1, 1, 60).view(3, 20)
    model(values)
    with torch.no_grad():
        WRITES[write](model)
        torch.testing.assert_close(model(values), dense_outputs(model, values), **EXACT)
    train(model, optimizer, 1, seed=4)
    with torch.no_grad():
        torch.testing.assert_close(model(values), dense_outputs(model, values), **EXACT)
    assert all(not layer.weight[~layer.mask].any() for layer in optimizer.layers)


@pytest.mark.parametrize("write", WRITES)
def test_training_goes_on_from_weights_written_from_elsewhere(write: str) -> None:
    results = []
    for model, optimizer in pair(algo="set"):
        train(model, optimizer, 5)
        torch.manual_seed(7)
        with torch.no_grad():
            WRITES[write](model)
        train(model, optimizer, 5, seed=2)
        results.append(model)
    assert_same(*results)


def test_one_weight_written_through_data_is_seen_at_once() -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    index = optimizer.layers[0].mask.nonzero()[1]
    model[0].weight.data[tuple(index)] = 5.0
    values = torch.ones(2, 20)
    torch.testing.assert_close(model(values), dense_outputs(model, values), **EXACT)


def test_weights_are_current_after_every_step() -> None:
    model = network()
    optimizer = wrap(model, inner="adamw")
    for seed in range(9):
        train(model, optimizer, 1, seed)
        values = torch.randn(3, 20)
        torch.testing.assert_close(model(values), dense_outputs(model, values), **EXACT)


def test_names_of_parameters_and_the_module_tree_do_not_change() -> None:
    model, plain = network(), network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert repr(model) == repr(plain)
    assert type(model[0].weight) is nn.Parameter


@pytest.mark.parametrize("shape", [(127,), (128,), (129,), (300,), (3, 90), (2, 3, 43), (1030,)])
def test_any_number_of_samples_trains_the_same(shape: tuple[int, ...]) -> None:
    """Many are multiplied in blocks, which need not be of one size."""
    (dense, one), (sparse, other) = pair(update_every=2)
    for step in range(5):
        values = torch.randn(*shape, 20, generator=torch.Generator().manual_seed(step))
        for model, optimizer in ((dense, one), (sparse, other)):
            optimizer.zero_grad()
            loss(model, values).backward()
            optimizer.step()
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    assert_same(dense, sparse)


@pytest.mark.parametrize("rows", [5, 300])
def test_gradients_of_inputs_lie_in_memory_as_the_inputs_do(rows: int) -> None:
    model = nn.Sequential(nn.Linear(20, 30))
    wrap(model)
    for values in (torch.ones(rows, 20), torch.ones(20, rows).t(), torch.ones(2, rows, 20)):
        given = values.detach().requires_grad_()
        slope = torch.autograd.grad(model(given).sum(), given)[0]
        assert slope.stride() == given.stride()


def test_outputs_that_others_see_are_contiguous() -> None:
    model = network()
    wrapped = wrap(model, distribution="uniform")
    seen = []
    for module in model:
        module.register_forward_hook(lambda m, given, output: seen.append(output.is_contiguous()))
    model(torch.ones(5, 20)).view(-1)
    assert seen == [True] * 5 and wrapped.steps == 0


# --- copies ---------------------------------------------------------------------------------------


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_trains_on_sparsely(
    duplicate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 6)
    other, second = duplicate((model, optimizer))
    assert computes_sparsely(other, torch.ones(2, 20), monkeypatch) == 2
    train(model, optimizer, 6, seed=3)
    before = copy.deepcopy(other.state_dict())
    train(model, optimizer, 1, seed=5)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    again, third = network(), None
    third = wrap(again)
    train(again, third, 6)
    train(again, third, 6, seed=3)
    train(other, second, 6, seed=3)
    assert_same(again, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_model_alone_is_an_ordinary_model(duplicate: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    values = torch.linspace(-1, 1, 40).view(2, 20)
    other = duplicate(model)
    expected = model(values).detach()
    torch.testing.assert_close(other(values), expected, **EXACT)
    train(model, optimizer, 3)
    torch.testing.assert_close(other(values), expected, **EXACT)
    assert not any(isinstance(m.__dict__.get("forward"), Forward) for m in other.modules())
    torch.optim.SGD(other.parameters(), lr=0.1).zero_grad()
    loss(other, values).backward()
    assert type(other[0].weight.grad) is Tensor
    torch.testing.assert_close(duplicate(other)(values), expected, **EXACT)


def test_a_saved_model_loads_as_an_ordinary_one() -> None:
    model = network()
    train(model, wrap(model), 3)
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    other = torch.load(memory, weights_only=False)
    torch.testing.assert_close(other(torch.ones(2, 20)), model(torch.ones(2, 20)), **EXACT)


def test_a_model_outlives_its_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    expected = model(torch.ones(2, 20)).detach()
    del optimizer
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0
    torch.testing.assert_close(model(torch.ones(2, 20)), expected, **EXACT)
    second = wrap(model, sparsity=0.9)
    train(model, second, 2)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 3


def test_a_checkpoint_resumes_with_sparse_products() -> None:
    whole, half = network(), network()
    one, other = wrap(whole), wrap(half)
    train(whole, one, 10)
    train(whole, one, 10, seed=2)
    train(half, other, 10)
    later = network(9)
    third = wrap(later, sparsity=0.8)
    later.load_state_dict(half.state_dict())
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    train(later, third, 10, seed=2)
    assert_same(whole, later)


# --- switching ------------------------------------------------------------------------------------


def test_dense_compute_is_off_at_once_and_on_again_after_a_with_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    optimizer = wrap(model)
    values = torch.ones(2, 20)
    assert computes_sparsely(model, values, monkeypatch) == 2
    with optimizer.dense_compute():
        assert computes_sparsely(model, values, monkeypatch) == 0
        assert not any("forward" in m.__dict__ for m in model.modules())
        train(model, optimizer, 5)
    assert computes_sparsely(model, values, monkeypatch) == 2
    optimizer.dense_compute()
    assert computes_sparsely(model, values, monkeypatch) == 0
    with optimizer.dense_compute():
        pass
    assert computes_sparsely(model, values, monkeypatch) == 0  # it was off before


def test_training_with_both_in_turn_is_the_same() -> None:
    (dense, one), (sparse, other) = pair()
    for seed in range(0, 8, 2):
        train(dense, one, 3, seed)
        train(dense, one, 3, seed + 1)
        with other.dense_compute():
            train(sparse, other, 3, seed)
        train(sparse, other, 3, seed + 1)
    assert_same(dense, sparse)


def test_layers_above_the_threshold_multiply_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, sparsity=0.2)
    assert optimizer.density == pytest.approx(0.8, abs=0.01)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0


def test_a_callable_chooses_by_layer_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, compute=lambda layer, rows: layer.name == "0.weight" and rows > 4)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0
    assert computes_sparsely(model, torch.ones(5, 20), monkeypatch) == 1
    assert computes_sparsely(model, torch.ones(2, 3, 20), monkeypatch) == 1
    train(model, optimizer, 5)


def test_auto_follows_its_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, compute="auto")
    values = torch.ones(2, 20)
    model(values)
    for case in MEASURED:
        MEASURED[case] = (1.0, 10.0)
    assert computes_sparsely(model, values, monkeypatch) >= 2
    for case in MEASURED:
        MEASURED[case] = (10.0, 1.0)
    assert computes_sparsely(model, values, monkeypatch) == 0
    MEASURED.clear()
    train(model, optimizer, 3)


def test_the_global_random_stream_is_not_used_by_calibration() -> None:
    MEASURED.clear()
    model = network()
    optimizer = wrap(model, compute="auto")
    state = torch.get_rng_state()
    loss(model, torch.ones(3, 20)).backward()
    assert MEASURED and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    optimizer.step()


# --- what it does not follow ----------------------------------------------------------------------


def test_under_autocast_products_are_sparse_and_at_least_as_precise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    values = torch.linspace(-1, 1, 80, dtype=torch.float32).view(4, 20)
    for model, optimizer in pair():
        model.float()
        for backward_inside in (True, False, False, True, False):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(model, values)
                if backward_inside:
                    value.backward()
            if not backward_inside:
                value.backward()
            optimizer.step()
        exact = model(values).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(values).detach()
            sparse = computes_sparsely(model, values, monkeypatch)
        assert outputs.dtype == torch.bfloat16
        results.append((model, (outputs - exact).abs().max(), sparse))
    assert [sparse for _, _, sparse in results] == [0, 2]
    assert results[1][1] <= 2 * results[0][1]
    for p, q in zip(results[0][0].parameters(), results[1][0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.01)


def test_what_is_multiplied_densely_says_why() -> None:
    model = network()
    optimizer = wrap(model, distribution="uniform")
    model(torch.ones(2, 20))
    assert set(optimizer.products.values()) == {"sparse"}
    assert list(optimizer.products) == ["0.weight", "2.weight", "4.weight"]
    torch.func.vmap(model)(torch.ones(2, 20))
    assert optimizer.products["0.weight"] == "dense: inside torch.func"
    model.bfloat16()
    model(torch.ones(2, 20, dtype=torch.bfloat16))
    assert optimizer.products["2.weight"] == "dense: weights are torch.bfloat16"
    with optimizer.dense_compute():
        assert set(optimizer.products.values()) == {"dense: switched off"}
    assert wrap(network(), "dense").products["0.weight"] == "dense: compute='dense'"


def test_torch_func_and_forward_mode_are_followed() -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    values = torch.ones(3, 20)

    def value(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (values,)).sum()

    slopes = torch.func.grad(value)(parameters)
    with optimizer.dense_compute():
        expected = torch.func.grad(value)(parameters)
        rows = model(values)
    torch.testing.assert_close(slopes["0.weight"], expected["0.weight"], **EXACT)
    torch.testing.assert_close(torch.func.vmap(model)(values), rows, **EXACT)


def test_modules_changed_by_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Doubling(20, 30), nn.Linear(30, 30), nn.Linear(30, 4))
    nn.utils.parametrizations.weight_norm(model[1])
    optimizer = wrap(model, sparsity=0.9, distribution="uniform")
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 1
    train(model, optimizer, 5)


def test_attention_and_leading_dimensions_train_the_same() -> None:
    results = []
    for compute in ("dense", "sparse"):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        optimizer = wrap(model, compute)
        for step in range(10):
            optimizer.zero_grad()
            values = torch.linspace(-1, 1 + step, 2 * 5 * 16).view(2, 5, 16).sin()
            model(values).pow(2).mean().backward()
            optimizer.step()
        model.eval()
        results.append((model, model(values).detach()))
    assert_same(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], **EXACT)


def test_a_model_in_another_precision_follows() -> None:
    results = []
    for model, optimizer in pair():
        model.float()
        values = torch.ones(3, 20, dtype=torch.float32)
        for _ in range(6):
            optimizer.zero_grad()
            loss(model, values).backward()
            optimizer.step()
        results.append(model)
    torch.testing.assert_close(results[0][0].weight, results[1][0].weight, rtol=1e-4, atol=1e-6)


def test_frozen_layers_and_no_grad_work() -> None:
    model = network()
    optimizer = wrap(model)
    model[0].weight.requires_grad_(False)
    train(model, optimizer, 6)
    with torch.inference_mode():
        outputs = model(torch.ones(2, 20))
    torch.testing.assert_close(outputs, dense_outputs(model, torch.ones(2, 20)), **EXACT)


def test_parameters_added_later_compute_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    inner = torch.optim.SGD(model[0].parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, "set", sparsity=0.8, model=model, compute="sparse")
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 1
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 2
    train(model, optimizer, 4)


def test_wrong_arguments_are_refused_before_anything_changes() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="compute='fast'.*'dense', 'sparse', 'auto'"):
        SparseOptimizer(inner, model=model, compute="fast")
    with pytest.raises(TypeError, match="compute=3"):
        SparseOptimizer(inner, model=model, compute=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model="):
        SparseOptimizer(inner, compute="sparse")
    with pytest.raises(ValueError, match="storage='compact'"):
        SparseOptimizer(inner, model=model, compute="sparse", storage="masked")
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="element-wise"):
        SparseOptimizer(lbfgs, model=model, compute="sparse")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.modules())


# --- the gradient that holds active values --------------------------------------------------------


def held(values: list[float], index: list[int], shape: tuple[int, ...]) -> ActiveGradient:
    return ActiveGradient(torch.tensor(values), torch.tensor(index), torch.zeros(shape))


READS: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda g: g.sum(),
    "norm": lambda g: g.norm(),
    "norm 1": lambda g: torch.linalg.vector_norm(g, 1),
    "norm inf": lambda g: torch.linalg.vector_norm(g, float("inf")),
    "norm -inf": lambda g: torch.linalg.vector_norm(g, float("-inf")),
    "norm 0": lambda g: torch.linalg.vector_norm(g, 0),
    "norm with its dimensions": lambda g: torch.linalg.vector_norm(g, keepdim=True),
    "norm of rows": lambda g: torch.linalg.vector_norm(g, dim=1),
    "abs mean": lambda g: g.abs().mean(),
    "entry": lambda g: g[0, 2],
    "view": lambda g: g.view(-1),
    "product": lambda g: g @ g.t(),
    "double": lambda g: g.double() + g,
    "stack": lambda g: torch.stack([g, g]),
    "clone": lambda g: g.clone() + 1,
    "numpy": lambda g: torch.as_tensor(g.numpy()),
    "list": lambda g: torch.tensor(g.tolist()),
    "out": lambda g: torch.mul(g, 2, out=torch.empty(g.shape)),
    "add to": lambda g: torch.ones(g.shape).add_(g),
    "deepcopy": lambda g: copy.deepcopy(g) * 1,
    "pickle": lambda g: by_pickle(g) * 1,
    "where": lambda g: torch.where(g > 0, g, -1.0),
    "foreach": lambda g: torch._foreach_mul([g, g], 2.0)[1],
    "sign": lambda g: g.detach().sign(),
}
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "scale": lambda g: g.mul_(0.5),
    "scale by tensor": lambda g: g.mul_(torch.tensor(0.5)),
    "divide": lambda g: g.div_(4),
    "add number": lambda g: g.add_(1.0),
    "add tensor": lambda g: g.add_(torch.ones(g.shape), alpha=2),
    "add itself": lambda g: g.add_(g),
    "product": lambda g: g.mul_(torch.arange(6.0).view(2, 3)),
    "clamp": lambda g: g.clamp_(-1, 1),
    "clamp away from zero": lambda g: g.clamp_(0.5, 1),
    "zero": lambda g: g.zero_(),
    "fill": lambda g: g.fill_(2.0),
    "copy": lambda g: g.copy_(torch.ones(g.shape)),
    "entry": lambda g: g.__setitem__((1, 1), 7.0),
    "view": lambda g: g.view(-1).mul_(3),
    "foreach": lambda g: torch._foreach_mul_([g, torch.ones(2)], 3.0),
    "foreach by tensor": lambda g: torch._foreach_mul_([g], torch.tensor(3.0)),
    "through data": lambda g: g.data.mul_(2),
}


@pytest.mark.parametrize("read", READS)
def test_reading_the_gradient_gives_what_the_dense_one_gives(read: str) -> None:
    grad = held([3.0, -4.0], [2, 4], (2, 3))
    dense = torch.tensor([[0.0, 0, 3], [0, -4, 0]])
    torch.testing.assert_close(READS[read](grad), READS[read](dense))
    torch.testing.assert_close(grad + 0, dense)


@pytest.mark.parametrize("change", CHANGES)
def test_changing_the_gradient_does_what_it_does_to_the_dense_one(change: str) -> None:
    grad = held([3.0, -4.0], [2, 4], (2, 3))
    dense = torch.tensor([[0.0, 0, 3], [0, -4, 0]])
    alias = grad.detach()
    CHANGES[change](grad)
    CHANGES[change](dense)
    torch.testing.assert_close(alias + 0, dense)
    torch.testing.assert_close(grad + 0, dense)


def test_ordinary_steps_never_make_a_dense_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseopt.storage import active_gradient

    def refuse(grad: Tensor) -> Tensor:
        raise AssertionError("a dense gradient was made")

    model = network()
    optimizer = wrap(model, algo="static", exclude="4")
    monkeypatch.setattr(active_gradient, "as_dense", refuse)
    train(model, optimizer, 5, micro=2, clip=1.0)
    assert holds_active_only(model[0].weight.grad)


def test_dense_gradients_are_made_in_the_window_only() -> None:
    model = network()
    optimizer = wrap(model, algo="rigl", update_every=3)
    seen = []
    for _ in range(9):
        optimizer.zero_grad()
        loss(model, torch.ones(3, 20)).backward()
        seen.append(holds_active_only(model[0].weight.grad))
        optimizer.step()
    assert seen == [True, True, False] * 3


def test_the_rest_of_the_model_can_be_compiled() -> None:
    (dense, one), (sparse, other) = pair()
    train(dense, one, 9)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, backend="eager")
    train(compiled, other, 9)
    assert_same(dense, sparse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_traces_and_exported_programs_are_those_of_the_dense_model() -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    values = torch.linspace(-1, 1, 60).view(3, 20)
    traced = torch.jit.trace(model, values)
    program = torch.export.export(model, (values,), strict=False).module()
    train(model, optimizer, 3)
    torch.testing.assert_close(traced(values), model(values), **EXACT)  # shares its weights
    torch.testing.assert_close(program(values), model(values), **EXACT)


def test_operations_are_counted_as_in_the_dense_model() -> None:
    pytest.importorskip("fvcore")
    from sparseopt import flops

    model = network()
    optimizer = wrap(model)
    assert (
        flops.count(model, torch.ones(1, 20)).macs == flops.count(network(), torch.ones(1, 20)).macs
    )
    assert optimizer.steps == 0


def test_auto_leaves_the_rest_alone_where_nothing_is_to_be_gained() -> None:
    class Unknown(torch.optim.SGD):
        """Not known to be element-wise."""

    for sparsity, kind in ((0.5, torch.optim.SGD), (0.9, Unknown)):
        model = network()
        inner = kind(model.parameters(), lr=0.1)
        optimizer = SparseOptimizer(inner, "set", sparsity=sparsity, model=model, compute="auto")
        assert "storage='masked'" in repr(optimizer)
        assert not any("forward" in m.__dict__ for m in model.modules())
        with optimizer.dense_compute():
            train(model, optimizer, 2)
