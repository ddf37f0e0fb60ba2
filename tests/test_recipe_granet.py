"""GraNet and gradual magnitude pruning: the density's curve, its scope, pruning then regrowth."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still
from hypothesis import given, settings
from references_recipes import granet
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import gmp, granet_g, granet_r
from sparseopt.layers import Layer
from sparseopt.schedules import Cubic
from sparseopt.scores import Context
from sparseopt.update import Levels, plan

GOLDEN = [0.8, 0.5109375, 0.3625, 0.3078125, 0.3]  # G2


def still(algo: str, *shapes: tuple[int, int], **options: Any) -> SparseOptimizer:
    weights = [
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        for seed, shape in enumerate(shapes)
    ]
    return SparseOptimizer(Still(weights), algo, **options)


def test_golden_density_over_four_updates() -> None:
    density = granet_r(0.7, window=1.0).density
    assert [density(k / 4) for k in range(5)] == pytest.approx(GOLDEN)
    assert density(1.0) == 0.3


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_golden_counts_over_four_updates(scope: str) -> None:
    optimizer = still(
        "granet_r", (100, 100), sparsity=0.7, total_steps=80, update_every=10, scope=scope
    )
    counts = [optimizer.layers[0].nnz]
    for _ in range(80):
        optimizer.step()
    counts += [record.nnz for record in optimizer.history]
    assert counts[:5] == [math.floor(10_000 * d + 0.5) for d in GOLDEN]
    assert {*counts[4:]} == {3000}
    # regrowth goes on after the window
    assert all(record.grown > 0 for record in optimizer.history)


def test_the_first_update_after_the_window_brings_exactly_the_target() -> None:
    """Window until 50, updates at 30, 60, 90: the reference misses by (di - dt) / n ** 3."""
    optimizer = still("gmp", (50, 50), sparsity=0.9, total_steps=100, update_every=30)
    for _ in range(100):
        optimizer.step()
    assert [record.nnz for record in optimizer.history] == [
        math.floor(2500 * Cubic(1.0, 0.1, 0.0, 0.5)(0.3) + 0.5), 250,
    ]  # fmt: skip


def test_gmp_rests_once_the_target_is_reached_and_never_grows() -> None:
    optimizer = still("gmp", (20, 20), (10, 20), sparsity=0.8, total_steps=60, update_every=5)
    masks = [layer.mask.clone() for layer in optimizer.layers]
    for _ in range(60):
        optimizer.step()
        for layer, mask in zip(optimizer.layers, masks, strict=True):
            assert not (layer.mask & ~mask).any()  # pruned stays pruned
            mask.copy_(layer.mask)
    assert [record.step for record in optimizer.history] == [5, 10, 15, 20, 25, 30]
    assert [layer.nnz for layer in optimizer.layers] == [80, 40]


def test_scope_follows_the_distribution_unless_it_is_chosen() -> None:
    assert granet_g(0.7).settle_scope == "global"
    assert granet_g(0.7, distribution="uniform").settle_scope == "layer"
    assert granet_g(0.7, distribution="uniform", scope="global").settle_scope == "global"
    assert granet_r(0.7, scope="layer").settle_scope == "layer"
    assert gmp(0.7).settle_scope == "layer"
    assert gmp(0.7, distribution="erk").settle_scope == "global"


def test_the_initial_density_is_the_papers_or_halfway_to_dense() -> None:
    assert granet_r(0.7).density(0.0) == 0.8
    assert granet_r(0.1).density(0.0) == pytest.approx(0.95)  # arXiv 2410.03030, on ImageNet
    assert granet_r(0.9, initial_density=0.5).density(0.0) == 0.5
    assert granet_r(0.5, initial_density=0.5).density(0.3) == 0.5


def test_uniform_pruning_gives_every_layer_its_share() -> None:
    optimizer = still(
        "granet_r", (40, 30), (20, 10), sparsity=0.9, distribution="uniform",
        total_steps=40, update_every=4,
    )  # fmt: skip
    optimizer.layers[0].weight.data.mul_(100)
    for _ in range(40):
        optimizer.step()
    assert [layer.nnz for layer in optimizer.layers] == [120, 20]


def test_global_pruning_follows_the_weights() -> None:
    optimizer = still(
        "gmp", (40, 30), (40, 30), scope="global", sparsity=0.9, total_steps=40, update_every=4
    )
    with torch.no_grad():
        optimizer.layers[0].weight.mul_(1000)
    for _ in range(40):
        optimizer.step()
    assert [layer.nnz for layer in optimizer.layers] == [239, 1]  # 240, and one is left everywhere


@given(data=st.data(), sizes=st.lists(st.integers(3, 12), min_size=1, max_size=3))
@settings(max_examples=60)
def test_an_update_is_that_of_the_literal_reference(data: Any, sizes: list[int]) -> None:
    layers, weights, gradients, masks = [], [], [], []
    for number, size in enumerate(sizes):
        values = st.lists(st.integers(-5, 5).map(float), min_size=size, max_size=size)
        mask = data.draw(st.lists(st.booleans(), min_size=size, max_size=size).filter(any))
        w = [a if on else 0.0 for a, on in zip(data.draw(values), mask, strict=True)]
        g = data.draw(values)
        layer = Layer(f"{number}", torch.tensor([w]), (0, number))
        layer.gradient = torch.tensor([g])
        layer.set_mask(torch.tensor([mask]))
        layers.append(layer)
        weights.append(w)
        gradients.append(g)
        masks.append(mask)
    total = data.draw(st.integers(len(sizes), sum(map(sum, masks))))
    fraction = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    levels = Levels(total / sum(sizes), None, fraction)
    found = plan(layers, granet_g(0.9), levels, Context())
    expected = granet(weights, gradients, masks, total, fraction)
    if levels.density < 1.0:
        assert [change.mask.flatten().tolist() for change in found] == expected
    assert sum(int(change.mask.sum()) for change in found) == total


def test_a_weight_pruned_and_regrown_in_one_update_starts_anew() -> None:
    layer = Layer("fc", torch.tensor([[4.0, 3.0, 2.0, 1.0]]), (0, 0))
    layer.gradient = torch.tensor([[0.0, 0.0, 0.0, 9.0]])
    (change,) = plan([layer], granet_g(0.5), Levels(0.5, None, 0.5), Context())
    # pruned to {0, 1}; 1 dropped; 3, just pruned, grown
    assert change.mask.tolist() == [[True, False, False, True]]
    assert change.fresh.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("recipe", [granet_r, granet_g, gmp])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial_density": 0.05}, "initial_density=0.05.*target density 0.1"),
        ({"initial_density": 1.01}, "initial_density=1.01"),
        ({"window": 0.0}, "window=0.0"),
        ({"window": 0.8, "start": 0.5}, "window=0.8 from start=0.5"),
        ({"scope": "all"}, "scope='all'"),
    ],
)
def test_bad_input_is_refused_by_name(recipe: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        recipe(0.9, **options)
