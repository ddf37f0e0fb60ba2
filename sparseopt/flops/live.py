"""What a running optimizer has cost so far, costs now, and will have cost at the end."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..distributions import counts
from .cost import ModelCost, inference_flops
from .training import RunCost, run_cost

if TYPE_CHECKING:
    from ..pools import Pool

__all__ = ["LiveCost", "live_cost"]

DensityRecord = list[tuple[int, dict[str, float]]]


@dataclass(frozen=True)
class LiveCost:
    """FLOPs of a run in progress.

    Attributes:
        cost: The dense model, counted.
        inference: FLOPs of one sample at the densities of this moment.
        so_far: The run up to this step.
        projected: The whole run of ``total_steps``; None where its length is unknown.
        uncounted: Sparse layers in no figure, as their products have no count (recurrent layers).
    """

    cost: ModelCost
    inference: float
    so_far: RunCost
    projected: RunCost | None
    uncounted: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """``inference`` over that of the dense model; nan where that has no count."""
        return self.inference / self.cost.flops if self.cost.flops else math.nan

    def __str__(self) -> str:
        lines = [
            f"now: {self.inference:,.0f} FLOPs per sample, {100 * self.share:.1f} % of dense",
            f"so far: {self.so_far}",
        ]
        if self.projected:
            lines.append(f"projected: {self.projected}")
        if self.uncounted:
            lines.append(f"without these sparse layers, not counted: {', '.join(self.uncounted)}")
        return "\n".join(lines)


def live_cost(
    cost: ModelCost,
    record: DensityRecord,
    pools: Sequence[Pool],
    steps: int,
    batch_size: float,
    total_steps: int | None,
    update_every: int,
) -> LiveCost:
    """Counted model times recorded densities; the rest of the run from the schedules.

    Args:
        cost: The dense model, from ``flops.count``.
        record: (steps taken, density by layer name) at the start and at every change.
        pools: The layers and algorithms of the optimizer.
        steps: Optimizer steps taken.
        batch_size: Samples per optimizer step.
        total_steps: Length of the run, if known.
        update_every: Optimizer steps between updates.
    """
    so_far = run_cost(
        cost, record, steps, batch_size, growth_steps=growth_steps(pools, 0, steps, total_steps,
                                                                   update_every)
    )  # fmt: skip
    projected = None
    if total_steps is not None:
        end = max(steps, total_steps)
        whole = record + future(pools, record[-1][1], steps, total_steps, update_every)
        grown = growth_steps(pools, 0, end, total_steps, update_every)
        projected = run_cost(cost, whole, end, batch_size, growth_steps=grown)
    now = record[-1][1]
    uncounted = tuple(name for name in now if name not in cost.weights)
    return LiveCost(cost, inference_flops(cost, now), so_far, projected, uncounted)


def due_steps(
    pool: Pool, first: int, last: int, total_steps: int | None, update_every: int
) -> list[int]:
    """Steps after ``first`` and up to ``last`` at which the pool's topology is updated."""
    places = set(range(update_every, last + 1, update_every))
    places |= set(pool.algorithm.density.events(total_steps)) if total_steps else set()
    return sorted(
        step
        for step in places
        if first < step <= last and pool.due(step, total_steps, update_every)
    )


def growth_steps(
    pools: Sequence[Pool], first: int, last: int, total_steps: int | None, update_every: int
) -> list[int]:
    """Steps that computed dense weight gradients beyond what a sparse step needs."""
    found: set[int] = set()
    for pool in pools:
        if pool.algorithm.observe is not None:
            found |= set(range(first + 1, last + 1))
        elif getattr(pool.algorithm.grow, "needs_gradient", False):
            found |= set(due_steps(pool, first, last, total_steps, update_every))
    return sorted(found)


def future(
    pools: Sequence[Pool],
    now: dict[str, float],
    steps: int,
    total_steps: int,
    update_every: int,
) -> DensityRecord:
    """Densities of the updates to come: as now where they stay, else as the distribution says."""
    record: DensityRecord = []
    densities = dict(now)
    moving = [pool for pool in pools if pool.algorithm.needs_total_steps]
    places = sorted(
        {step for pool in moving
         for step in due_steps(pool, steps, total_steps, total_steps, update_every)}
    )  # fmt: skip
    for step in places:
        for pool in moving:
            if pool.due(step, total_steps, update_every):
                densities |= planned(pool, step, total_steps, update_every)
        record.append((step, dict(densities)))
    return record


def planned(pool: Pool, step: int, total_steps: int, update_every: int) -> dict[str, float]:
    density = pool.algorithm.levels(step, total_steps, update_every).density
    numbers = counts(pool.algorithm.distribution, [layer.shape for layer in pool.layers], density)
    return {
        layer.name: number / layer.numel for layer, number in zip(pool.layers, numbers, strict=True)
    }
