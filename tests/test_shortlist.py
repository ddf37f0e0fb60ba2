"""Listing candidates first gives the choice of ranking them all."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparseopt import shortlist
from sparseopt.layers import Layer
from sparseopt.positions import positions
from sparseopt.ranking import best
from sparseopt.scores import Context, MagnitudeGradient, gradient, magnitude
from sparseopt.select import top_k
from sparseopt.shortlist import CHUNK, FEWEST, best_of_many

SHAPE = (300, 1000)  # more than two chunks, and no whole number of them


def layer_of(values: Tensor, density: float = 0.1) -> Layer:
    generator = torch.Generator().manual_seed(1)
    layer = Layer("w", torch.randn(values.shape, generator=generator).to(values.dtype), (0, 0))
    layer.set_mask(torch.rand(values.shape, generator=generator) < density)
    layer.gradient = values
    return layer


def ranked(score: object, layer: Layer, among: Tensor, k: int) -> Tensor:
    worth = score(layer, Context()).masked_fill(~among, -math.inf)  # type: ignore[operator]
    return top_k(worth, k)


def normal(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(dtype)


GRADIENTS: dict[str, Callable[[], Tensor]] = {
    "normal": normal,
    "double": lambda: normal(torch.float64),
    "bfloat16, so with many ties": lambda: normal(torch.bfloat16),
    "half": lambda: normal(torch.float16),
    "few distinct values": lambda: normal().mul(2).round(),
    "rows of very different size": lambda: normal() * torch.logspace(-3, 3, SHAPE[0])[:, None],
    "one large row": lambda: normal().index_fill_(0, torch.tensor([7]), 100.0),
    "ascending": lambda: torch.arange(float(SHAPE[0] * SHAPE[1])).view(SHAPE),
    "with infinities": lambda: normal().index_fill_(1, torch.tensor([3]), math.inf),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("k", [1, 50, 9_000, 60_000, 260_000])
def test_the_choice_is_that_of_ranking_all(kind: str, k: int) -> None:
    layer = layer_of(GRADIENTS[kind]())
    among = ~layer.mask
    for score in (gradient, magnitude, MagnitudeGradient()):
        expected = ranked(score, layer, among, k)
        assert torch.equal(best(layer, score, among, k, Context()), expected)
        listed = best_of_many(layer, score, among, k, Context())
        assert listed is None or torch.equal(listed, expected)


def test_ordinary_gradients_are_listed_rather_than_ranked() -> None:
    for kind in ("normal", "double", "rows of very different size"):
        layer = layer_of(GRADIENTS[kind]())
        assert best_of_many(layer, gradient, ~layer.mask, 9_000, Context()) is not None, kind


def test_where_the_sample_deceives_all_are_ranked(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = layer_of(normal())
    among = ~layer.mask
    for low, high in ((2.5, 3.0), (0.1, 0.2)):  # too high for 9000 of 270,000; too low
        monkeypatch.setattr(shortlist, "bracket", lambda *_, ends=(low, high): ends)
        assert best_of_many(layer, gradient, among, 9_000, Context()) is None
        chosen = best(layer, gradient, among, 9_000, Context())
        assert torch.equal(chosen, ranked(gradient, layer, among, 9_000))


def test_too_many_equal_scores_are_not_listed() -> None:
    layer = layer_of(torch.zeros(SHAPE))
    assert best_of_many(layer, gradient, ~layer.mask, 9_000, Context()) is None
    chosen = best(layer, gradient, ~layer.mask, 9_000, Context())
    assert positions(chosen).tolist() == positions(~layer.mask)[:9_000].tolist()


def test_nan_among_the_candidates_is_refused_and_elsewhere_ignored() -> None:
    layer = layer_of(normal())
    layer.gradient = layer.gradient.masked_fill(layer.mask, math.nan)
    assert int(best(layer, gradient, ~layer.mask, 9_000, Context()).sum()) == 9_000
    layer.gradient.view(-1)[positions(~layer.mask)[5]] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        best(layer, gradient, ~layer.mask, 9_000, Context())


def test_small_and_strided_layers_are_ranked_at_once() -> None:
    assert SHAPE[0] * SHAPE[1] >= FEWEST
    small = layer_of(torch.randn(100, 100))
    assert best_of_many(small, gradient, ~small.mask, 100, Context()) is None
    strided = layer_of(normal())
    strided.gradient = strided.gradient.t().contiguous().t()
    assert best_of_many(strided, gradient, ~strided.mask, 100, Context()) is None


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.0999, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("entries", [0, 7, CHUNK, CHUNK + 8, 3 * CHUNK + 13])
def test_positions_are_those_of_the_true_entries(density: float, entries: int) -> None:
    mask = torch.rand(entries, generator=torch.Generator().manual_seed(0)) < density
    if entries:
        mask[-1] = density > 0
    found = positions(mask)
    assert found.dtype == torch.int64
    assert torch.equal(found, mask.nonzero().view(-1))
