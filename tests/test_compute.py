"""Sparse compute: the same training as with dense products, behind an unchanged module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import Recipe
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_pairs import (
    ALL_RECIPES,
    EXACT,
    OPTIMIZERS,
    assert_same,
    dense_outputs,
    in_double,  # noqa: F401 - a fixture
    loss,
    network,
    pair,
    train,
    wrap,
)
from torch import Tensor, nn

from sparseopt.compute import structure
from sparseopt.storage.active_gradient import holds_active_only

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


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


def test_matrices_follow_a_new_topology_in_the_same_memory() -> None:
    model = network()
    optimizer = wrap(model, "sparse", "set")
    train(model, optimizer, 1)
    structures = list(optimizer._engine.structures.values())

    def memory() -> list[int]:
        matrices = [m for one in structures for m in (one.matrix, one.turned) if m is not None]
        return [part.data_ptr() for m in matrices for part in (m.starts, m.columns, m.values)]

    before, masks = memory(), {name: mask.clone() for name, mask in optimizer.masks.items()}
    train(model, optimizer, 5)
    assert memory() == before
    assert structures == list(optimizer._engine.structures.values())
    assert not any(torch.equal(masks[name], mask) for name, mask in optimizer.masks.items())
    values = torch.ones(3, 20)
    torch.testing.assert_close(model(values), dense_outputs(model, values), **EXACT)


def test_names_of_parameters_and_the_module_tree_do_not_change() -> None:
    model, plain = network(), network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert repr(model) == repr(plain)
    assert type(model[0].weight) is nn.Parameter


@pytest.mark.parametrize("often", [0, 10**9])
@pytest.mark.parametrize("shape", [(127,), (128,), (129,), (300,), (3, 90), (2, 3, 43), (1030,)])
def test_any_number_of_samples_trains_the_same(
    shape: tuple[int, ...], often: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many are multiplied in blocks, shorter or longer ones, which need not be of one size."""
    monkeypatch.setattr(structure, "OFTEN", often)
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
