"""MEST: updates that go above the target density, or below it, by a bound that shrinks."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from ..schedules import Constant, Polynomial, Scaled, Schedule, starting_at
from ..scores import MagnitudeGradient, Score, gradient, magnitude
from .algorithm import Algorithm, target_density
from .registry import Row, algorithm

__all__ = ["mest_g", "mest_r"]

MEMORY_BOUND = "target + bound, shrinking to the target"


@algorithm(
    "mest_r",
    Row("smallest weight + lambda gradient", "at random", MEMORY_BOUND, "erk", "Yuan et al. 2021"),
)
def mest_r(
    sparsity: float = 0.5,
    *,
    bound: float | Schedule = 0.1,
    gradient_weight: float = 0.01,
    variant: str = "em_s",
    drop: str = "to_target",
    drop_fraction: float | Schedule | None = None,
    **options: Any,
) -> Algorithm:
    """Prune to the target, grow above it at random (MEST with a soft memory bound, EM&S).

    Every update keeps the best weights by ``|w| + lambda |g|``, exactly as many as the target asks
    for, and grows until the density is ``target * (1 + bound)``. The bound decays to zero, and the
    last update prunes without growing: the trained network has exactly the target count.

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        bound: Excess over the target density, relative to it: where ``(1 - progress) ** 0.01``
            starts, or a schedule. 0.1 is arXiv 2410.03030's (its 0.92 for a target of 0.9 is
            ``bound=0.02 / 0.9``); the MEST scripts let 0.5 fall to 0.25 and 0 in steps.
        gradient_weight: The lambda of the score, at least 0. The released MEST code has 0, CHT's
            port of it 0.01, which is ours; ``|g|`` is that of the step just taken.
        variant: "em_s", the soft bound above the target; "em", elastic mutation: the drop goes
            below the target by ``bound`` and growth comes back to it.
        drop: "to_target", as said above; "fraction": an update drops ``drop_fraction`` of the
            active weights, or more where the target asks for it (another reading of the paper).
        drop_fraction: With "fraction", the share to drop (default 0.1, decaying like the bound);
            with "to_target", how far below the target the drop goes besides.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For an unknown ``variant`` or ``drop``, or a number out of range.

    Example:
        >>> round(mest_r(0.7).density(0.0), 4), round(mest_r(0.7).density(1.0), 4)
        (0.33, 0.3)
    """
    return Algorithm(
        sparsity,
        drop=worth(gradient_weight),
        settle_scope=options.get("scope", "layer"),
        **densities(sparsity, bound, variant, drop, drop_fraction),
        **options,
    )


@algorithm(
    "mest_g",
    Row("smallest weight + lambda gradient", "largest gradient", MEMORY_BOUND, "erk",
        "Yuan et al. 2021; arXiv 2410.03030"),
    options_of=mest_r,
)  # fmt: skip
def mest_g(sparsity: float = 0.5, **options: Any) -> Algorithm:
    """MEST that grows where the gradient is largest, as in arXiv 2410.03030.

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        **options: Options of :func:`mest_r`.

    Example:
        >>> mest_g(0.7, bound=0.2).grow is gradient
        True
    """
    return dataclasses.replace(mest_r(sparsity, **options), grow=gradient)


def worth(gradient_weight: float) -> Score:
    """``|w| + gradient_weight * |g|``; without gradients where they do not count."""
    number = isinstance(gradient_weight, numbers.Real) and not isinstance(gradient_weight, bool)
    if not number or not 0.0 <= gradient_weight < float("inf"):
        raise ValueError(f"gradient_weight={gradient_weight!r} must be a number of at least 0")
    return MagnitudeGradient(float(gradient_weight)) if gradient_weight else magnitude


def densities(
    sparsity: float,
    bound: float | Schedule,
    variant: str,
    drop: str,
    drop_fraction: float | Schedule | None,
) -> dict[str, Any]:
    """The two densities of an update, after the drop and after growth, as fields of Algorithm."""
    for name, given, known in (
        ("variant", variant, ("em_s", "em")),
        ("drop", drop, ("to_target", "fraction")),
    ):
        if given not in known:
            raise ValueError(f"{name}={given!r} is not one of {', '.join(map(repr, known))}")
    target = target_density(sparsity)
    excess = starting_at(Polynomial(0.1), bound, "bound")
    if not 0.0 <= excess(0.0) <= 1.0:
        raise ValueError(f"bound={bound!r} must be in [0, 1]: an excess relative to the target")
    above = Constant(target) if variant == "em" else Scaled(excess, target, target)
    if drop == "fraction":
        share = starting_at(Polynomial(0.1), 0.1 if drop_fraction is None else drop_fraction)
        return {"density": above, "pruned_density": Constant(target), "drop_fraction": share}
    dip: Schedule = excess if variant == "em" else Constant(0.0)
    if drop_fraction is not None:
        dip = starting_at(Polynomial(0.1), drop_fraction)
    if not 0.0 <= dip(0.0) < 1.0:
        name, value = ("bound", bound) if drop_fraction is None else ("drop_fraction", dip(0.0))
        raise ValueError(f"{name}={value} must be in [0, 1): the drop goes below the target by it")
    return {"density": above, "pruned_density": Scaled(dip, -target, target)}
