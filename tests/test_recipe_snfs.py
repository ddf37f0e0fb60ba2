"""SNFS: shares by mean momentum, exact totals, and an average of dense gradients of its own."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still, assert_zeros
from hypothesis import assume, given, settings
from references_recipes import snfs as reference
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import snfs
from sparseopt.algorithms.sparse_momentum import AVERAGE, apportion
from sparseopt.layers import Layer
from sparseopt.scores import Context
from sparseopt.update import Levels, plan


def layer_of(number: int, w: list[float], m: list[float], mask: list[bool]) -> Layer:
    layer = Layer(f"{number}", torch.tensor([w]), (0, number))
    layer.set_mask(torch.tensor([mask]))
    layer.extras[AVERAGE] = torch.tensor([m])
    return layer


def test_golden_shares() -> None:
    assert apportion([0.3, 0.1], 8, [100, 100]) == [6, 2]
    assert apportion([0.3, 0.1], 8, [4, 10]) == [4, 4]


@pytest.mark.parametrize(("inactive", "grown"), [(20, [6, 2]), (0, [4, 4])], ids=["room", "full"])
def test_golden_update_moves_weights_to_the_layer_with_the_larger_momentum(
    inactive: int, grown: list[int]
) -> None:
    """Two layers of 8 active weights drop 4 each; mean momenta .3 and .1."""
    mask = [True] * 8 + [False] * inactive
    first = layer_of(0, [1.0] * 8 + [0.0] * inactive, [0.3] * 8 + [0.2] * inactive, mask)
    second = layer_of(1, [1.0] * 8 + [0.0] * 6, [0.1] * 14, [True] * 8 + [False] * 6)
    changes = plan([first, second], snfs(0.5), Levels(0.5, None, 0.5), Context())
    assert [change.dropped for change in changes] == [4, 4]
    assert [change.grown for change in changes] == grown


@given(data=st.data(), sizes=st.lists(st.integers(2, 14), min_size=1, max_size=4))
@settings(max_examples=100)
def test_an_update_is_that_of_the_literal_reference(data: Any, sizes: list[int]) -> None:
    weights, means, masks = [], [], []
    for size in sizes:
        values = st.lists(st.integers(-5, 5).map(float), min_size=size, max_size=size)
        mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
        weights.append([a if on else 0.0 for a, on in zip(data.draw(values), mask, strict=True)])
        means.append(data.draw(values))
        masks.append(mask)
    assume(any(m for mean, mask in zip(means, masks, strict=True)
               for m, on in zip(mean, mask, strict=True) if on))  # fmt: skip
    fraction = data.draw(st.sampled_from([0.0, 0.2, 0.5, 0.8]))
    parts = zip(weights, means, masks, strict=True)
    layers = [layer_of(number, *part) for number, part in enumerate(parts)]
    found = plan(layers, snfs(0.5), Levels(0.5, None, fraction), Context())
    expected = reference(weights, means, masks, fraction)
    assert [change.mask.flatten().tolist() for change in found] == expected


@given(
    shares=st.lists(st.floats(0, 10), min_size=1, max_size=6),
    total=st.integers(0, 60),
    data=st.data(),
)
def test_shares_add_up_and_respect_the_room(shares: list[float], total: int, data: Any) -> None:
    count = len(shares)
    room = data.draw(st.lists(st.integers(0, 30), min_size=count, max_size=count))
    numbers = apportion(shares, total, room)
    assert sum(numbers) == min(total, sum(room))
    assert all(0 <= number <= most for number, most in zip(numbers, room, strict=True))


def test_the_average_is_that_of_dense_gradients() -> None:
    weight = nn.Parameter(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))
    optimizer = SparseOptimizer(Still([weight]), "snfs", sparsity=0.5, update_every=100, beta=0.5)
    mean = torch.zeros(6, 6)
    for step in range(5):
        gradient = torch.randn(6, 6, generator=torch.Generator().manual_seed(step))
        weight.grad = gradient.clone()
        optimizer.step()
        mean = 0.5 * mean + 0.5 * gradient
        assert (weight.grad[~optimizer.layers[0].mask] == 0).all()
    torch.testing.assert_close(optimizer.layers[0].extras[AVERAGE], mean)


def test_the_average_is_dense_through_backward_and_accumulation_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False)
    twin = nn.Linear(6, 5, bias=False)
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), "snfs", sparsity=0.5, model=model, beta=0.0
    )
    twin.load_state_dict(model.state_dict())
    for module in (model, twin):
        for part in (1, 2):
            inputs = torch.randn(4, 6, generator=torch.Generator().manual_seed(part))
            module(inputs).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(optimizer.layers[0].extras[AVERAGE], twin.weight.grad)


def test_a_gradient_that_is_not_finite_does_not_spoil_the_average() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    optimizer = SparseOptimizer(Still([weight]), "snfs", sparsity=0.5)
    weight.grad = torch.full((4, 4), float("inf"))
    optimizer.step()
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    assert optimizer.layers[0].extras[AVERAGE].isfinite().all()


def test_growth_follows_the_average_not_the_last_gradient() -> None:
    weight = nn.Parameter(torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]]))
    mask = torch.tensor([[True, True, True, True, False, False, False, False]])
    optimizer = SparseOptimizer(
        Still([weight]), "snfs", sparsity=0.5, update_every=4, drop_fraction=0.5,
        topology={"0.0": mask}, include=lambda name, weight: True,
    )  # fmt: skip
    for step in range(4):
        weight.grad = torch.zeros(1, 8)
        weight.grad[0, 5] = weight.grad[0, 6] = 1.0
        weight.grad[0, 7] = 1.5 if step == 3 else 0.0
        optimizer.step()
    assert optimizer.layers[0].mask.tolist() == [[True, True, *[False] * 3, True, True, False]]


def test_before_any_gradient_every_layer_grows_what_it_dropped() -> None:
    layers = [layer_of(n, [1.0] * 8, [0.0] * 8, [True] * 4 + [False] * 4) for n in range(2)]
    changes = plan(layers, snfs(0.5), Levels(0.5, None, 0.5), Context())
    assert [change.grown for change in changes] == [2, 2]


@pytest.mark.filterwarnings("ignore:the density leaves no weight:UserWarning")
def test_a_layer_without_momentum_shrinks_but_keeps_a_weight() -> None:
    weights = [nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6, 6))]
    optimizer = SparseOptimizer(
        Still(weights), "snfs", sparsity=0.7, update_every=1, drop_fraction=0.9, rounding="ceil"
    )
    for _ in range(30):
        weights[0].grad, weights[1].grad = torch.ones(6, 6), torch.full((6, 6), 1e-9)
        optimizer.step()
        assert_zeros(optimizer)
        assert sum(layer.nnz for layer in optimizer.layers) == 22
    assert [layer.nnz for layer in optimizer.layers] == [21, 1]


@pytest.mark.parametrize("beta", [-0.1, 1.0, 2.0])
def test_a_beta_outside_zero_and_one_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta={beta}"):
        snfs(0.5, beta=beta)
