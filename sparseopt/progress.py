"""What is known of a run: its settings, layers, counters, history and cost."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .algorithms import Algorithm
from .flops import LiveCost, count, live_cost
from .flops.tracing import samples_in
from .history import Record, Run
from .layers import Layer, Selection, wrapped
from .pools import Pool
from .storage import Masked
from .wrapper import Wrapper

__all__ = ["Progress"]


class Progress(Wrapper):
    """The public properties of a SparseOptimizer, and the attributes that they read."""

    _run: Run
    _algorithm: Algorithm
    _layers: list[Layer]
    _pools: list[Pool]
    _selection: Selection
    _storage: Masked
    _model: weakref.ref[nn.Module] | None

    @property
    def algorithm(self) -> Algorithm:
        """What the method chooses; groups with a sparsity of their own have one made for it."""
        return self._algorithm

    @property
    def layers(self) -> list[Layer]:
        """The sparse layers, in the order of the parameter groups."""
        return list(self._layers)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name to boolean mask, true where active; live, so copy what you change."""
        return {layer.name: layer.mask for layer in self.layers}

    @property
    def density(self) -> float:
        """Fraction of the weights of all sparse layers that are active now, in [0, 1]."""
        layers = self.layers
        total = sum(layer.numel for layer in layers)
        return sum(layer.nnz for layer in layers) / total if total else 1.0

    @property
    def sparsity(self) -> float:
        """``1 - density``: the fraction that is zero now."""
        return 1.0 - self.density

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training; schedules measure progress by it."""
        return self._run.total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | None) -> None:
        check_whole("total_steps", total_steps, 1, optional=True)
        pools = getattr(self, "_pools", ())  # none yet while the optimizer is made
        if total_steps is None and any(pool.algorithm.needs_total_steps for pool in pools):
            raise ValueError(
                f"total_steps=None: algo={self.algorithm.name!r} changes its density over "
                "training; give the number of optimizer steps"
            )
        self._run.total_steps = total_steps

    @property
    def update_every(self) -> int:
        """Optimizer steps between topology updates."""
        return self._run.update_every

    @update_every.setter
    def update_every(self, update_every: int) -> None:
        check_whole("update_every", update_every, 1)
        self._run.update_every = update_every

    @property
    def on_update(self) -> Callable[[Record], Any] | None:
        """Called with the :class:`Record` of every topology update."""
        return self._run.on_update

    @on_update.setter
    def on_update(self, on_update: Callable[[Record], Any] | None) -> None:
        if on_update is not None and not callable(on_update):
            raise TypeError(f"on_update={on_update!r} must be callable: it gets a Record")
        self._run.on_update = on_update

    @property
    def steps(self) -> int:
        """Optimizer steps taken; a step that GradScaler left out is not one."""
        return self._run.steps

    @property
    def updates(self) -> int:
        """Topology updates made; skipped ones are not counted."""
        return self._run.updates

    @property
    def dense_parameters(self) -> dict[str, Tensor]:
        """All parameters as they were before the last compression, by name (``keep_dense``)."""
        groups, run = self._inner.param_groups, self._run
        return {
            self._selection.name(groups[key[0]], key): value for key, value in run.dense.items()
        }

    @property
    def history(self) -> list[Record]:
        """One :class:`Record` per topology update."""
        return self._run.history

    def flops(
        self, inputs: Any, *, model: nn.Module | None = None, batch_size: float | None = None
    ) -> LiveCost:
        """What this run costs against dense: now, so far, and projected to ``total_steps``.

        Args:
            inputs: A batch for ``model(inputs)``, a tuple of its arguments, or a mapping of keyword
                arguments.
            model: The module that is trained; None: the one given as ``model=``.
            batch_size: Samples per optimizer step; None: the size of this batch, its first tensor's
                first dimension.

        Returns:
            A :class:`sparseopt.flops.LiveCost`, which prints.

        Raises:
            ValueError: If the model is not known, or lacks a layer by name; for inputs without a
                batch dimension.
            ImportError: Without fvcore (``pip install sparseopt[flops]``).
        """
        model = model if model is not None else (self._model() if self._model else None)
        if model is None:
            raise ValueError(
                "model= is needed: this optimizer was built without it or copied, or the model is "
                "gone"
            )
        model, run = wrapped(model), self._run
        cost = count(model, inputs)
        size = float(samples_in(model, inputs)) if batch_size is None else batch_size
        return live_cost(
            cost, run.densities, self._pools, run.steps, size, run.total_steps, run.update_every
        )

    def summary(self) -> str:
        """A table of the layers: name, shape, active weights, density."""
        rows = [(layer.name, str(layer.shape), f"{layer.nnz:,}", f"{layer.density:.4f}")
                for layer in self.layers]  # fmt: skip
        nnz = sum(layer.nnz for layer in self._layers)
        skipped = sum(record.skipped for record in self.history)
        head = ("layer", "shape", "active", "density")
        rows = [head, *rows, ("total", "", f"{nnz:,}", f"{self.density:.4f}")]
        wide = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{name:<{wide[0]}}  {shape:<{wide[1]}}  {active:>{wide[2]}}  {density:>{wide[3]}}"
            for name, shape, active, density in rows
        ]
        state = f"step {self.steps}, {self.updates} topology updates"
        state += f" ({skipped} skipped: values were not finite)" if skipped else ""
        return "\n".join([repr(self), *lines, state])

    def __repr__(self) -> str:
        return (
            f"SparseOptimizer(algo={self._algorithm.name!r}, sparsity={self.sparsity:.3f}, "
            f"storage={self._storage.name!r}, inner={type(self._inner).__name__})"
        )


def check_whole(name: str, value: Any, least: int | None, optional: bool = False) -> None:
    if optional and value is None:
        return
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        bound = f" of at least {least}" if least is not None else ""
        kind = ValueError if whole else TypeError
        raise kind(f"{name}={value!r} must be a whole number{bound}")
