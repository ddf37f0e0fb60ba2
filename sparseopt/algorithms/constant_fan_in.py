"""SRigL: the same number of weights in every active neuron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import topologies
from ..distributions import Distribution, counts
from ..layers import Layer
from ..positions import count
from ..schedules import Cosine, Schedule, starting_at
from ..scores import Context, gradient
from ..select import choose, top_k
from ..shards import takes_shards, whole
from ..update import Levels, forbids, number_to_drop
from .algorithm import Algorithm
from .registry import Row, algorithm
from .rows import Rows, top_in_rows, worths

__all__ = ["srigl"]


@algorithm(
    "srigl",
    Row("smallest weight", "largest gradient, row by row", "constant", "erk, equal rows",
        "Lasby et al. 2024"),
)  # fmt: skip
def srigl(
    sparsity: float = 0.5,
    *,
    drop_fraction: float | Schedule = 0.3,
    stop: float = 0.75,
    gamma: float = 0.3,
    ablate: bool = True,
    fan_in: str = "dense",
    distribution: Distribution = "erk",
    topology: Any = None,
    **options: Any,
) -> Algorithm:
    """RigL with the same number of weights in every active neuron (SRigL).

    An update keeps the largest weights, removes neurons with too few salient weights (among the
    kept, or among the largest gradients), and fills each remaining neuron to the same number by
    gradient. A layer has at most its share of the distribution; what does not divide by the number
    of its neurons is left out. Removed neurons can come back.

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1); a little more through rounding.
        drop_fraction: Start of the cosine decay, or a schedule. 0.3, as in the paper.
        stop: Fraction of training after which the topology rests. 0.75, as in the paper.
        gamma: A neuron is removed with fewer salient weights than this fraction of its fan-in, at
            least 1. 0.3, as in the paper.
        ablate: Whether neurons are removed at all; those of the last layer never are.
        fan_in: Of what ``gamma`` is a fraction: the "dense" fan-in, or the "sparse" one.
        distribution: How the weights are shared out over the layers.
        topology: Where to start; None: equal rows at random.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For a ``gamma`` outside [0, 1], or an unknown ``fan_in``.

    Example:
        >>> srigl(0.9).distribution([(10, 15)], 0.9)
        [10]
    """
    return Algorithm(
        sparsity,
        distribution=EqualRows(distribution),
        topology=equal_rows if topology is None else topology,
        drop_fraction=starting_at(Cosine(0.3), drop_fraction),
        grow=gradient,
        exchange=ConstantFanIn(distribution, gamma, ablate, fan_in),
        stop=stop,
        **options,
    )


@dataclass(frozen=True)
class EqualRows:
    """A distribution in which every row of a layer has the same number of weights.

    With fewer weights than rows, a layer has one in as many rows.
    """

    base: Distribution = "erk"

    def __call__(self, shapes: Sequence[Sequence[int]], sparsity: float) -> list[int]:
        numbers = counts(self.base, shapes, 1.0 - sparsity)
        return [
            number // max(shape[0], 1) * shape[0] or number
            for number, shape in zip(numbers, shapes, strict=True)
        ]


@takes_shards
def equal_rows(layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
    """The same number of weights in every row at random; with fewer than rows, 1 in as many."""
    rows = layer.shape[0]
    if nnz >= rows:
        return topologies.constant_fan_in(layer, nnz, generator)
    alive = choose(torch.ones(rows, dtype=torch.bool), nnz, generator)
    one = topologies.constant_fan_in(layer, rows, generator)
    return one & alive.to(one.device).view(-1, *[1] * (one.ndim - 1))


@takes_shards
@dataclass(frozen=True)
class ConstantFanIn:
    """The exchange of SRigL.

    Attributes:
        base: How the weights are shared out over the layers: a layer's budget.
        gamma: Fraction of the fan-in that must be salient.
        ablate: Whether neurons are removed.
        fan_in: "dense" or "sparse".
    """

    base: Distribution = "erk"
    gamma: float = 0.3
    ablate: bool = True
    fan_in: str = "dense"

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma={self.gamma} must be in [0, 1]: a fraction of the fan-in")
        if self.fan_in not in ("dense", "sparse"):
            raise ValueError(f"fan_in={self.fan_in!r} is not one of 'dense', 'sparse'")

    def __call__(
        self,
        layers: Sequence[Layer],
        settled: Sequence[Tensor],
        algorithm: Algorithm,
        levels: Levels,
        context: Context,
    ) -> tuple[list[Tensor], list[Tensor]]:
        budgets = counts(self.base, [layer.shape for layer in layers], levels.density)
        kept, active = [], []
        for layer, budget in zip(layers, budgets, strict=True):
            number = number_to_drop(layer, layer.mask, algorithm, levels.fraction)
            last = len(layers) > 1 and layer is layers[-1]
            masks = (layer.mask, layer.mask)
            if number and not layer.dense:
                masks = self.rewired(layer, budget, number, last, algorithm, context)
            kept.append(masks[0])
            active.append(masks[1])
        return kept, active

    def rewired(
        self,
        layer: Layer,
        budget: int,
        dropped: int,
        last: bool,
        algorithm: Algorithm,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        """One layer's masks after its drop and after growth."""
        old = layer.mask.flatten(1)
        worth, growth = (value.flatten(1) for value in worths(layer, algorithm, context))
        worth = worth.masked_fill(~old, -math.inf)
        keep = min(layer.nnz - dropped, count(worth > 0))  # exact zeros are dropped first
        kept = top_k(worth, keep)
        salient = (kept | top_k(growth, dropped)).sum(1)
        alive = self.neurons(salient, budget, old, last)
        width = min(budget // max(count(alive), 1), old.shape[1])
        kept = top_in_rows(worth.masked_fill(~(kept & alive[:, None]), -math.inf), width)
        rows = Rows(old, kept, worth, growth, forbids(algorithm))
        kept, active = rows.filled(alive * width)
        return kept.view(layer.shape), active.view(layer.shape)

    def neurons(self, salient: Tensor, budget: int, old: Tensor, last: bool) -> Tensor:
        """Which neurons stay, by their numbers of salient weights."""
        rows, inputs = old.shape
        fan_in = inputs if self.fan_in == "dense" else int(whole(old.sum(1).max()))
        alive = salient >= max(1, math.floor(self.gamma * fan_in + 1e-9))
        if last or not self.ablate:
            alive = torch.ones_like(alive)
        # fewer could not hold the budget; more would have no weight each
        number = min(max(count(alive), math.ceil(budget / inputs)), budget, rows)
        return alive if number == count(alive) else top_k(salient.double(), number)
