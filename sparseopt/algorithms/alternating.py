"""AC/DC: dense and sparse phases by turns, ending sparse."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

from ..schedules import Phases
from .algorithm import Algorithm, target_density
from .registry import Row, algorithm

__all__ = ["acdc"]


@algorithm(
    "acdc",
    Row("smallest weight over all layers", "all, at zero", "dense and sparse phases",
        "what the ranking leaves", "Peste et al. 2021"),
)  # fmt: skip
def acdc(
    sparsity: float = 0.5,
    *,
    warmup: float = 0.10,
    sparse: float = 0.05,
    dense: float = 0.05,
    final_dense_start: float | None = 0.75,
    final_sparse_start: float = 0.85,
    scope: str = "global",
    reset_state: bool = True,
    keep_dense: bool = False,
    total_steps: int | None = None,
    **options: Any,
) -> Algorithm:
    """Train dense and sparse by turns; the last phase is sparse (AC/DC).

    At the start of a sparse phase the largest weights of the whole network are kept, exactly as
    many as the target asks for. At the start of a dense phase the others come back at zero and
    all optimizer state is forgotten. Nothing is masked in dense phases.

    Lengths and starts are fractions of training (floats), or optimizer steps (integers, which ask
    for ``total_steps``). The defaults are the paper's ImageNet schedule of 100 epochs; its
    CIFAR-100 schedule is ``warmup=0.05, sparse=0.1, dense=0.1``.

    Args:
        sparsity: Fraction of weights that are zero in sparse phases, in [0, 1).
        warmup: Length of the first dense phase.
        sparse: Length of a sparse phase.
        dense: Length of a dense phase.
        final_dense_start: When the last dense phase starts, which may be longer than the others.
            None: the turns go on until the last sparse phase.
        final_sparse_start: When the last sparse phase starts; it lasts to the end.
        scope: "global" ranks the weights of all layers together, as the paper does, and leaves
            each layer at least one; "layer" prunes each to its share of the distribution.
        reset_state: Forget all optimizer state when the network becomes dense, as all the
            released scripts do (momentum there).
        keep_dense: Keep a copy of the dense model from before each compression:
            ``optimizer.dense_parameters``.
        total_steps: Filled in by SparseOptimizer.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        ValueError: For phases that overlap, have no step, or end dense.

    Example:
        >>> acdc(0.9).density.events(total_steps=100)[:4], acdc(0.9).density(1.0)
        ((10, 15, 20, 25), 0.1)
    """
    lengths = (warmup, sparse, dense, final_dense_start, final_sparse_start)
    return Algorithm(
        sparsity,
        density=phases(sparsity, lengths, total_steps),
        settle_scope=scope,
        reset_state=reset_state,
        keep_dense=keep_dense,
        **options,
    )


LENGTHS = ("warmup", "sparse", "dense", "final_dense_start", "final_sparse_start")


def phases(sparsity: float, lengths: Sequence[float | None], total_steps: int | None) -> Phases:
    """The density over the phases, dense and sparse by turns."""
    starts = turns(
        *(fraction(name, value, total_steps) for name, value in zip(LENGTHS, lengths, strict=True))
    )
    check_steps(starts, total_steps)
    target = target_density(sparsity)
    return Phases(starts, tuple(target if turn % 2 else 1.0 for turn in range(len(starts))))


def fraction(name: str, value: float | None, total_steps: int | None) -> Any:
    """A length or start as a fraction of training; whole numbers are optimizer steps."""
    if value is None and name == "final_dense_start":
        return None
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a fraction of training, or a number of steps")
    steps = isinstance(value, numbers.Integral)
    if steps and total_steps is None:
        raise ValueError(
            f"{name}={value} is a number of steps: pass total_steps= as well, or a fraction of "
            "training as a float"
        )
    share = float(value) / total_steps if steps and total_steps else float(value)
    if not 0.0 < share < 1.0:
        raise ValueError(
            f"{name}={value} must lie within training: a fraction in (0, 1), or a number of steps "
            f"from 1 to total_steps={total_steps}"
        )
    return share


def turns(
    warmup: float,
    sparse: float,
    dense: float,
    final_dense_start: float | None,
    final_sparse_start: float,
) -> tuple[float, ...]:
    """When the phases start: dense, sparse, dense, ... and at last sparse.

    Turns are taken as long as they fit before the last dense phase, which the one before it joins.

    >>> turns(0.1, 0.2, 0.1, None, 0.8)
    (0.0, 0.1, 0.3, 0.4, 0.6, 0.8)
    """
    before = final_sparse_start if final_dense_start is None else final_dense_start
    if before > final_sparse_start or (before == final_sparse_start) != (final_dense_start is None):
        raise ValueError(
            f"phases overlap: final_dense_start={before:g} must come before "
            f"final_sparse_start={final_sparse_start:g}"
        )
    starts = [0.0]
    begin = warmup
    while turn_fits(begin + sparse, before, final_dense_start is None):
        # rounded: sums of fractions must not move a phase by their last digit
        starts += [round(begin, 12), round(begin + sparse, 12)]
        begin += sparse + dense
    if len(starts) == 1:
        name = "final_sparse_start" if final_dense_start is None else "final_dense_start"
        raise ValueError(
            f"phases overlap: the first sparse phase, from warmup={warmup:g} on for "
            f"sparse={sparse:g}, does not end before {name}={before:g}"
        )
    return (*starts, final_sparse_start)


def turn_fits(end: float, before: float, strictly: bool) -> bool:
    """Whether a sparse phase ends in time: with some dense training after it, if ``strictly``."""
    return end < before - 1e-9 if strictly else end <= before + 1e-9


def check_steps(starts: tuple[float, ...], total_steps: int | None) -> None:
    """Raise ValueError if a phase has no optimizer step of its own."""
    if total_steps is None:
        return
    first = [math.ceil(start * total_steps - 1e-9) for start in starts] + [total_steps]
    for start, begin, end in zip(starts, first, first[1:], strict=False):
        if begin >= end:
            raise ValueError(
                f"total_steps={total_steps} leaves no optimizer step to the phase that starts at "
                f"{start:g} of training: lengthen warmup=, sparse= or dense="
            )
