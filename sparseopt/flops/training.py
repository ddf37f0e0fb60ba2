"""The cost of a training run: a forward pass, twice that backward, at the densities of the time.

FLOPs of a run = 3 x FLOPs of one sample at the density of the step x samples (Evci et al. 2020,
appendix H; arXiv 2410.03030, appendix A.3.2). The dense weight gradients that gradient growth needs
at an update are a cost of their own, which the paper leaves out: `growth_flops`.
"""

from __future__ import annotations

import bisect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparseopt.flops.cost import Densities, ModelCost, by_parameter, inference, parameters

BACKWARD = 2  # gradients of the activations and of the weights cost a forward pass each

Value = float | Callable[[float], float]
Schedule = Value | Callable[[float], Mapping[str, float]] | Mapping[str, Value] | None
DensityRecord = Sequence[tuple[int, Densities]]


@dataclass(frozen=True)
class RunCost:
    """What a run costs, beside the same run dense.

    Attributes:
        steps: optimizer steps that are counted.
        training: FLOPs of all forward and backward passes.
        growth: FLOPs of the dense weight gradients at growth updates, on top of ``training``.
        dense: training FLOPs of the dense model over the same steps.
        inference: FLOPs of one sample at the last densities.
        parameters: number of parameters at the last densities.
    """

    steps: int
    training: float
    growth: float
    dense: float
    inference: float
    parameters: int

    @property
    def share(self) -> float:
        """``training / dense``, growth left out as in the paper; nan before the first step."""
        return self.training / self.dense if self.dense else math.nan

    def __str__(self) -> str:
        return (
            f"{self.steps:,} steps: {self.training:.4g} FLOPs of training, "
            f"{100 * self.share:.1f} % of dense; {self.growth:.4g} more for growth; "
            f"{self.inference:,.0f} FLOPs per sample and {self.parameters:,} parameters at the end"
        )


def training_flops(
    cost: ModelCost,
    schedule: Schedule,
    steps: int,
    batch_size: float = 1,
    *,
    update_every: int = 100,
    include_growth: bool = False,
    stop: float = 1.0,
) -> float:
    """FLOPs of a whole training run whose densities follow a schedule.

    Densities change every ``update_every`` steps, and at the events a schedule has of its own
    (``schedule.events(steps)``); the sum over those pieces is exact.

    Args:
        cost: from `count`.
        schedule: the density of every weight in ``cost.weights``, as a number or as a callable
            of the progress in [0, 1]; or, for single layers, a mapping from parameter or module
            names to numbers and callables, or a callable that returns a mapping. What is not
            named is dense; None is a dense run.
        steps: optimizer steps of the run.
        batch_size: samples per optimizer step; the mean, where batches differ.
        update_every: optimizer steps between topology updates.
        include_growth: add `growth_flops`.
        stop: fraction of training after which nothing is grown; only for ``include_growth``.

    Returns:
        FLOPs.

    Raises:
        ValueError: for names the model does not have, densities outside [0, 1], or steps, batches
            and intervals that are not positive.

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> training_flops(cost, 0.1, steps=1000, batch_size=8)
        4800000.0
        >>> training_flops(cost, {"weight": lambda p: 0.5 - 0.4 * p}, 1000, 8, update_every=500)
        19200000.0
    """
    steps, update_every = _checked_run(steps, batch_size, update_every)
    record = density_record(cost, schedule, steps, update_every)
    grown = _growth_steps(steps, update_every, stop) if include_growth else ()
    run = _sum(cost, record, steps, batch_size, grown)
    return run.training + run.growth


def growth_flops(
    cost: ModelCost,
    schedule: Schedule,
    steps: int,
    batch_size: float = 1,
    *,
    update_every: int = 100,
    stop: float = 1.0,
) -> float:
    """FLOPs of the dense weight gradients of a run that grows by gradient (RigL and its kind).

    At every update the gradients of inactive weights are needed too: the rest of a dense weight
    gradient, for one batch. Updates happen after every ``update_every`` steps up to ``stop``, and
    not after the last step.

    Args:
        cost, schedule, steps, batch_size, update_every: as in `training_flops`.
        stop: fraction of training after which nothing is grown.

    Returns:
        FLOPs, not part of `training_flops` unless ``include_growth=True``.

    Raises:
        ValueError: as `training_flops`.

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> growth_flops(cost, 0.1, steps=1000, batch_size=8)  # 9 updates of 8 x 2 x 900
        129600.0
    """
    steps, update_every = _checked_run(steps, batch_size, update_every)
    record = density_record(cost, schedule, steps, update_every)
    grown = _growth_steps(steps, update_every, stop)
    return _sum(cost, record, steps, batch_size, grown).growth


def run_cost(
    cost: ModelCost,
    record: DensityRecord,
    steps: int,
    batch_size: float = 1,
    *,
    growth_steps: Iterable[int] = (),
) -> RunCost:
    """What a run costs whose densities are on record, as those of a live optimizer are.

    Args:
        cost: from `count`.
        record: pairs of (optimizer steps completed, densities from then on), in order, the first
            at step 0; densities as in `inference_flops`.
        steps: optimizer steps to count; what the record says of later steps is left out.
        batch_size: samples per optimizer step; the mean, where batches differ.
        growth_steps: steps (1 is the first) whose dense weight gradients were needed.

    Returns:
        The cost of the run, and that of the same run dense.

    Raises:
        ValueError: if the record does not start at step 0 or is not in order, and as
            `inference_flops`.

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> run = run_cost(cost, [(0, {"weight": 1.0}), (50, {"weight": 0.1})], steps=100)
        >>> run.training, run.dense, round(run.share, 3)
        (330000.0, 600000.0, 0.55)
    """
    steps, _ = _checked_run(steps, batch_size, 1)
    _check_order([start for start, _ in record])
    checked = [(int(start), by_parameter(cost, densities)) for start, densities in record]
    return _sum(cost, checked, steps, batch_size, growth_steps)


def density_record(
    cost: ModelCost, schedule: Schedule, steps: int, update_every: int = 100
) -> list[tuple[int, dict[str, float]]]:
    """The densities of a planned run, piece by piece, as `run_cost` takes them.

    Args:
        cost, schedule, steps, update_every: as in `training_flops`.

    Returns:
        Pairs of (optimizer steps completed, density by parameter name from then on).

    Raises:
        ValueError: as `training_flops`.

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> density_record(cost, lambda progress: 1 - progress, steps=200)
        [(0, {'weight': 1.0}), (100, {'weight': 0.5})]
    """
    steps, update_every = _checked_run(steps, 1, update_every)
    starts = {0, *range(0, steps, update_every)}
    starts |= {event for event in _events(schedule, steps) if 0 <= event < steps}
    record = []
    for start in sorted(starts):
        try:
            share = by_parameter(cost, _densities_at(schedule, start / max(steps, 1)))
        except ValueError as error:
            raise ValueError(f"the schedule at step {start} of {steps}: {error}") from None
        record.append((start, share))
    return record


def _sum(
    cost: ModelCost,
    record: list[tuple[int, dict[str, float]]],
    steps: int,
    batch_size: float,
    growth_steps: Iterable[int],
) -> RunCost:
    """`run_cost` of a record that is checked."""
    starts = [start for start, _ in record]
    shares = [share for _, share in record]
    ends = [min(steps, start) for start in starts[1:]] + [steps]
    lengths = [max(0, end - start) for start, end in zip(starts, ends, strict=True)]
    forward = [inference(cost, share) for share in shares]
    passes = (1 + BACKWARD) * batch_size
    # step t ran at the densities that held before it was completed
    grown = [bisect.bisect_right(starts, t - 1) - 1 for t in growth_steps if 1 <= t <= steps]
    last = bisect.bisect_right(starts, steps) - 1
    return RunCost(
        steps=steps,
        training=passes * math.fsum(n * one for n, one in zip(lengths, forward, strict=True)),
        growth=batch_size * math.fsum(cost.flops - forward[piece] for piece in grown),
        dense=float(passes * steps * cost.flops),
        inference=forward[last],
        parameters=parameters(cost, shares[last]),
    )


def _densities_at(schedule: Schedule, progress: float) -> Densities:
    if isinstance(schedule, Mapping):
        return {name: _value_at(value, progress) for name, value in schedule.items()}
    return schedule(progress) if callable(schedule) else schedule


def _value_at(value: Value, progress: float) -> float:
    return value(progress) if callable(value) else value


def _events(schedule: Schedule, steps: int) -> set[int]:
    parts = list(schedule.values()) if isinstance(schedule, Mapping) else [schedule]
    events = [getattr(part, "events", None) for part in parts]
    return {int(step) for named in events if named is not None for step in named(steps)}


def _growth_steps(steps: int, update_every: int, stop: float) -> range:
    last = min(steps - 1, math.floor(stop * steps + 1e-9))  # none after the last step
    return range(update_every, last + 1, update_every)


def _check_order(starts: list[int]) -> None:
    if not starts or starts[0] != 0 or sorted(starts) != starts:
        raise ValueError(
            f"record starts at steps {starts[:5]}; give (step, densities) pairs in order, "
            "the first at step 0"
        )


def _checked_run(steps: float, batch_size: float, update_every: float) -> tuple[int, int]:
    """Steps and interval as whole numbers; a float such as 1e5 will do for them."""
    if not 0 < batch_size < math.inf:
        raise ValueError(f"batch_size={batch_size} must be above 0: samples per optimizer step")
    return _whole("steps", steps, 0), _whole("update_every", update_every, 1)


def _whole(name: str, value: float, least: int) -> int:
    number = isinstance(value, numbers.Real) and math.isfinite(value)
    if not number or value < least or value != int(value):
        raise ValueError(
            f"{name}={value!r} must be a whole number of optimizer steps, {least} or more"
        )
    return int(value)
