"""The basic recipes at constant density: static, SET, RigL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layers import Layer
from ..positions import count
from ..schedules import Constant, Cosine, Schedule, starting_at
from ..scores import Context, gradient, score
from ..shards import takes_shards
from ..update import drop_number
from .algorithm import Algorithm
from .registry import Row, algorithm

__all__ = ["rigl", "set", "static"]


@algorithm("static", Row("nothing", "nothing", "constant", "erk", "baseline"))
def static(sparsity: float = 0.5, **options: Any) -> Algorithm:
    """A random topology that stays as it is: the baseline of every comparison.

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Example:
        >>> static(0.9).due(100, 1000, 100)
        False
    """
    return Algorithm(sparsity, **options)


@algorithm("set", Row("smallest weight", "at random", "constant", "erk", "Mocanu et al. 2018"))
def set(
    sparsity: float = 0.5,
    *,
    drop_fraction: float | Schedule = 0.3,
    signed: bool = False,
    **options: Any,
) -> Algorithm:
    """Drop the smallest weights, grow as many at random (SET, Mocanu et al. 2018).

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        drop_fraction: Share of the active weights exchanged at an update, or a schedule of it.
            The paper's 0.3, constant, is the default; arXiv 2410.03030 uses ``Polynomial(0.1)``.
        signed: The original rule: the fraction is taken of the smallest positive and of the
            largest negative weights apart (active zeros count as positive). RigL's and ITOP's
            SET, like ours, rank by magnitude.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Example:
        >>> set(0.9, drop_fraction=0.1).drop_fraction
        Constant(value=0.1)
    """
    fraction = starting_at(Constant(0.3), drop_fraction)
    if signed:
        options |= {"drop": signed_rank, "drop_count": share_of_each_sign}
    return Algorithm(sparsity, drop_fraction=fraction, **options)


@algorithm(
    "rigl", Row("smallest weight", "largest gradient", "constant", "erk", "Evci et al. 2020")
)
def rigl(
    sparsity: float = 0.5,
    *,
    drop_fraction: float | Schedule = 0.3,
    stop: float = 0.75,
    **options: Any,
) -> Algorithm:
    """Drop the smallest weights, grow where the gradient is largest (RigL, Evci et al. 2020).

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        drop_fraction: Start of the cosine decay, or a schedule of your own. Default 0.3, the
            paper's section 4; arXiv 2410.03030 uses ``Polynomial(0.1)`` with ``stop=1.0``.
        stop: Fraction of training after which the topology rests. Default 0.75, as in the paper.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Example:
        >>> rigl(0.9).drop_fraction, rigl(0.9).needs_gradient
        (Cosine(start=0.3, end=0.0), True)
    """
    fraction = starting_at(Cosine(0.3), drop_fraction)
    return Algorithm(sparsity, drop_fraction=fraction, grow=gradient, stop=stop, **options)


@score()
def signed_rank(layer: Layer, context: Context) -> Tensor:
    """Rank of ``|w|`` among the active weights of the same sign, as a fraction in (0, 1]."""
    weight, rank = layer.weight.detach(), torch.zeros(layer.shape, dtype=torch.float64)
    rank = rank.to(weight.device)
    for side in (layer.mask & (weight < 0), layer.mask & (weight >= 0)):
        # the last of equals is the first to go, as everywhere: ties go to the lower position
        order = weight[side].abs().flip(0).argsort(stable=True).argsort().flip(0)
        rank[side] = (order.double() + 1) / max(len(order), 1)
    return rank


@takes_shards
def share_of_each_sign(layer: Layer, mask: Tensor, fraction: float, rounding: str) -> int:
    """The drop fraction of the negative weights and of the others, rounded apart."""
    negative = count(mask & (layer.weight.detach() < 0))
    return sum(
        drop_number(fraction, number, rounding) for number in (negative, count(mask) - negative)
    )
