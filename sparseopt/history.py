"""What happened: one record per topology update, and the counters of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .layers import Layer
from .positions import count
from .update import Change

__all__ = ["Record", "Run"]


class Record(dict[str, Any]):
    """One topology update; a dict whose entries are attributes too.

    Entries: ``step`` (optimizer steps taken), ``dropped``, ``grown``, ``regrown`` (dropped and
    grown in this update), ``nnz`` and ``density`` (after it), ``exploration_rate`` (fraction of
    weights that were ever active; R_s of Liu et al. 2021), ``skipped`` (not made: values were not
    finite), and ``layers``, the active weights per layer.

    >>> Record(step=100, dropped=5).dropped
    5
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"a record has no entry {name!r}; it has {', '.join(self)}"
            ) from None


@dataclass
class Run:
    """Settings and counters of one optimizer: one object, so that proxies share what changes."""

    total_steps: int | None = None
    update_every: int = 100
    on_update: Callable[[Record], Any] | None = None
    seed: int = 0
    steps: int = 0
    updates: int = 0
    requested: bool = False
    probed: bool = False
    history: list[Record] = field(default_factory=list)
    densities: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    dense: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def saved(self) -> dict[str, Any]:
        """The counters as plain numbers and strings.

        What grows is text: distributed checkpoints load into entries of the same structure only.
        """
        return {
            "seed": self.seed,
            "steps": self.steps,
            "updates": self.updates,
            "requested": self.requested,
            "history": json.dumps(self.history),
            "densities": json.dumps(self.densities),
        }

    def restore(self, saved: dict[str, Any], steps: int | None) -> None:
        """Take the counters of a checkpoint; what it does not say is left."""
        self.steps = self.steps if steps is None else steps
        for name in ("seed", "updates", "requested"):
            setattr(self, name, saved.get(name, getattr(self, name)))
        if "history" in saved:
            self.history[:] = [Record(record) for record in json.loads(saved["history"])]
        if "densities" in saved:
            self.densities[:] = [(step, layers) for step, layers in json.loads(saved["densities"])]

    def note_densities(self, layers: Sequence[Layer]) -> None:
        """Remember the density of every layer from this step on, if one has changed."""
        now = {layer.name: layer.density for layer in layers}
        if self.densities and self.densities[-1][0] == self.steps:
            self.densities.pop()
        if not self.densities or self.densities[-1][1] != now:
            self.densities.append((self.steps, now))


def record_of(step: int, layers: Sequence[Layer], changes: Sequence[Change] | None) -> Record:
    """What an update did (None: it was skipped), with the layers as it left them."""
    nnz, total = sum(layer.nnz for layer in layers), sum(layer.numel for layer in layers)
    ever = sum(count(layer.extras["ever_active"]) for layer in layers)
    return Record(
        step=step,
        dropped=sum(change.dropped for change in changes or ()),
        grown=sum(change.grown for change in changes or ()),
        regrown=sum(change.regrown for change in changes or ()),
        nnz=nnz,
        density=nnz / total if total else 1.0,
        exploration_rate=ever / total if total else 1.0,
        skipped=changes is None,
        layers={layer.name: layer.nnz for layer in layers},
    )
