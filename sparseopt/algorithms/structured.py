"""Structured sparsity: a constant fan-in (SRigL), and N of every M inputs."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import topologies
from ..distributions import Distribution, counts
from ..layers import Layer
from ..schedules import Cosine, Schedule, starting_at
from ..scores import Context, gradient
from ..select import choose, top_k
from ..update import Levels, count, drop_each, forbids
from .algorithm import Algorithm
from .registry import Row, algorithm

__all__ = ["nm", "srigl"]

Masks = tuple[list[Tensor], list[Tensor]]


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


@algorithm(
    "nm",
    Row("smallest weight", "largest gradient in the group", "constant", "N of every M inputs",
        "Mishra et al. 2021; Lasby et al. 2024"),
)  # fmt: skip
def nm(
    sparsity: float = 0.5,
    *,
    n: int | None = None,
    m: int = 4,
    drop_fraction: float | Schedule = 0.3,
    stop: float = 0.75,
    distribution: Any = "uniform",
    topology: Any = None,
    **options: Any,
) -> Algorithm:
    """RigL with N active weights in every group of M inputs, such as 2:4.

    Groups lie along the inputs; convolutions in NHWC order, a group being M input channels at one
    place of the kernel. The smallest weights of the layer are dropped, and each group grows as
    many as it lost, where the gradient is largest. Layers whose number of inputs does not divide
    by M stay dense: one warning names them. Rows are outputs as stored (a transposed convolution
    stores inputs first).

    Args:
        sparsity: ``1 - n / m``; it gives ``n`` where that is not said. 0.5 (2:4) by default.
        n: Active weights of a group, from 1 to ``m``.
        m: Weights of a group. 4 is what GPUs have.
        drop_fraction: Start of the cosine decay, or a schedule. 0.3, as for RigL.
        stop: Fraction of training after which the topology rests. 0.75, as for RigL.
        distribution: "uniform": every group is alike.
        topology: Where to start; None: at random in every group.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For ``n`` above ``m``, or a sparsity that is not ``1 - n / m``.

    Example:
        >>> nm(0.75).exchange, nm(n=1, m=8).sparsity
        (Groups(n=1, m=4), 0.875)
    """
    groups = Groups(active_of(n, m, sparsity), m)
    if distribution != "uniform":
        raise ValueError(f"distribution={distribution!r}: nm knows 'uniform' only, n of every m")
    return Algorithm(
        1.0 - groups.n / m, exchange=groups, grow=gradient, stop=stop,
        distribution=EqualGroups(groups),
        topology=topologies.n_of_m(groups.n, m) if topology is None else topology,
        drop_fraction=starting_at(Cosine(0.3), drop_fraction),
        **options,
    )  # fmt: skip


def active_of(n: int | None, m: int, sparsity: float) -> int:
    """The N of N:M, as given or from the sparsity."""
    for name, value in (("m", m), ("n", m if n is None else n)):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name}={value!r} must be a whole number")
    if m < 1:
        raise ValueError(f"m={m} must be at least 1: the size of a group")
    if n is not None and not 1 <= n <= m:
        raise ValueError(f"n={n} must be between 1 and m={m}: n of every m inputs are active")
    active = round((1.0 - sparsity) * m) if n is None else int(n)
    fits = active >= 1 and abs(1.0 - active / m - sparsity) < 1e-6
    if not fits and (n is None or sparsity != 0.5):  # 0.5 is what nobody has chosen
        raise ValueError(
            f"sparsity={sparsity} is not 1 - n/m for "
            + (
                f"a whole n of m={m}: pass n= and m="
                if n is None
                else f"n={n}, m={m}: leave it out"
            )
        )
    return active


# --- rows -----------------------------------------------------------------------------------------


def top_in_rows(score: Tensor, numbers: Tensor | int) -> Tensor:
    """The best entries of every row, as many as its number; ties by position, never ``-inf``.

    >>> top_in_rows(torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.3, 0.3, 0.3, 0.0]]), 2).int()
    tensor([[0, 1, 1, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank.scatter_(1, order, places)
    limit = numbers[:, None] if torch.is_tensor(numbers) else numbers
    return (rank < limit) & (score > -math.inf)


@dataclass
class Rows:
    """One layer as a matrix of rows to fill: masks and scores of that shape."""

    old: Tensor
    kept: Tensor
    worth: Tensor
    growth: Tensor
    forbid: bool

    def filled(self, numbers: Tensor | int) -> tuple[Tensor, Tensor]:
        """What is kept and what is active when every row has its number.

        Where regrowing is forbidden and a row lacks places, it takes back what it dropped.
        """
        free = ~(self.kept | self.old) if self.forbid else ~self.kept
        missing = numbers - self.kept.sum(1)
        grown = top_in_rows(self.growth.masked_fill(~free, -math.inf), missing)
        taken = self.kept | grown
        back = top_in_rows(self.worth.masked_fill(taken, -math.inf), numbers - taken.sum(1))
        return self.kept | back, taken | back


def worths(layer: Layer, algorithm: Algorithm, context: Context) -> tuple[Tensor, Tensor]:
    """Of a layer: what active weights are worth, and what places are worth for growth."""
    worth = algorithm.drop(layer, context)
    if algorithm.grow is not None:
        return worth, algorithm.grow(layer, context)
    chance = torch.rand(layer.shape, generator=context.generator(layer))
    return worth, chance.to(worth.device)


# --- constant fan-in ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EqualRows:
    """A distribution in which every row of a layer has the same number of weights.

    With fewer weights than rows, a layer has one in as many rows.
    """

    base: Distribution = "erk"

    def __call__(self, shapes: Sequence[Sequence[int]], sparsity: float) -> list[int]:
        numbers = counts(self.base, shapes, 1.0 - sparsity)
        return [
            number // shape[0] * shape[0] or number
            for number, shape in zip(numbers, shapes, strict=True)
        ]


def equal_rows(layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
    """The same number of weights in every row at random; with fewer than rows, 1 in as many."""
    rows = layer.shape[0]
    if nnz >= rows:
        return topologies.constant_fan_in(layer, nnz, generator)
    alive = choose(torch.ones(rows, dtype=torch.bool), nnz, generator)
    one = topologies.constant_fan_in(layer, rows, generator)
    return one & alive.to(one.device).view(-1, *[1] * (one.ndim - 1))


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
    ) -> Masks:
        budgets = counts(self.base, [layer.shape for layer in layers], levels.density)
        kept, active = [], []
        for layer, budget in zip(layers, budgets, strict=True):
            number = algorithm.drop_count(layer, layer.mask, levels.fraction, algorithm.rounding)
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
        fan_in = inputs if self.fan_in == "dense" else int(old.sum(1).max())
        alive = salient >= max(1, math.floor(self.gamma * fan_in + 1e-9))
        if last or not self.ablate:
            alive = torch.ones_like(alive)
        # fewer could not hold the budget; more would have no weight each
        number = min(max(count(alive), math.ceil(budget / inputs)), budget, rows)
        return alive if number == count(alive) else top_k(salient.double(), number)


# --- N of M ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Groups:
    """N of every M inputs: which layers fit, and the exchange within groups.

    Attributes:
        n: Active weights of a group.
        m: Weights of a group.
    """

    n: int
    m: int

    def fits(self, shape: Sequence[int]) -> bool:
        return shape[1] % self.m == 0

    def check(self, layers: Sequence[Layer]) -> None:
        """Warn once about layers that stay dense."""
        dense = [layer.name for layer in layers if not self.fits(layer.shape)]
        if dense and self.n < self.m:
            warnings.warn(
                f"nm: {', '.join(dense)} stay dense: their number of inputs does not divide by "
                f"m={self.m}",
                stacklevel=2,
            )

    def grouped(self, value: Tensor) -> Tensor:
        """A tensor of a weight's shape as rows of groups, inputs last (NHWC)."""
        return value.movedim(1, -1).reshape(-1, self.m)

    def ungrouped(self, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of ``grouped``."""
        inputs_last = (shape[0], *shape[2:], shape[1])
        return rows.view(inputs_last).movedim(-1, 1).contiguous()

    def __call__(
        self,
        layers: Sequence[Layer],
        settled: Sequence[Tensor],
        algorithm: Algorithm,
        levels: Levels,
        context: Context,
    ) -> Masks:
        low = drop_each(layers, settled, algorithm, levels, context)
        pairs = [
            self.refilled(layer, mask, algorithm, context)
            for layer, mask in zip(layers, low, strict=True)
        ]
        return [kept for kept, _ in pairs], [active for _, active in pairs]

    def refilled(
        self, layer: Layer, kept: Tensor, algorithm: Algorithm, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Every group brought back to N."""
        if layer.dense:
            return layer.mask, layer.mask
        worth, growth = worths(layer, algorithm, context)
        worth = worth.masked_fill(~layer.mask, -math.inf)
        old, kept, worth, growth = map(self.grouped, (layer.mask, kept, worth, growth))
        masks = Rows(old, kept, worth, growth, forbids(algorithm)).filled(self.n)
        low, active = (self.ungrouped(mask, layer.shape) for mask in masks)
        return low, active


@dataclass(frozen=True)
class EqualGroups:
    """A distribution: N of M weights, and all where the inputs do not fall into groups."""

    groups: Groups

    def __call__(self, shapes: Sequence[Sequence[int]], sparsity: float) -> list[int]:
        n, m = self.groups.n, self.groups.m
        if abs(1.0 - n / m - sparsity) > 1e-6:
            raise ValueError(f"sparsity={sparsity:g} is not 1 - n/m for n={n}, m={m} of algo='nm'")
        sizes = [math.prod(shape) for shape in shapes]
        return [
            size // m * n if self.groups.fits(shape) else size
            for size, shape in zip(sizes, shapes, strict=True)
        ]
