"""Algorithm: what a method of sparse training chooses, as data."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..bias_correction import BORN, never_grown
from ..distributions import Distribution, check_sparsity
from ..layers import Layer
from ..schedules import Constant, Phases, Schedule
from ..scores import Score, magnitude
from ..select import top_k
from ..update import Levels, exchange, share_of_active

__all__ = ["Algorithm"]


@dataclass(frozen=True)
class Algorithm:
    """What a method of sparse training chooses, as data.

    Attributes:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        name: Name of the recipe it came from.
        distribution: How the weights are shared out: "uniform", "er", "erk", or a callable
            ``(shapes, sparsity) -> counts``.
        topology: Which weights are active at the start: a name, a dict of masks, or a callable
            ``(layer, nnz, generator) -> mask``.
        density: Fraction of weights active during training, over its progress; None: constant.
        pruned_density: Fraction left by the drop; None: ``drop_fraction`` decides.
        drop: What an active weight is worth; the worst are dropped.
        drop_fraction: Share of the active weights that an update drops, over the updates.
        drop_select: How the kept are picked by score: ``top_k``, or ``sample`` at random.
        drop_count: How many to drop: ``(layer, mask, fraction, rounding) -> int``.
        grow: What an inactive weight is worth; None: all the same, so growth is random.
        grow_select: How the grown are picked by score.
        exchange: How weights are exchanged; other than the default for structured sparsity.
        scope: "layer": every layer keeps its count; "global": one ranking over all layers.
        settle_scope: The same for pruning to a density that falls.
        regrow_same: What becomes of a weight dropped and grown in the same update: "keep" its
            value and state, "reset" both to zero, or "forbid" it.
        grown_state: Optimizer state of grown weights: "zero", "mean" (of the layer's active
            weights) or "per_element_step" (own bias correction; Adam and AdamW).
        start: Fraction of training before which the topology rests.
        stop: Fraction of training after which the topology rests.
        rounding: Rounding of the number to drop, "floor" or "ceil".
        observe: Called as ``observe(layer)`` at every step, with ``layer.gradient`` dense; what it
            keeps goes into ``layer.extras``.
        reset_state: Forget all optimizer state when an update makes the network dense again.
        keep_dense: Keep a copy of all parameters from before an update prunes the dense network.
        skip_step_on_update: Leave out the optimizer step when the topology is updated, as the
            original RigL code does.

    Raises:
        TypeError: For a schedule that is none.
        ValueError: For a fraction outside [0, 1], a density that is not above 0, or an unknown
            choice.

    Example:
        >>> from sparseopt.schedules import Cosine
        >>> Algorithm(0.75, drop_fraction=Cosine(0.3)).density
        Constant(value=0.25)
    """

    sparsity: float
    name: str = "custom"
    distribution: Distribution = "erk"
    topology: Any = "random"
    density: Schedule = None  # type: ignore[assignment]
    pruned_density: Schedule | None = None
    drop: Score = magnitude
    drop_fraction: Schedule = Constant(0.0)
    drop_select: Callable[..., Tensor] = top_k
    drop_count: Callable[[Layer, Tensor, float, str], int] = share_of_active
    grow: Score | None = None
    grow_select: Callable[..., Tensor] = top_k
    exchange: Callable[..., tuple[list[Tensor], list[Tensor]]] = exchange
    scope: str = "layer"
    settle_scope: str = "layer"
    regrow_same: str = "keep"
    grown_state: str = "zero"
    start: float = 0.0
    stop: float = 1.0
    rounding: str = "floor"
    observe: Callable[[Layer], None] | None = None
    reset_state: bool = False
    keep_dense: bool = False
    skip_step_on_update: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.density is None:
            object.__setattr__(self, "density", Constant(1.0 - self.sparsity))
        for name, allowed in CHOICES.items():
            _check_choice(name, getattr(self, name), allowed)
        for name in ("start", "stop"):
            _check_unit(name, getattr(self, name))
        for name in ("reset_state", "keep_dense", "skip_step_on_update"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}={getattr(self, name)!r} must be True or False")
        if self.scope == "global" and self.exchange is not exchange:
            kind = getattr(self.exchange, "__name__", type(self.exchange).__name__)
            raise ValueError(
                f"scope='global': the exchange {kind} works layer by layer; leave scope= out"
            )
        if self.start > self.stop:
            raise ValueError(f"start={self.start} must not be after stop={self.stop}")
        self._check_schedules()

    def _check_schedules(self) -> None:
        for name in ("density", "pruned_density", "drop_fraction"):
            schedule = getattr(self, name)
            # only a Schedule tells at which steps it jumps
            right = isinstance(schedule, Schedule) if name == "density" else callable(schedule)
            if not right and (schedule is not None or name == "drop_fraction"):
                raise TypeError(
                    f"{name}={schedule!r} must be a schedule of sparseopt.schedules, such as "
                    "Constant(0.3)"
                )
        for progress in (0.0, 0.5, 1.0):
            _check_unit("drop_fraction", self.drop_fraction(progress))
            for name in ("density", "pruned_density"):
                schedule = getattr(self, name)
                if schedule is not None and not 0.0 < schedule(progress) < math.inf:
                    raise ValueError(
                        f"{name}={schedule!r} is {schedule(progress)} at progress {progress}: it "
                        "must stay above 0, the fraction of active weights"
                    )

    @property
    def needs_gradient(self) -> bool:
        """Whether an update reads dense gradients."""
        return any(getattr(score, "needs_gradient", False) for score in (self.drop, self.grow))

    @property
    def keeps_count(self) -> bool:
        """Whether the number of active weights is the same from the first step to the last."""
        return not self.needs_total_steps and self.exchange is exchange

    @property
    def needs_total_steps(self) -> bool:
        """Whether the density changes over training, so that its length must be known."""
        return not isinstance(self.density, Constant) or self.pruned_density is not None

    @property
    def ramps(self) -> bool:
        """Whether the density moves at the ordinary updates (not only at events of its own)."""
        return not isinstance(self.density, (Constant, Phases))

    @property
    def exchanges(self) -> bool:
        """Whether updates drop and grow weights at the same density."""
        return self.drop_fraction != Constant(0.0) or self.pruned_density is not None

    def last_step(self, total_steps: int | None, update_every: int) -> float:
        """The last step at which an ordinary update is made; infinite without ``total_steps``.

        No update at the very end: nothing would train the grown weights.
        """
        if total_steps is None:
            return math.inf
        end = min(math.floor(self.stop * total_steps + 1e-9), total_steps - 1)
        return end // update_every * update_every

    def due(self, step: int, total_steps: int | None, update_every: int) -> bool:
        """Whether the topology is updated right after optimizer step number ``step``.

        >>> from sparseopt.algorithms import rigl
        >>> rigl(0.9).due(70, 100, 10), rigl(0.9).due(80, 100, 10)
        (True, False)
        """
        if total_steps is not None and step in self.density.events(total_steps):
            return True
        if step % update_every or not (self.exchanges or self.ramps):
            return False
        if self._rests(step, total_steps, update_every):
            return False
        begin = self.start * (total_steps or 0)
        return max(begin, 1) <= step <= self.last_step(total_steps, update_every)

    def ends_at(self, step: int, total_steps: int, update_every: int) -> bool:
        """Whether no update comes after optimizer step number ``step``.

        >>> from sparseopt.algorithms import rigl
        >>> rigl(0.9).ends_at(60, 100, 10), rigl(0.9).ends_at(70, 100, 10)
        (False, True)
        """
        ordinary = range((step // update_every + 1) * update_every, total_steps, update_every)
        later = (one for one in (*self.density.events(total_steps), *ordinary) if one > step)
        return not any(self.due(one, total_steps, update_every) for one in later)

    def _rests(self, step: int, total_steps: int | None, update_every: int) -> bool:
        """Whether nothing is exchanged and the density has not moved since the last update."""
        if self.exchanges or total_steps is None:
            return False
        return self.density(step / total_steps) == self.density((step - update_every) / total_steps)

    def extras(self, layer: Layer) -> dict[str, Tensor]:
        """What a layer keeps between updates, as it is at the start.

        There from the start because distributed checkpoints load only into what is there.
        """
        parts = (self.observe, self.exchange, self.drop, self.grow)
        found = [getattr(part, "extras", None) for part in parts]
        kept = [make(layer) for make in found if make is not None]
        if self.grown_state == "per_element_step":
            kept.append({BORN: never_grown(layer)})
        return {name: value for one in kept for name, value in one.items()}

    def check(self, layers: Sequence[Layer]) -> None:
        """Let an exchange with requirements of its own look at the layers before training.

        Raises:
            ValueError: If it cannot take them.
        """
        check = getattr(self.exchange, "check", None)
        if check is not None:
            check(layers)

    def check_masks(self, layers: Sequence[Layer], masks: Sequence[Tensor]) -> None:
        """Let an exchange that keeps a structure look at the masks that training starts from.

        Raises:
            ValueError: If they do not have it.
        """
        check = getattr(self.exchange, "check_masks", None)
        if check is not None:
            check(layers, masks)

    def check_length(self, total_steps: int, update_every: int) -> None:
        """Raise ValueError if no update comes before the end of the density's schedule."""
        if not self.ramps:
            return
        begin = max(getattr(self.density, "start", 0.0), self.start) * total_steps
        end = getattr(self.density, "stop", 1.0) * total_steps
        first = max(1, math.ceil(begin / update_every - 1e-9)) * update_every
        if first > min(end + 1e-9, self.last_step(total_steps, update_every)):
            raise ValueError(
                f"update_every={update_every} leaves no topology update before the density of "
                f"algo={self.name!r} reaches its end at step {min(end, total_steps):g} of "
                f"total_steps={total_steps}: lower update_every, or make the schedule longer"
            )

    def levels(self, step: int, total_steps: int | None, update_every: int) -> Levels:
        """What the schedules say after optimizer step number ``step``.

        The last update brings the density to its end, whatever the interval: a gradual schedule
        that stopped one interval short would miss the target.
        """
        if total_steps is None:
            return Levels(self.density(0.0), None, self.drop_fraction(0.0))
        progress = step / total_steps
        last = self.ramps and step >= self.last_step(total_steps, update_every)
        now = 1.0 if last else progress
        until_stop = step / max(self.stop * total_steps, 1.0)
        return Levels(
            density=min(1.0, self.density(now)),
            pruned=None if self.pruned_density is None else self.pruned_density(now),
            fraction=self.drop_fraction(until_stop),
        )


def target_density(sparsity: float) -> float:
    """The density at the end of training, without the last digits of ``1 - sparsity``.

    >>> 1 - 0.7, target_density(0.7)
    (0.30000000000000004, 0.3)
    """
    return round(1.0 - check_sparsity(sparsity), 12)


CHOICES = {
    "regrow_same": ("keep", "reset", "forbid"),
    "grown_state": ("zero", "mean", "per_element_step"),
    "scope": ("layer", "global"),
    "settle_scope": ("layer", "global"),
    "rounding": ("floor", "ceil"),
}


def _check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(repr, allowed))}")


def _check_unit(name: str, value: Any) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}={value!r} must be a fraction in [0, 1]")
