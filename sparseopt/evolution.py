"""When the topology changes, what is kept for it, and how the change is carried out."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .gradients import Hooks
from .history import Record, record_of
from .layers import parameters
from .pools import Pool
from .progress import Progress
from .scores import Context
from .storage.state import forget_state
from .update import Change
from .windows import dense_gradients

__all__ = ["Evolution", "check_capture"]


class Evolution(Progress):
    """Topology updates, scheduled or asked for."""

    _hooks: Hooks

    def update_topology(self) -> Record | None:
        """Update the topology now, outside the schedule.

        A recipe that grows by gradient needs dense gradients; where none are at hand the update is
        made at the end of the next ``step()`` instead.

        Returns:
            The record of the update; None if it waits for the next step.
        """
        check_capture(self._pools)
        self._bind()
        self._run.requested = True
        if any(pool.algorithm.needs_gradient for pool in self._pools):
            if not self._hooks.windows:
                self._open_window()
                return None
            for pool in self._pools:
                self._keep_gradients(pool, due=True)
        return self._update(self._pools)

    @torch.no_grad()
    def _update(self, pools: Sequence[Pool]) -> Record:
        run, context = self._run, self._context()
        self._write_back()
        for layer in self._layers:
            layer.values = self._storage.active(layer)
        done: list[Change] | None = None
        if all(pool.is_finite() for pool in pools):
            done = [
                change
                for pool in pools
                for change in pool.plan(context, self.total_steps, self.update_every)
            ]
            self._keep_dense(done)
            for change in done:
                self._carry_out(change)
            self._forget_state(done)
            run.updates += 1
        # the last update of a changing density is put off by a step rather than left out
        run.requested = done is None and any(
            pool.is_last(run.steps, self.total_steps, self.update_every) for pool in pools
        )
        run.note_densities(self._layers)
        record = record_of(run.steps, self._layers, done)
        run.history.append(record)
        for layer in self._layers:
            layer.gradient = layer.values = None
        self._hooks.forget()
        self._open_window()
        if self.on_update is not None:
            self.on_update(record)
        return record

    def _write_back(self) -> None:
        """Give deferred weights their current values before anything reads or replaces them."""
        for layer in self._layers:
            self._storage.write_back(layer, watch=True)

    def _keep_dense(self, changes: Sequence[Change]) -> None:
        """Copy all parameters if the network is dense now and about to be pruned."""
        if not (self._algorithm.keep_dense and all(change.layer.dense for change in changes)):
            return
        if any(change.dropped for change in changes):
            for key, _, weight in parameters(self._inner.param_groups):
                self._run.dense[key] = weight.detach().clone()

    def _forget_state(self, changes: Sequence[Change]) -> None:
        """Forget all optimizer state if the network has just become dense again."""
        denser = any(change.grown for change in changes)
        if self._algorithm.reset_state and denser and all(layer.dense for layer in self._layers):
            forget_state(self._inner)

    def _carry_out(self, change: Change) -> None:
        self._storage.carry_out(change, self._algorithm.grown_state)
        change.layer.extras["ever_active"] |= change.layer.mask

    def _context(self) -> Context:
        run = self._run
        progress = min(1.0, run.steps / self.total_steps) if self.total_steps else 0.0
        return Context(step=run.steps, updates=run.updates, progress=progress, seed=run.seed)

    @torch.compiler.disable
    def _due(self) -> list[Pool]:
        """The pools whose topology is updated after the step about to be taken."""
        step, every = self._run.steps + 1, self.update_every
        return [
            pool
            for pool in self._pools
            if self._run.requested or pool.due(step, self.total_steps, every)
        ]

    def _open_window(self) -> None:
        """Collect dense gradients if the next step ends in an update that asks for them."""
        due = self._due()
        wanted = any(
            pool.algorithm.observe is not None or (pool.algorithm.needs_gradient and pool in due)
            for pool in self._pools
        )
        self._hooks.collect(wanted, self._inner.param_groups)

    def _with_gradients(self, due: list[Pool]) -> list[Pool]:
        """Put the update off by a step if dense gradients were asked for after backward."""
        for pool in due:
            needed = pool.algorithm.needs_gradient
            if needed and any(self._hooks.lost(layer) for layer in pool.layers):
                self._run.requested = True
                return []
        return due

    def _keep_gradients(self, pool: Pool, due: bool) -> None:
        observe = pool.algorithm.observe
        if observe is None and not (due and pool.algorithm.needs_gradient):
            return
        gradients = dense_gradients(pool.layers, self._hooks)
        for layer, gradient in zip(pool.layers, gradients, strict=True):
            layer.gradient = gradient
            if observe is not None and layer.gradient is not None:
                observe(layer)


def check_capture(due: Sequence[Pool]) -> None:
    """Raise RuntimeError if an update is about to be captured in a CUDA graph."""
    on_cuda = any(layer.mask.is_cuda for pool in due for layer in pool.layers)
    if on_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "a topology update decides on the CPU what a CUDA graph would only repeat: capture a "
            "step without one, and take the steps with updates outside"
        )
