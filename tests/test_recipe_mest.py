"""MEST: its score, its two densities, and the exact return to the target."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still
from hypothesis import given, settings
from references_recipes import mest
from torch import Tensor, nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import mest_g, mest_r
from sparseopt.layers import Layer
from sparseopt.schedules import Constant, Cosine
from sparseopt.scores import Context, MagnitudeGradient, gradient
from sparseopt.select import top_k
from sparseopt.update import Levels, plan

WEIGHT, GRADIENT = [0.5, -0.2, 0.3, 0.25], [0.0, 5.0, -1.0, 20.0]  # G17


def layer_of(weight: Any, grad: Any, mask: Any = None) -> Layer:
    layer = Layer("fc", torch.tensor(weight, dtype=torch.float64), (0, 0))
    layer.gradient = torch.tensor(grad, dtype=torch.float64)
    if mask is not None:
        layer.set_mask(torch.tensor(mask))
    return layer


@pytest.mark.parametrize(
    ("weight", "order"), [(0.01, [1, 2, 3, 0]), (0.0, [1, 3, 2, 0])], ids=["lambda=.01", "0"]
)
def test_golden_score_drops_in_this_order(weight: float, order: list[int]) -> None:
    layer = layer_of([WEIGHT], [GRADIENT])
    score = MagnitudeGradient(weight)(layer, Context())
    assert score.flatten().argsort().tolist() == order
    if weight:
        assert score.flatten().tolist() == pytest.approx([0.50, 0.25, 0.31, 0.45])
    assert top_k(score, 2).flatten().nonzero().flatten().tolist() == sorted(order[2:])


@pytest.mark.parametrize(("weight", "kept"), [(0.01, {0, 3}), (0.0, {0, 2})])
def test_golden_update_keeps_the_best_two(weight: float, kept: set[int]) -> None:
    layer = layer_of([WEIGHT], [GRADIENT])
    algorithm = mest_g(0.5, bound=1.0, gradient_weight=weight)
    (change,) = plan([layer], algorithm, Levels(0.5, 0.5, 0.0), Context())
    assert {*change.mask.flatten().nonzero().flatten().tolist()} == kept
    assert (change.dropped, change.grown) == (2, 0)


@given(
    data=st.data(),
    size=st.integers(4, 30),
    bound=st.sampled_from([0.1, 0.5]),
    weight=st.sampled_from([0.0, 0.01, 1.0]),
)
@settings(max_examples=60)
def test_an_update_is_that_of_the_literal_reference(
    data: Any, size: int, bound: float, weight: float
) -> None:
    values = st.lists(st.integers(-4, 4), min_size=size, max_size=size)
    target = data.draw(st.integers(1, size // 2))
    level = min(size, math.floor(target * (1 + bound) + 0.5))
    w, g = data.draw(values), data.draw(values)
    on = set(data.draw(st.permutations(range(size)))[:level])
    mask = [i in on for i in range(size)]
    w = [float(a) if i in on else 0.0 for i, a in enumerate(w)]
    layer = layer_of([w], [[float(b) for b in g]], [mask])
    levels = Levels(level / size, target / size, 0.0)
    (change,) = plan([layer], mest_g(1 - target / size, gradient_weight=weight), levels, Context())
    expected = mest(w, [float(b) for b in g], mask, target, level, weight)
    assert change.mask.flatten().tolist() == expected


def test_the_excess_starts_at_the_bound_and_stays_near_it_until_the_end() -> None:
    density = mest_r(0.7).density
    assert density(0.0) == pytest.approx(0.33)
    assert density(0.5) == pytest.approx(0.3 * (1 + 0.0993092))
    assert density(1.0) == 0.3
    assert mest_r(0.9, bound=0.02 / 0.1).density(0.0) == pytest.approx(0.12)


def test_every_update_prunes_to_the_target_and_grows_to_the_bound() -> None:
    weight = nn.Parameter(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    optimizer = SparseOptimizer(
        Still([weight]), "mest_r", sparsity=0.7, total_steps=100, update_every=10,
        gradient_weight=0.0,
    )  # fmt: skip
    assert optimizer.layers[0].nnz == 3300
    for _ in range(100):
        optimizer.step()
    wanted = [math.floor(3000 * (1 + 0.1 * (1 - t / 100) ** 0.01) + 0.5) for t in range(10, 90, 10)]
    found = [record.nnz for record in optimizer.history]
    assert found == [*wanted, 3000]  # the last update, at 90, prunes and grows nothing
    for before, record in zip([3300, *found], optimizer.history, strict=False):
        assert record.dropped == before - 3000
        assert record.grown == record.nnz - 3000
    assert [record.step for record in optimizer.history] == [*range(10, 100, 10)]


def test_elastic_mutation_dips_below_the_target_and_comes_back() -> None:
    weight = nn.Parameter(torch.randn(100, 100, generator=torch.Generator().manual_seed(0)))
    optimizer = SparseOptimizer(
        Still([weight]), "mest_g", sparsity=0.9, total_steps=100, update_every=10,
        variant="em", bound=0.2,
    )  # fmt: skip
    for _ in range(100):
        weight.grad = torch.randn(100, 100, generator=torch.Generator().manual_seed(1))
        optimizer.step()
    for record in optimizer.history:
        dip = 0.2 * (1 - record.step / 100) ** 0.01
        assert record.nnz == 1000
        assert record.dropped == record.grown == 1000 - math.floor(1000 * (1 - dip) + 0.5)


def test_a_drop_fraction_makes_it_dip_below_the_target_too() -> None:
    both = mest_r(0.5, bound=0.1, drop_fraction=Constant(0.2))
    assert both.pruned_density(0.3) == pytest.approx(0.4)
    assert both.density(0.0) == pytest.approx(0.55)


def test_drop_by_fraction_takes_more_where_the_target_asks_for_it() -> None:
    algorithm = mest_r(0.5, drop="fraction", drop_fraction=0.5)
    layer = layer_of(torch.randn(10, 10).tolist(), torch.randn(10, 10).tolist())
    mask = torch.zeros(100, dtype=torch.bool)
    mask[:55] = True
    layer.set_mask(mask.view(10, 10))
    for fraction, kept in ((0.5, 28), (0.05, 50)):
        (change,) = plan([layer], algorithm, Levels(0.55, 0.5, fraction), Context())
        assert change.dropped == 55 - kept
        assert int(change.mask.sum()) == 55


def test_without_gradient_weight_random_growth_asks_for_no_gradients() -> None:
    assert not mest_r(0.5, gradient_weight=0.0).needs_gradient
    assert mest_r(0.5).needs_gradient
    assert mest_g(0.5).grow is gradient


def test_a_bound_may_be_a_schedule_of_its_own() -> None:
    assert mest_r(0.5, bound=Cosine(0.2)).density(0.5) == pytest.approx(0.55)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bound": -0.1}, "bound=-0.1"),
        ({"bound": 1.5}, "bound=1.5"),
        ({"variant": "ems"}, "variant='ems'"),
        ({"drop": "target"}, "drop='target'"),
        ({"gradient_weight": -1.0}, "gradient_weight=-1.0"),
        ({"drop_fraction": 2.0}, "drop_fraction"),
    ],
)
def test_bad_input_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mest_r(0.5, **options)


def test_the_gradient_of_the_score_is_that_of_the_step_just_taken() -> None:
    """Weights 1 and 2 alike, of which the larger gradient stays, though the other's was larger."""
    weight = nn.Parameter(torch.tensor([[1.0, 1.0, 0.5, 0.5]]))
    mask = torch.tensor([[True, True, True, True]])
    optimizer = SparseOptimizer(
        Still([weight]), "mest_r", sparsity=0.75, total_steps=10, update_every=8, bound=1.0,
        gradient_weight=1.0, include=lambda name, weight: True,
        topology=lambda layer, nnz, generator: first(mask, nnz),
    )  # fmt: skip
    assert optimizer.layers[0].nnz == 2
    for step in range(8):
        late = step == 7
        weight.grad = torch.tensor([[0.0, 1.0, 0.0, 0.0] if late else [9.0, 0.0, 0.0, 0.0]])
        optimizer.step()
    assert optimizer.layers[0].mask.tolist() == [[False, True, False, False]]


def first(mask: Tensor, nnz: int) -> Tensor:
    chosen = torch.zeros_like(mask)
    chosen.view(-1)[:nnz] = True
    return chosen
