"""The best of very many candidates, without ranking them all.

A sample tells between which two values the k-th largest score lies, in all likelihood. One pass
over the entries, a chunk at a time that stays in the cache, takes those above and lists those
between; only the listed ones are ranked. The choice is that of :func:`sparseopt.select.top_k` among
all candidates: where the sample deceives, that shows in the counts, and all are ranked after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .positions import true_entries
from .scores import gradient as magnitude_of_gradient
from .select import top_k
from .storage.active_gradient import factors_of
from .watched import values_of

if TYPE_CHECKING:
    from .layers import Layer
    from .scores import Context, Score
    from .storage.factors import Factors

__all__ = ["best_of_many"]

FEWEST = 1 << 16  # entries of a layer; fewer are ranked at once
CHUNK = 1 << 18  # entries whose scores are looked at together
WINDOWS, WIDTH = 256, 128  # places that are sampled, and entries at each: neighbours are alike
SURE = 4.0  # standard deviations of the sample
FEW = 0.02  # of all entries: so many are listed whole, in one comparison
MOST = 0.1  # may be listed; it does not pay to list more


def best_of_many(
    layer: Layer, score: Score, among: Tensor, k: int, context: Context
) -> Tensor | None:
    """The ``k`` candidates that are worth most; among equals the lower position wins.

    Args:
        layer: Where they are; its gradient may be None.
        score: Element-wise.
        among: Bool tensor of the weight's shape, true for the candidates.
        k: How many, fewer than there are candidates.
        context: Handed to the score.

    Returns:
        A bool tensor of the weight's shape; None where this does not pay, or the sample deceived.

    Raises:
        ValueError: If NaN is among the listed scores.
    """
    if layer.numel < FEWEST or not is_plain(layer, among):
        return None
    low, high = bracket(layer, score, among, k, context)
    few = high == math.inf
    chosen = torch.zeros_like(among) if few else torch.empty_like(among)
    places, worths, listed, missing = [], [], 0, k
    for part, locate in pieces(layer, score, low, few):
        worth = scores_at(layer, score, part, context)
        less = worth < low  # not NaN: it is listed, and the ranking will refuse it
        if few:
            found = true_entries(np.logical_not(less, out=less))
        else:
            above = np.greater(worth, high, out=part(chosen).numpy())
            found = true_entries(np.equal(less, above))
            np.logical_and(above, part(among).numpy(), out=above)
            missing -= int(np.count_nonzero(above))
        listed += len(found)
        if listed > MOST * layer.numel:
            return None
        worths.append(worth[found])
        places.append(locate(found))
    if not places:
        return None
    place, worth = np.concatenate(places), np.concatenate(worths)
    candidates = among.view(-1).numpy()[place]
    place, worth = place[candidates], worth[candidates]
    if not 0 <= missing <= len(place):
        return None
    taken = top_k(torch.from_numpy(worth), missing).numpy()
    chosen.view(-1).index_fill_(0, torch.from_numpy(np.compress(taken, place)), True)
    return chosen


def is_plain(layer: Layer, among: Tensor) -> bool:
    """Whether all that is read lies in the memory of this process in row-major order."""
    read = [layer.weight, among, layer.weight if layer.gradient is None else layer.gradient]
    return all(one.is_contiguous() and one.device.type == "cpu" for one in read)


def bracket(
    layer: Layer, score: Score, among: Tensor, k: int, context: Context
) -> tuple[float, float]:
    """Two values between which a sample has the k-th largest score of the candidates.

    The upper one is infinite where all above the lower one are few.
    """
    sampled = sampler(layer.gradient)
    worth = scores_at(layer, score, sampled, context)
    candidates = sampled(among).numpy()
    ranked = -np.compress(candidates.ravel(), worth)
    place = k * worth.size // among.numel()
    if place >= len(ranked):
        return -math.inf, math.inf
    ranked.partition(place)
    # how much the windows differ tells how far the sample may be off
    hits = np.count_nonzero((worth >= -ranked[place]) & candidates, axis=1)
    spread = SURE * math.sqrt(float(hits @ hits) - float(hits.sum()) ** 2 / WINDOWS)
    margin = math.ceil(spread) + 1
    many = k > FEW * among.numel() and place >= margin
    return (
        -nth(ranked[place:], margin) if place + margin < len(ranked) else -math.inf,
        -nth(ranked[:place], place - margin) if many else math.inf,
    )


def nth(values: np.ndarray[Any, Any], place: int) -> float:
    """The value that sorting would bring to this place; the others change places."""
    values.partition(place)
    return float(values[place])


Piece = tuple[Callable[[Tensor], Tensor], Callable[["np.ndarray[Any, Any]"], Any]]
"""What takes its entries out of a tensor of the layer's shape; where in the layer they lie."""


def pieces(layer: Layer, score: Score, low: float, few: bool) -> Iterator[Piece]:
    """All entries that may be worth ``low``, in row-major order, a chunk at a time."""
    factors = factors_of(layer.gradient)
    if factors is not None and few and score is magnitude_of_gradient:
        yield from crossings(factors, low)
        return
    row = layer.numel // layer.shape[0]
    height = max(1, CHUNK // row)
    for first in range(0, layer.shape[0], height):
        yield partial(stretch, first, first + height, row), partial(np.add, first * row)


def stretch(first: int, last: int, row: int, values: Tensor) -> Tensor:
    """Some rows of a tensor, one after another."""
    factors = factors_of(values)
    if factors is None:
        return values.view(-1)[first * row : last * row]
    return factors.rows(first, last).view(-1)


def crossings(factors: Factors, low: float) -> Iterator[Piece]:
    """The same of a gradient, without the rows and columns in which none can be so large."""
    rows, columns = factors.reaching(low)
    few, width = factors.at(rows, columns), len(factors.inputs)
    height = CHUNK // max(1, len(columns)) + 1

    def crossing(first: int, _: Tensor) -> Tensor:
        return few.rows(first, first + height).view(-1)

    def locate(first: int, found: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        down = found // len(columns)
        across = found - down * len(columns)
        return rows.numpy()[first + down] * width + columns.numpy()[across]

    for first in range(0, len(rows), height):
        yield partial(crossing, first), partial(locate, first)


def sampler(gradient: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What gives the sampled entries of a tensor of the layer's shape, a row for each place."""
    factors = factors_of(gradient)
    if factors is None:
        return windows
    found, places = factors.windows(WINDOWS, WIDTH)
    flat = places.view(-1)

    def sampled(values: Tensor) -> Tensor:
        if values is gradient:
            return found
        return values.view(-1).index_select(0, flat).view(places.shape)

    return sampled


def windows(values: Tensor) -> Tensor:
    """Entries that are evenly spread, as a view."""
    between = values.numel() // WINDOWS
    return values.view(-1)[: between * WINDOWS].view(WINDOWS, between)[:, :WIDTH]


def scores_at(
    layer: Layer, score: Score, part: Callable[[Tensor], Tensor], context: Context
) -> np.ndarray[Any, Any]:
    """What the entries in one part of a layer are worth."""
    worth = score(Part(layer, part), context)
    if worth.dtype not in (torch.float32, torch.float64):  # as the ranking does
        worth = worth.float() if worth.is_floating_point() else worth.double()
    return worth.detach().numpy()


class Part:
    """What an element-wise score sees of a layer; only what it reads is taken out."""

    def __init__(self, layer: Layer, part: Callable[[Tensor], Tensor]) -> None:
        self.name, self.layer, self.part = layer.name, layer, part

    @cached_property
    def weight(self) -> Tensor:
        return self.part(values_of(self.layer.weight))

    @cached_property
    def gradient(self) -> Tensor | None:
        gradient = self.layer.gradient
        return None if gradient is None else self.part(gradient)
