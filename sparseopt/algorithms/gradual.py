"""Densities that fall over training: gradual magnitude pruning, and GraNet, which also regrows."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any

from ..schedules import Cubic, Polynomial, Schedule, Sigmoid, starting_at
from ..scores import gradient
from .algorithm import Algorithm, target_density
from .registry import Row, algorithm

__all__ = ["gmp", "granet_g", "granet_r"]

CUBIC = "0.8 to the target, cubic"


@algorithm(
    "granet_r",
    Row("smallest weight, over all layers under erk", "at random", CUBIC, "erk",
        "Liu et al. 2021; arXiv 2410.03030"),
)  # fmt: skip
def granet_r(
    sparsity: float = 0.5,
    *,
    initial_density: float | None = None,
    window: float = 0.5,
    start: float = 0.0,
    drop_fraction: float | Schedule = 0.1,
    scope: str | None = None,
    **options: Any,
) -> Algorithm:
    """Prune gradually to the target, and at every update exchange weights at random (GraNet).

    An update prunes by magnitude to the density of the cubic schedule, then drops the smallest
    weights of every layer and grows as many. A weight pruned and regrown at once starts anew.

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        initial_density: Density at the start, from the target to 1. Default 0.8, as in arXiv
            2410.03030; for targets above that, halfway to dense (its 0.95 for 0.9). The GraNet
            code has 0.5.
        window: Fraction of training that the pruning takes; half, as in arXiv 2410.03030. The
            GraNet code prunes for 110 of 160 epochs.
        start: Fraction of training at which pruning starts.
        drop_fraction: Start of the share exchanged, decaying as ``(1 - progress) ** 0.01``, or a
            schedule. 0.1 as in arXiv 2410.03030; the GraNet code has ``Cosine(0.5, 0.005)``.
        scope: "layer" prunes every layer to its share of the distribution; "global" ranks all
            layers together, and leaves each at least one weight. Default: "layer" under the
            uniform distribution, "global" under the others.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For an initial density below the target, or a window that is not within
            training.

    Example:
        >>> round(granet_r(0.7).density(0.25), 4)  # halfway through the window
        0.3625
    """
    density = falling(Cubic, sparsity, initial_density, 0.8, start, window)
    return Algorithm(
        sparsity,
        density=density,
        drop_fraction=starting_at(Polynomial(0.1), drop_fraction),
        settle_scope=pruning_scope(scope, options),
        start=start,
        **options,
    )


@algorithm(
    "granet_g",
    Row("smallest weight, over all layers under erk", "largest gradient", CUBIC, "erk",
        "Liu et al. 2021"),
    options_of=granet_r,
)  # fmt: skip
def granet_g(sparsity: float = 0.5, **options: Any) -> Algorithm:
    """GraNet that grows where the gradient is largest, as its authors do on CIFAR.

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        **options: Options of :func:`granet_r`.

    Example:
        >>> granet_g(0.9, distribution="uniform").settle_scope
        'layer'
    """
    return dataclasses.replace(granet_r(sparsity, **options), grow=gradient)


@algorithm(
    "gmp",
    Row("smallest weight", "nothing", "1 to the target, cubic", "uniform", "Zhu & Gupta 2018"),
)
def gmp(
    sparsity: float = 0.5,
    *,
    initial_density: float = 1.0,
    window: float = 0.5,
    start: float = 0.0,
    scope: str | None = None,
    distribution: Any = "uniform",
    **options: Any,
) -> Algorithm:
    """Start dense, prune the smallest weights gradually, grow nothing (gradual pruning).

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        initial_density: Density at the start, from the target to 1. Default 1: dense.
        window: Fraction of training that the pruning takes. The paper leaves it to the task; half
            is GraNet's in arXiv 2410.03030, so that the two differ in regrowth alone.
        start: Fraction of training at which pruning starts.
        scope: "layer" or "global", as in :func:`granet_r`.
        distribution: Every layer alike by default, as in the paper.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For an initial density below the target, or a window that is not within
            training.

    Example:
        >>> gmp(0.9).density
        Cubic(initial=1.0, final=0.1, start=0.0, stop=0.5)
    """
    options = {"distribution": distribution, **options}
    density = falling(Cubic, sparsity, initial_density, 1.0, start, window)
    settle_scope = pruning_scope(scope, options)
    return Algorithm(sparsity, density=density, settle_scope=settle_scope, start=start, **options)


def falling(
    curve: type[Cubic] | type[Sigmoid],
    sparsity: float,
    initial: float | None,
    usual: float,
    start: float,
    window: float,
) -> Schedule:
    """The curve from the initial density to the target, over a window of training.

    >>> falling(Cubic, 0.1, None, 0.8, start=0.0, window=0.5).initial
    0.95
    """
    target = target_density(sparsity)
    if initial is None:
        initial = usual if usual > target else (1.0 + target) / 2.0
    for name, value in (("initial_density", initial), ("window", window), ("start", start)):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name}={value!r} must be a number in [0, 1]")
    if not target <= initial <= 1.0:
        raise ValueError(
            f"initial_density={initial} must lie between the target density {target:g} "
            f"(sparsity={sparsity}) and 1: the density only falls"
        )
    if not 0.0 < window <= 1.0 - start + 1e-9 or start < 0.0:
        raise ValueError(
            f"window={window} from start={start} must be a fraction of training above 0 that ends "
            "by 1"
        )
    return curve(float(initial), target, start=start, stop=min(1.0, start + window))


def pruning_scope(scope: str | None, options: dict[str, Any]) -> str:
    """Layer by layer under the uniform distribution, over all layers under the others."""
    if scope is None:
        return "layer" if options.get("distribution", "erk") == "uniform" else "global"
    if scope not in ("layer", "global"):
        raise ValueError(f"scope={scope!r} is not one of 'layer', 'global'")
    return scope
