"""SNFS: weights move to the layers, and grow at the places, with the largest mean gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..distributions import hand_out
from ..layers import Layer
from ..positions import count
from ..schedules import Cosine, Schedule, starting_at
from ..scores import Context, score
from ..shards import end_to_end, local, takes_shards
from ..update import Levels, candidates, drop_each, grow_each, lacking
from .algorithm import Algorithm
from .registry import Row, algorithm

__all__ = ["snfs"]

AVERAGE = "dense_average"  # in Layer.extras: the running mean of the dense gradient


@algorithm(
    "snfs",
    Row("smallest weight", "largest mean gradient", "constant, layers differ", "erk",
        "Dettmers & Zettlemoyer 2019"),
)  # fmt: skip
def snfs(
    sparsity: float = 0.5,
    *,
    drop_fraction: float | Schedule = 0.5,
    beta: float = 0.9,
    **options: Any,
) -> Algorithm:
    """Drop the smallest weights, grow where momentum is largest, in any layer (sparse momentum).

    What all layers drop is shared out again in proportion to each layer's mean momentum of active
    weights: the network's total stays, the layers' counts do not. Momentum is a running mean of
    dense gradients of its own (one dense tensor per layer), since that of the inner optimizer sees
    active weights only. The authors' code steers counts that drift and spares nearly dense layers;
    exact counts need neither.

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        drop_fraction: Start of the cosine decay, or a schedule (``Linear(0.5)`` is the authors'
            other one). Default 0.5, as in their code.
        beta: How much of the mean is kept at every step, in [0, 1). Default 0.9, SGD's momentum in
            the paper.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For a ``beta`` outside [0, 1).

    Example:
        >>> snfs(0.9).drop_fraction
        Cosine(start=0.5, end=0.0)
    """
    if not 0.0 <= beta < 1.0:
        raise ValueError(f"beta={beta} must be in [0, 1): the share of the mean that is kept")
    return Algorithm(
        sparsity,
        drop_fraction=starting_at(Cosine(0.5), drop_fraction),
        grow=momentum,
        observe=MeanGradient(beta),
        exchange=redistribute,
        **options,
    )


@dataclass(frozen=True)
class MeanGradient:
    """Keeps a running mean of the dense gradient; entries that are not finite are left out."""

    beta: float

    def extras(self, layer: Layer) -> dict[str, Tensor]:
        """The mean before the first gradient."""
        return {AVERAGE: torch.zeros_like(layer.weight, requires_grad=False)}

    def __call__(self, layer: Layer) -> None:
        assert layer.gradient is not None
        gradient = layer.gradient.detach()
        mean = layer.extras.get(AVERAGE)
        if mean is None:
            mean = layer.extras[AVERAGE] = torch.zeros_like(gradient)
        mean.lerp_(torch.where(gradient.isfinite(), gradient, mean), 1.0 - self.beta)


@takes_shards
@score()
def momentum(layer: Layer, context: Context) -> Tensor:
    """Size of the running mean of the dense gradient; 0 before the first."""
    mean = layer.extras.get(AVERAGE)
    return torch.zeros(layer.shape, device=layer.weight.device) if mean is None else mean.abs()


@takes_shards
def redistribute(
    layers: Sequence[Layer],
    settled: Sequence[Tensor],
    algorithm: Algorithm,
    levels: Levels,
    context: Context,
) -> tuple[list[Tensor], list[Tensor]]:
    """Drop in every layer; share out what was dropped by each layer's mean momentum."""
    kept = drop_each(layers, settled, algorithm, levels, context)
    removed = lacking(layers, settled, kept)
    room = [count(candidates(*pair, algorithm)) for pair in zip(layers, kept, strict=True)]
    means = [
        mean_over(momentum(layer, context), mask)
        for layer, mask in zip(layers, settled, strict=True)
    ]
    # a layer that dropped all it had keeps one weight
    least = [int(not count(mask)) for mask in kept]
    rest = [space - one for space, one in zip(room, least, strict=True)]
    shared = apportion(means if any(means) else removed, sum(removed) - sum(least), rest)
    numbers = [one + more for one, more in zip(least, shared, strict=True)]
    return kept, grow_each(layers, kept, numbers, algorithm, context)


def mean_over(values: Tensor, mask: Tensor) -> float:
    """Mean of the values in the mask; 0 if there are none.

    The values of shards are brought together first: sums in another order would differ.
    """
    if not count(mask):
        return 0.0
    return float(end_to_end(local(values)[local(mask)], mask).double().mean())


def apportion(shares: Sequence[float], total: int, room: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the shares, none above its room, together ``total``.

    Largest remainders, ties to the earlier; what has no room goes one by one to the others.

    >>> apportion([0.3, 0.1], 8, [100, 100]), apportion([0.3, 0.1], 8, [4, 10])
    ([6, 2], [4, 4])
    """
    ideal = [share * total / (sum(shares) or 1.0) for share in shares]
    floors = [math.floor(amount + 1e-9) for amount in ideal]
    numbers = [min(pair) for pair in zip(floors, room, strict=True)]
    remainders = [round(amount - floor, 9) for amount, floor in zip(ideal, floors, strict=True)]
    hand_out(numbers, room, remainders, min(total, sum(room)) - sum(numbers))
    return numbers
