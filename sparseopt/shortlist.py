"""The best of very many candidates, without ranking them all.

A sample tells between which two values the k-th largest score lies, in all likelihood. One pass
over the entries, a chunk at a time that stays in the cache, takes those above and lists those
between; only the listed ones are ranked. The choice is that of :func:`sparseopt.select.top_k` among
all candidates: where the sample deceives, that shows in the counts, and all are ranked after all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .positions import true_entries
from .select import top_k
from .watched import values_of

if TYPE_CHECKING:
    from .layers import Layer
    from .scores import Context, Score

__all__ = ["best_of_many"]

FEWEST = 1 << 16  # entries of a layer; fewer are ranked at once
CHUNK = 1 << 18  # entries whose scores are looked at together
WINDOWS, WIDTH = 256, 128  # places that are sampled, and entries at each: neighbours are alike
SURE = 4.0  # standard deviations of the sample
MOST = 0.1  # of all entries may be listed; it does not pay to list more


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
    seen = SimpleNamespace(name=layer.name, weight=values_of(layer.weight), gradient=layer.gradient)
    low, high = bracket(seen, score, among, k, context)
    chosen = torch.empty_like(among)
    places, worths, listed, missing = [], [], 0, k
    for start in range(0, layer.numel, CHUNK):
        part = partial(stretch, start=start)
        worth = scores_at(seen, score, part, context)
        above = np.greater(worth, high, out=part(chosen).numpy())
        between = np.equal(worth < low, above)  # NaN too: the ranking will refuse it
        np.logical_and(above, part(among).numpy(), out=above)
        missing -= int(np.count_nonzero(above))
        found = true_entries(between)
        listed += len(found)
        if listed > MOST * layer.numel:
            return None
        worths.append(worth[found])
        places.append(found + start)
    place, worth = np.concatenate(places), np.concatenate(worths)
    candidates = among.view(-1).numpy()[place]
    place, worth = place[candidates], worth[candidates]
    if not 0 <= missing <= len(place):
        return None
    taken = top_k(torch.from_numpy(worth), missing).numpy()
    chosen.view(-1)[torch.from_numpy(np.compress(taken, place))] = True
    return chosen


def is_plain(layer: Layer, among: Tensor) -> bool:
    """Whether all that is read lies in the memory of this process in row-major order."""
    read = [layer.weight, among, layer.weight if layer.gradient is None else layer.gradient]
    return all(one.is_contiguous() and one.device.type == "cpu" for one in read)


def bracket(
    seen: SimpleNamespace, score: Score, among: Tensor, k: int, context: Context
) -> tuple[float, float]:
    """Two values between which a sample has the k-th largest score of the candidates."""
    worth = scores_at(seen, score, windows, context)
    candidates = windows(among).numpy()
    ranked = -np.compress(candidates.ravel(), worth)
    place = k * worth.size // among.numel()
    if place >= len(ranked):
        return -math.inf, math.inf
    ranked.partition(place)
    # how much the windows differ tells how far the sample may be off
    hits = np.count_nonzero((worth >= -ranked[place]) & candidates, axis=1)
    spread = SURE * math.sqrt(float(hits @ hits) - float(hits.sum()) ** 2 / WINDOWS)
    margin = math.ceil(spread) + 1
    return (
        -nth(ranked[place:], margin) if place + margin < len(ranked) else -math.inf,
        -nth(ranked[:place], place - margin) if place >= margin else math.inf,
    )


def nth(values: np.ndarray[Any, Any], place: int) -> float:
    """The value that sorting would bring to this place; the others change places."""
    values.partition(place)
    return float(values[place])


def stretch(values: Tensor, start: int) -> Tensor:
    """The entries of one chunk."""
    return values.view(-1)[start : start + CHUNK]


def windows(values: Tensor) -> Tensor:
    """The entries that are sampled: a row for each place, evenly spread."""
    between = values.numel() // WINDOWS
    return values.view(-1)[: between * WINDOWS].view(WINDOWS, between)[:, :WIDTH]


def scores_at(
    seen: SimpleNamespace, score: Score, part: Callable[[Tensor], Tensor], context: Context
) -> np.ndarray[Any, Any]:
    """What the entries in one part of what is seen of a layer are worth."""
    gradient = None if seen.gradient is None else part(seen.gradient)
    there = SimpleNamespace(name=seen.name, weight=part(seen.weight), gradient=gradient)
    worth = score(there, context)
    if worth.dtype not in (torch.float32, torch.float64):  # as the ranking does
        worth = worth.float() if worth.is_floating_point() else worth.double()
    return worth.detach().numpy()
