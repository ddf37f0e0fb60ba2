"""N:M: N active weights in every group of M inputs."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .. import topologies
from ..layers import Layer
from ..schedules import Cosine, Schedule, starting_at
from ..scores import Context, gradient
from ..shards import local, part_of, takes_shards
from ..update import Levels, drop_each, forbids
from .algorithm import Algorithm
from .registry import Row, algorithm
from .rows import Rows, worths

__all__ = ["nm"]


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
        topology: Where to start, with N of every M; None: at random in every group.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For ``n`` above ``m``, or a sparsity that is not ``1 - n / m``; when wrapping,
            for a topology with other groups.

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


@takes_shards
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

    def check_masks(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
        """Raise ValueError for a topology without N of every M: updates would not mend it."""
        for layer, mask in zip(layers, masks, strict=True):
            if self.fits(layer.shape) and bool((self.grouped(local(mask)).sum(1) != self.n).any()):
                raise ValueError(
                    f"topology= must have {self.n} active weights in every group of m={self.m} "
                    f"inputs, its mask of {layer.name!r} has not: leave topology= out"
                )

    def grouped(self, value: Tensor) -> Tensor:
        """A tensor of a weight's shape as rows of groups, inputs last (NHWC)."""
        return value.movedim(1, -1).reshape(value.numel() // self.m, self.m)

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
    ) -> tuple[list[Tensor], list[Tensor]]:
        low = drop_each(layers, settled, algorithm, levels, context)
        pairs = [
            self.refilled(layer, mask, algorithm, context)
            for layer, mask in zip(layers, low, strict=True)
        ]
        return [kept for kept, _ in pairs], [active for _, active in pairs]

    def refilled(
        self, layer: Layer, kept: Tensor, algorithm: Algorithm, context: Context
    ) -> tuple[Tensor, Tensor]:
        """Every group brought back to N; a group is a part of one row."""
        if layer.dense:
            return layer.mask, layer.mask
        worth, growth = worths(layer, algorithm, context)
        worth = worth.masked_fill(~layer.mask, -math.inf)
        old, kept, worth, growth = (
            self.grouped(local(value)) for value in (layer.mask, kept, worth, growth)
        )
        masks = Rows(old, kept, worth, growth, forbids(algorithm)).filled(self.n)
        shape = local(layer.mask).shape
        low, active = (part_of(self.ungrouped(mask, shape), layer.mask) for mask in masks)
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
