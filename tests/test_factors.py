"""Growth goes by the dense gradient without its ever being written out."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_pairs import (
    EXACT,
    assert_same,
    in_double,  # noqa: F401 - a fixture
)
from torch import Tensor, nn

from sparseopt import SparseOptimizer, shortlist
from sparseopt.layers import Layer
from sparseopt.scores import Context, MagnitudeGradient, gradient
from sparseopt.shortlist import best_of_many
from sparseopt.storage.active_gradient import ActiveGradient, Held
from sparseopt.storage.active_gradient import factors_of as factors_held
from sparseopt.storage.factors import Factors
from sparseopt.windows import is_multiple

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


def factors_of(outputs: int, inputs: int, samples: int, dtype: torch.dtype = torch.float32) -> Any:
    draw = torch.Generator().manual_seed(outputs * inputs + samples)
    slopes = torch.randn(outputs, samples, generator=draw, dtype=dtype)
    return Factors(slopes, torch.randn(inputs, samples, generator=draw, dtype=dtype))


SIZES = st.integers(1, 60)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9), st.integers(1, 40), st.integers(1, 20))
def test_parts_of_the_product_are_those_of_the_whole(
    outputs: int, inputs: int, samples: int, number: int, width: int
) -> None:
    factors = factors_of(outputs, inputs, samples, torch.float64)
    dense = factors.slopes @ factors.inputs.t()
    torch.testing.assert_close(factors.dense(), dense)
    half = outputs // 2
    torch.testing.assert_close(factors.rows(half, outputs + 5), dense[half:])
    found, places = factors.windows(number, width)
    assert found.shape == places.shape and found.shape[0] == number
    torch.testing.assert_close(found, dense.view(-1)[places])
    rows, columns = torch.arange(0, outputs, 2), torch.arange(0, inputs, 3)
    torch.testing.assert_close(factors.at(rows, columns).dense(), dense[::2, ::3])


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(1, 9), st.floats(0, 4), st.booleans())
def test_no_entry_outside_of_the_crossings_reaches_the_threshold(
    outputs: int, inputs: int, samples: int, least: float, parallel: bool
) -> None:
    factors = factors_of(outputs, inputs, samples)
    if parallel:  # entries as large as the bound allows
        sizes = torch.linspace(0, 1, outputs, dtype=torch.float32).unsqueeze(1)
        factors = Factors(sizes * factors.inputs[:1], factors.inputs)
        least = float(factors.dense().abs().max()) * least / 4
    rows, columns = factors.reaching(least)
    outside = factors.dense().abs()
    outside[rows.unsqueeze(1), columns] = -1.0
    assert float(outside.max()) < least or bool((outside == -1.0).all())


def lazy(factors: Factors, density: float = 0.1) -> Layer:
    shape = len(factors.slopes), len(factors.inputs)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    layer = Layer("w", weight.to(factors.slopes.dtype), (0, 0))
    layer.set_mask(torch.rand(shape, generator=torch.Generator().manual_seed(1)) < density)
    held = Held(None, torch.arange(0), factors=factors)
    layer.gradient = ActiveGradient(None, held.index, layer.weight, held)
    return layer


def dead(factors: Factors) -> Factors:
    """As behind ReLU: samples, and whole units, without a slope."""
    slopes = factors.slopes * (torch.arange(factors.slopes.numel()).view_as(factors.slopes) % 3 > 0)
    slopes[::2] = 0.0
    return Factors(slopes, factors.inputs)


def scaled(factors: Factors, scale: float) -> Factors:
    return Factors(factors.slopes * scale, factors.inputs)


KINDS = {
    "normal": lambda: factors_of(300, 1000, 8),
    "double": lambda: factors_of(300, 1000, 8, torch.float64),
    "one sample": lambda: factors_of(300, 1000, 1),
    "many samples": lambda: factors_of(300, 1000, 200),
    "dead units": lambda: dead(factors_of(300, 1000, 8)),
    "slopes whose squares underflow": lambda: scaled(
        factors_of(300, 1000, 8, torch.float64), 1e-162
    ),
    "slopes whose squares overflow": lambda: scaled(factors_of(300, 1000, 8, torch.float64), 1e200),
    "few outputs": lambda: factors_of(10, 30_000, 4),
    "few inputs": lambda: factors_of(30_000, 10, 4),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 50, 3_000, 20_000])
def test_the_choice_is_that_by_the_dense_gradient(kind: str, k: int) -> None:
    for score in (gradient, MagnitudeGradient(0.5)):
        layer = lazy(KINDS[kind]())
        chosen = best_of_many(layer, score, ~layer.mask, k, Context())
        if chosen is None:
            continue
        worth = score(layer, Context())
        assert int(chosen.sum()) == k and not bool((chosen & layer.mask).any())
        least = worth[chosen].min()
        # a product of parts may differ from the whole one by its rounding
        missed = worth[~(chosen | layer.mask)].max()
        assert float(missed) <= float(least) * (1 + 1e-5)


def test_rows_and_columns_that_cannot_reach_the_threshold_are_not_multiplied(monkeypatch) -> None:
    layer, made = lazy(dead(factors_of(300, 1000, 8))), []
    rows = Factors.rows

    def counted(self: Factors, first: int, last: int) -> Tensor:
        found = rows(self, first, last)
        made.append(found.numel())
        return found

    monkeypatch.setattr(Factors, "rows", counted)
    assert best_of_many(layer, gradient, ~layer.mask, 2_000, Context()) is not None
    assert sum(made) < layer.numel / 2


def test_where_the_sample_deceives_all_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = lazy(factors_of(300, 1000, 8))
    for low in (1e9, 0.0):
        monkeypatch.setattr(shortlist, "bracket", lambda *_, low=low: (low, math.inf))
        assert best_of_many(layer, gradient, ~layer.mask, 2_000, Context()) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_factors_whose_product_may_not_be_finite_are_not_called_finite(bad: float) -> None:
    ones = torch.ones(3, 2, dtype=torch.float32)
    large = 1e30 * ones  # finite, as its product with ones is
    assert Factors(large, ones).is_finite() and Factors(ones, large).is_finite()
    one_bad = large.clone()
    one_bad[2, 1] = bad
    assert not Factors(one_bad, large).is_finite() and not Factors(large, one_bad).is_finite()


# --- in training ----------------------------------------------------------------------------------


def large(compute: str, **more: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(300, 320), nn.ReLU(), nn.Linear(320, 5))
    options: dict[str, Any] = {"sparsity": 0.95, "update_every": 2, "stop": 1.0, "exclude": "2"}
    inner = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, SparseOptimizer(
        inner, "rigl", model=model, compute=compute, storage="compact", **(options | more)
    )


def step(model: nn.Module, optimizer: Any, number: int, before_step: Any = None) -> None:
    draw = torch.Generator().manual_seed(number)
    optimizer.zero_grad()
    model(torch.randn(6, 300, generator=draw)).square().sum().backward()
    if before_step is not None:
        before_step(model)
    optimizer.step()


def clipped(model: nn.Module) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1e-2)


def one_row_written(model: nn.Module) -> None:
    """By hand: the other entries were not scaled."""
    for p in model.parameters():
        p.grad[0] *= 2


def doubled_and_clipped(model: nn.Module) -> None:
    model.double()
    clipped(model)


WRITES = [None, clipped, one_row_written, doubled_and_clipped]


@needs_mkl
@pytest.mark.parametrize("before_step", WRITES, ids=lambda write: getattr(write, "__name__", "no"))
def test_training_grows_what_dense_products_grow(before_step: Any) -> None:
    (dense, one), (sparse, other) = large("dense"), large("sparse")
    for number in range(8):
        step(dense, one, number, before_step)
        step(sparse, other, number, before_step)
        assert torch.equal(one.masks["0.weight"], other.masks["0.weight"])
    assert one.history == other.history and one.updates == 4
    assert_same(dense, sparse)


@needs_mkl
@pytest.mark.parametrize("before_step", [None, clipped], ids=["plain", "clipped"])
def test_no_dense_gradient_is_made_for_an_update_by_gradient(monkeypatch, before_step) -> None:
    model, optimizer = large("sparse")

    def refuse(self: Factors) -> Tensor:
        raise AssertionError("a dense gradient was made")

    monkeypatch.setattr(Factors, "dense", refuse)
    for number in range(8):
        step(model, optimizer, number, before_step)
    assert optimizer.updates == 4


@needs_mkl
def test_a_hook_in_the_window_sees_the_dense_gradient_and_the_step_the_masked_one() -> None:
    seen: dict[str, list[Tensor]] = {"dense": [], "sparse": []}
    for compute, found in seen.items():
        model, optimizer = large(compute)
        model[0].weight.register_hook(lambda grad, found=found: found.append(grad * 1.0))
        for number in range(4):
            step(model, optimizer, number)
            grad = model[0].weight.grad
            assert bool((grad != 0).any())
            if not optimizer.history or optimizer.history[-1]["step"] != number + 1:
                assert not bool((grad[~optimizer.masks["0.weight"]] != 0).any())
    for one, other in zip(seen["dense"][1::2], seen["sparse"][1::2], strict=True):
        torch.testing.assert_close(one, other, **EXACT)  # inactive entries too


@needs_mkl
def test_inputs_written_between_backward_and_step_do_not_change_what_grows() -> None:
    masks = []
    for overwritten in (False, True):
        model, optimizer = large("sparse", update_every=1)
        values = torch.randn(300, 6, generator=torch.Generator().manual_seed(3)).t()
        model(values).square().sum().backward()
        if overwritten:
            values.data.normal_()
        optimizer.step()
        masks.append(optimizer.masks["0.weight"].clone())
    assert torch.equal(*masks)


@needs_mkl
@pytest.mark.parametrize(
    ("samples", "sparsity", "kept"),
    [(6, 0.95, True), (500, 0.95, False), (24, 0.95, True), (24, 0.72, False)],
)
def test_factors_are_kept_where_they_are_thin_and_few_products_are_made_beside(
    samples: int, sparsity: float, kept: bool
) -> None:
    model, optimizer = large("sparse", update_every=1, sparsity=sparsity)
    model(torch.randn(samples, 300)).square().sum().backward()
    window = optimizer._hooks.windows[id(optimizer.layers[0])]
    assert (factors_held(window.dense) is not None) == kept
    assert optimizer.products["0.weight"] == "sparse"
    assert not bool((model[0].weight.grad[~optimizer.masks["0.weight"]] != 0).any())


def test_a_gradient_is_a_multiple_only_if_the_smallest_entry_is() -> None:
    then, scale = torch.tensor([1.0, 1e-20, 0.0]), torch.tensor(0.3)
    assert is_multiple(then * 0.3, then, scale)
    for entry, value in ((1, 1e-20), (2, 1e-30), (0, math.nan)):
        now = then * 0.3
        now[entry] = value
        assert not is_multiple(now, then, scale)


def test_threads_that_ask_for_a_gradient_at_once_get_the_same() -> None:
    dense, together = factors_of(200, 300, 4).dense(), threading.Barrier(4)

    def asked(grad: Tensor) -> Tensor:
        together.wait()
        return grad.sum()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they meet
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(100):
                layer = lazy(factors_of(200, 300, 4))
                for one in pool.map(asked, [layer.gradient] * 4):
                    assert torch.equal(one, dense.sum())
    finally:
        sys.setswitchinterval(before)
