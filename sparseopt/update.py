"""One topology update: drop everywhere, then grow everywhere.

An update first settles every layer at the density that the schedule asks for (most recipes:
nothing to do), then exchanges weights: the worst are dropped in all layers, and only then are new
ones grown, because percolation and budgets look across layers. Nothing is written: the result is a
list of :class:`Change`, which the storage carries out. Masks of sharded layers are sharded too:
counts and choices are those of all processes together, the rest is done to the rows that are here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import distributions
from .gathered import seen_by
from .layers import Layer
from .positions import count
from .ranking import best, best_across, number_of, pick, prune_across
from .schedules import Constant
from .scores import Context
from .shards import takes_shards, whole

if TYPE_CHECKING:
    from .algorithms import Algorithm

__all__ = ["Change", "Levels", "plan"]


@dataclass(frozen=True)
class Levels:
    """What the schedules say at one update.

    Attributes:
        density: Fraction of weights active after the update.
        pruned: Fraction left by the drop, where the recipe fixes it (MEST); else None.
        fraction: Drop fraction: the share of active weights that is exchanged.
    """

    density: float
    pruned: float | None
    fraction: float


@dataclass(frozen=True)
class Change:
    """The new topology of one layer and how it differs from the old one.

    Attributes:
        layer: The layer, still with its old mask.
        mask: The new mask.
        nnz: How many weights are active in it.
        carried: Entries that were active and keep their weight and state where they stay active;
            the layer's own mask, where all do, so that it is read before the layer changes.
        lasting: Which of the weights at ``layer.index`` are active in the new mask; None where
            positions are not known.
        dropped: How many active weights lost their place.
        grown: How many places were filled, those just dropped included.
        regrown: How many of the grown were among the dropped.
    """

    layer: Layer
    mask: Tensor
    nnz: int
    carried: Tensor
    lasting: Tensor | None
    dropped: int
    grown: int
    regrown: int

    @property
    def fresh(self) -> Tensor:
        """Active entries that start again: weight zero, neutral optimizer state."""
        return self.mask > self.carried


def plan(
    layers: Sequence[Layer], algorithm: Algorithm, levels: Levels, context: Context
) -> list[Change]:
    """The changes that one update makes, drop before growth, without making them."""
    settled = settle(layers, algorithm, levels, context)
    kept, active = algorithm.exchange(layers, settled, algorithm, levels, context)
    return [
        change(layer, masks, algorithm.regrow_same == "reset")
        for layer, *masks in zip(layers, settled, kept, active, strict=True)
    ]


def change(layer: Layer, masks: Sequence[Tensor], reset: bool) -> Change:
    """Compare the topology before an update with its stages: settled, kept by the drop, active."""
    settled, kept, active = masks
    # pruned by the first stage and grown by the second: new, even though it was active before
    carried = kept if reset else settled
    if carried is not layer.mask:  # the stages may have grown weights too
        carried = carried & layer.mask
    before, after = of_active(layer, kept), of_active(layer, active)
    left, nnz = count(before), count(active)
    return Change(
        layer=layer,
        mask=active,
        nnz=nnz,
        carried=carried,
        lasting=None if layer.index is None else after,
        dropped=layer.nnz - left,
        grown=nnz - left,
        regrown=count(after > before),
    )


def of_active(layer: Layer, mask: Tensor) -> Tensor:
    """What ``mask`` says of the active weights: alone where their positions are known."""
    return mask & layer.mask if layer.index is None else pick(mask, layer.index)


def settle(
    layers: Sequence[Layer], algorithm: Algorithm, levels: Levels, context: Context
) -> list[Tensor]:
    """Prune or grow every layer to the density of the schedule."""
    if isinstance(algorithm.density, Constant):
        return [layer.mask for layer in layers]
    if levels.density >= 1.0:
        return [torch.ones_like(layer.mask) for layer in layers]
    if algorithm.settle_scope == "global":
        total = min(budget(layers, levels.density), sum(layer.nnz for layer in layers))
        return prune_across(layers, algorithm.drop, total, context)
    wanted = counts(layers, algorithm, levels.density)
    return [
        best(layer, algorithm.drop, layer.mask, number, context)
        for layer, number in zip(layers, wanted, strict=True)
    ]


@takes_shards
def exchange(
    layers: Sequence[Layer],
    settled: Sequence[Tensor],
    algorithm: Algorithm,
    levels: Levels,
    context: Context,
) -> tuple[list[Tensor], list[Tensor]]:
    """Drop the worst weights in all layers, then grow as many new ones.

    Returns:
        The masks of what the drop kept, and those of what is active after growth.
    """
    if algorithm.scope == "global":
        return exchange_across(layers, settled, algorithm, levels, context)
    kept = drop_each(layers, settled, algorithm, levels, context)
    return kept, grow_each(layers, kept, lacking(layers, settled, kept), algorithm, context)


def drop_each(
    layers: Sequence[Layer],
    settled: Sequence[Tensor],
    algorithm: Algorithm,
    levels: Levels,
    context: Context,
) -> list[Tensor]:
    """What is kept when each layer drops its share, no more than it has room to grow again."""
    high = [number_of(*pair) for pair in zip(layers, settled, strict=True)]
    free = [layer.numel - (layer.nnz if forbids(algorithm) else 0) for layer in layers]
    low = [
        max(number, top - room)
        for number, top, room in zip(
            lows(layers, settled, algorithm, levels), high, free, strict=True
        )
    ]
    return [
        best(at_stage(layer, mask), algorithm.drop, mask, number, context,
             algorithm.drop_select, "drop")
        for layer, mask, number in zip(layers, settled, low, strict=True)
    ]  # fmt: skip


def grow_each(
    layers: Sequence[Layer],
    kept: Sequence[Tensor],
    numbers: Sequence[int],
    algorithm: Algorithm,
    context: Context,
) -> list[Tensor]:
    """The kept weights of each layer and its number of new ones."""
    return [
        mask | best(at_stage(layer, mask), algorithm.grow, candidates(layer, mask, algorithm),
                    number, context, algorithm.grow_select)
        for layer, mask, number in zip(layers, kept, numbers, strict=True)
    ]  # fmt: skip


def lacking(
    layers: Sequence[Layer], settled: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[int]:
    """How many weights each layer must grow to have as many as before the drop."""
    return [
        number_of(layer, before) - count(after)
        for layer, before, after in zip(layers, settled, kept, strict=True)
    ]


def at_stage(layer: Layer, mask: Tensor) -> Layer:
    """The layer as scores see it between drop and growth: with the mask of that stage."""
    if mask is layer.mask:
        return layer
    seen = copy.copy(layer)
    seen.mask, seen.index, seen.values = mask, None, None
    seen.__dict__.pop("nnz", None)  # counted if a score asks for it
    return seen


def exchange_across(
    layers: Sequence[Layer],
    settled: Sequence[Tensor],
    algorithm: Algorithm,
    levels: Levels,
    context: Context,
) -> tuple[list[Tensor], list[Tensor]]:
    """The same with one ranking over all layers: the total is kept, the layers' counts are not."""
    open_to = [
        layer.mask if forbids(algorithm) else torch.zeros_like(layer.mask) for layer in layers
    ]
    high = sum(count(mask) for mask in settled)
    free = size(layers) - sum(count(mask) for mask in open_to)
    low = high - drop_number(levels.fraction, high, algorithm.rounding)
    if levels.pruned is not None:
        low = min(low, budget(layers, levels.pruned))
    low = max(low, high - free, fewest(layers))
    kept = prune_across(layers, algorithm.drop, low, context, settled)
    among = [candidates(layer, mask, algorithm) for layer, mask in zip(layers, kept, strict=True)]
    wanted = high - sum(count(mask) for mask in kept)
    seen = [at_stage(layer, mask) for layer, mask in zip(layers, kept, strict=True)]
    grown = best_across(seen, algorithm.grow, among, wanted, context)
    return kept, [mask | new for mask, new in zip(kept, grown, strict=True)]


def lows(
    layers: Sequence[Layer], settled: Sequence[Tensor], algorithm: Algorithm, levels: Levels
) -> list[int]:
    """How many weights each layer keeps in the drop."""
    low = [
        number_of(layer, mask) - number_to_drop(layer, mask, algorithm, levels.fraction)
        for layer, mask in zip(layers, settled, strict=True)
    ]
    if levels.pruned is None:
        return low
    target = counts(layers, algorithm, levels.pruned, [count(mask) for mask in settled])
    return [min(pair) for pair in zip(low, target, strict=True)]


def number_to_drop(layer: Layer, mask: Tensor, algorithm: Algorithm, fraction: float) -> int:
    """How many of the weights in the mask the recipe drops."""
    seen = seen_by(algorithm.drop_count, layer)
    mask = mask if seen is layer else whole(mask)
    return algorithm.drop_count(seen, mask, fraction, algorithm.rounding)


def candidates(layer: Layer, kept: Tensor, algorithm: Algorithm) -> Tensor:
    """Where weights may grow: all places not kept, or only those that were inactive before."""
    return ~(kept | layer.mask) if forbids(algorithm) else ~kept


def forbids(algorithm: Algorithm) -> bool:
    return algorithm.regrow_same == "forbid"


def drop_number(fraction: float, number: int, rounding: str) -> int:
    """``fraction`` of ``number`` as a whole number, rounded down or up.

    >>> drop_number(0.29, 100, "floor"), drop_number(0.1, 9, "floor"), drop_number(0.1, 9, "ceil")
    (29, 0, 1)
    """
    if rounding == "ceil":
        return min(number, math.ceil(fraction * number - 1e-9))
    return min(number, math.floor(fraction * number + 1e-9))


@takes_shards
def share_of_active(layer: Layer, mask: Tensor, fraction: float, rounding: str) -> int:
    """The usual number to drop: the drop fraction of the active weights."""
    return drop_number(fraction, number_of(layer, mask), rounding)


def counts(
    layers: Sequence[Layer],
    algorithm: Algorithm,
    density: float,
    caps: Sequence[int] | None = None,
) -> list[int]:
    """Active weights per layer at a density; no layer grows while the total shrinks."""
    shapes = [layer.shape for layer in layers]
    caps = [layer.nnz for layer in layers] if caps is None else caps
    return distributions.counts(algorithm.distribution, shapes, min(1.0, density), caps)


def budget(layers: Sequence[Layer], density: float) -> int:
    """Active weights of all layers together at a density, at least one each."""
    # 1e-9: (1 - 0.9) * 15 must not fall short of 1.5 by the last digit
    return max(fewest(layers), math.floor(density * size(layers) + 0.5 + 1e-9))


def fewest(layers: Sequence[Layer]) -> int:
    """One active weight in every layer that has any."""
    return sum(layer.numel > 0 for layer in layers)


def size(layers: Sequence[Layer]) -> int:
    return sum(layer.numel for layer in layers)
