"""How a value changes over training: drop fractions and densities as functions of progress.

A schedule is a frozen dataclass called with the progress of training in [0, 1] (values outside are
clamped). Schedules print, compare and pickle. A schedule whose value jumps between topology updates
names the steps at which it does so in :meth:`Schedule.events`.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass

__all__ = [
    "Constant",
    "Cosine",
    "Cubic",
    "Linear",
    "Phases",
    "Polynomial",
    "Scaled",
    "Schedule",
    "Sigmoid",
    "starting_at",
]


class Schedule:
    """A value over training: ``schedule(progress) -> float``; subclasses give ``__call__``."""

    def __call__(self, progress: float) -> float:
        """The value at a progress of training in [0, 1]."""
        raise NotImplementedError

    def events(self, total_steps: int) -> tuple[int, ...]:
        """Steps (counted after the optimizer step) at which the value jumps by itself."""
        return ()


def clamp(progress: float) -> float:
    return min(1.0, max(0.0, progress))


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value from the first step to the last.

    Attributes:
        value: The value.

    >>> Constant(0.3)(0.5)
    0.3
    """

    value: float

    def __call__(self, progress: float) -> float:
        return self.value


@dataclass(frozen=True)
class Linear(Schedule):
    """``start * (1 - progress)``: the decay of sparse momentum (Dettmers & Zettlemoyer 2019).

    Attributes:
        start: The value at the start; it ends at 0.

    >>> Linear(0.5)(0.75)
    0.125
    """

    start: float

    def __call__(self, progress: float) -> float:
        return self.start * (1.0 - clamp(progress))


@dataclass(frozen=True)
class Cosine(Schedule):
    """Half a cosine from ``start`` to ``end``: RigL's decay (Evci et al. 2020, section 3).

    Attributes:
        start: The value at the start.
        end: The value at the end.

    >>> round(Cosine(0.3)(0.25), 7)
    0.256066
    >>> Cosine(0.5, end=0.005)(1.0)
    0.005
    """

    start: float
    end: float = 0.0

    def __call__(self, progress: float) -> float:
        wave = 0.5 * (1.0 + math.cos(math.pi * clamp(progress)))
        return self.end + (self.start - self.end) * wave


@dataclass(frozen=True)
class Polynomial(Schedule):
    """``start * (1 - progress) ** power``, zero at the end (arXiv 2410.03030, Table 3, footnote 3).

    With the paper's power of 0.01 it is nearly constant and falls to zero at the very end.

    Attributes:
        start: The value at the start.
        power: Exponent, above 0; 1 is :class:`Linear`.

    Raises:
        ValueError: For a power that is not above 0.

    >>> round(Polynomial(0.1)(0.5), 7)
    0.0993092
    >>> Polynomial(0.1)(1.0)
    0.0
    """

    start: float
    power: float = 0.01

    def __post_init__(self) -> None:
        _check_positive("power", self.power)

    def __call__(self, progress: float) -> float:
        return float(self.start * (1.0 - clamp(progress)) ** self.power)


def _within(progress: float, start: float, stop: float) -> float:
    """Progress through the window from ``start`` to ``stop``, in [0, 1]."""
    return clamp((progress - start) / (stop - start))


def _check_positive(name: str, value: float) -> None:
    if not 0.0 < value < math.inf:
        raise ValueError(f"{name}={value} must be a finite number above 0")


def _check_window(start: float, stop: float) -> None:
    if not 0.0 <= start < stop <= 1.0:
        raise ValueError(
            f"start={start} and stop={stop} must satisfy 0 <= start < stop <= 1: "
            "they are fractions of training"
        )


@dataclass(frozen=True)
class Cubic(Schedule):
    """From ``initial`` to ``final``, fast at first: ``final + (initial - final) * (1 - p) ** 3``.

    ``p`` runs from 0 to 1 between the fractions of training ``start`` and ``stop``. The density of
    gradual magnitude pruning (Zhu & Gupta 2018) and of GraNet (Liu et al. 2021).

    Attributes:
        initial: The value up to ``start``.
        final: The value from ``stop`` on.
        start: Fraction of training at which the change starts.
        stop: Fraction of training at which it is done.

    Raises:
        ValueError: Unless ``0 <= start < stop <= 1``.

    >>> Cubic(0.8, 0.3)(0.25)
    0.5109375
    """

    initial: float
    final: float
    start: float = 0.0
    stop: float = 1.0

    def __post_init__(self) -> None:
        _check_window(self.start, self.stop)

    def __call__(self, progress: float) -> float:
        left = (1.0 - _within(progress, self.start, self.stop)) ** 3
        return self.initial * left + self.final * (1.0 - left)


@dataclass(frozen=True)
class Sigmoid(Schedule):
    """From ``initial`` to ``final`` along a logistic curve (CHTss, Zhang et al. 2024).

    The curve is rescaled so that both ends are met exactly.

    Attributes:
        initial: The value up to ``start``.
        final: The value from ``stop`` on.
        start: Fraction of training at which the change starts.
        stop: Fraction of training at which it is done.
        steepness: Slope of the logistic function in the middle of the window, above 0: near 0 the
            curve is a straight line, for large values a jump.

    Raises:
        ValueError: Unless ``0 <= start < stop <= 1``, and for a steepness that is not above 0.

    >>> round(Sigmoid(0.5, 0.05)(0.25), 7)
    0.4796705
    """

    initial: float
    final: float
    start: float = 0.0
    stop: float = 1.0
    steepness: float = 6.0

    def __post_init__(self) -> None:
        _check_window(self.start, self.stop)
        _check_positive("steepness", self.steepness)

    def __call__(self, progress: float) -> float:
        # with tanh, (sigma(k(2x - 1)) - 1/2) / (sigma(k) - sigma(-k)) is exact at both ends
        position = 2.0 * _within(progress, self.start, self.stop) - 1.0
        half = self.steepness / 2.0
        done = 0.5 * (1.0 + math.tanh(half * position) / math.tanh(half))
        return self.initial * (1.0 - done) + self.final * done


@dataclass(frozen=True)
class Phases(Schedule):
    """Piecewise constant: ``values[i]`` from the fraction of training ``starts[i]`` on.

    The density of AC/DC (Peste et al. 2021), which alternates dense and sparse phases. The jumps
    are events of their own: they need not be multiples of the update interval.

    Attributes:
        starts: Fractions of training at which the phases start, rising from 0.0 and below 1.0.
        values: The value of every phase.

    Raises:
        ValueError: For starts that do not rise so, or another number of values.

    >>> schedule = Phases(starts=(0.0, 0.1, 0.15), values=(1.0, 0.1, 1.0))
    >>> [schedule(p) for p in (0.0, 0.1, 0.14, 0.2)]
    [1.0, 0.1, 0.1, 1.0]
    >>> schedule.events(total_steps=200)
    (20, 30)
    """

    starts: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.starts, self.starts[1:], strict=False))
        if not self.starts or self.starts[0] != 0.0 or not rising or self.starts[-1] >= 1.0:
            raise ValueError(
                f"starts={self.starts} must rise from 0.0 and stay below 1.0: "
                "they are the fractions of training at which the phases begin"
            )
        if len(self.values) != len(self.starts):
            raise ValueError(
                f"values={self.values} must give one value for each of the "
                f"{len(self.starts)} phases"
            )

    def __call__(self, progress: float) -> float:
        begun = sum(start <= clamp(progress) + 1e-12 for start in self.starts)
        return self.values[begun - 1]

    def events(self, total_steps: int) -> tuple[int, ...]:
        return tuple(math.ceil(start * total_steps - 1e-9) for start in self.starts[1:])


@dataclass(frozen=True)
class Scaled(Schedule):
    """``offset + scale * schedule(progress)``: one schedule drawn on another axis.

    Attributes:
        schedule: The schedule, which also has the events.
        scale: What its value is multiplied by.
        offset: What is added.

    MEST's density, the target plus a bound that shrinks (Yuan et al. 2021):

    >>> Scaled(Polynomial(0.1), scale=0.3, offset=0.3)(1.0)
    0.3
    """

    schedule: Schedule
    scale: float
    offset: float = 0.0

    def __call__(self, progress: float) -> float:
        return self.offset + self.scale * self.schedule(progress)

    def events(self, total_steps: int) -> tuple[int, ...]:
        return self.schedule.events(total_steps)


def starting_at(
    schedule: Schedule, value: float | Schedule, argument: str = "drop_fraction"
) -> Schedule:
    """``schedule`` with another start value; a schedule given as ``value`` replaces it.

    This is what a plain number for ``drop_fraction=`` means.

    Args:
        schedule: One whose first field is the value at the start.
        value: That value, or a schedule.
        argument: What to call ``value`` in errors.

    Raises:
        TypeError: If ``value`` is neither, or ``schedule`` has no start to change.

    >>> starting_at(Cosine(0.3), 0.1)
    Cosine(start=0.1, end=0.0)
    >>> starting_at(Cosine(0.3), Constant(0.2))
    Constant(value=0.2)
    """
    if callable(value):
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(
            f"{argument}={value!r} must be a number, where {schedule!r} starts, or a schedule"
        )
    fields = dataclasses.fields(schedule) if dataclasses.is_dataclass(schedule) else ()
    first = fields[0].name if fields else ""
    if first not in ("value", "start", "initial"):
        raise TypeError(
            f"{argument}={value!r}: {schedule!r} has no start that a number could stand for; pass "
            "a schedule"
        )
    return dataclasses.replace(schedule, **{first: float(value)})
