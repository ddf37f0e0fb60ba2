"""Copies and checkpoints of a run: what is saved, what is taken up again."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .algorithms import Algorithm
from .compute.engine import Engine
from .evolution import Evolution
from .gradients import Hooks
from .layers import Layer, parameters
from .shards import local, shard_like, whole
from .storage.state import state_of

__all__ = ["Persistence"]


class Persistence(Evolution):
    """Pickling, deepcopy, state dicts, and the hidden step of distributed checkpoints."""

    _engine: Engine | None
    _given: dict[tuple[int, int], Tensor]

    def __getstate__(self) -> dict[str, Any]:
        # hooks on parameters are not copied with them: the copy sets its own
        kept = super().__getstate__()
        return {name: value for name, value in kept.items() if name not in ("_hooks", "_model")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hooks = Hooks()
        self._model = None
        for layer in self._layers:
            self._hooks.attach(layer)
            self._hooks.assume_masked(layer)
        if self._engine is not None:
            self._engine.use(self._hooks)
        self._open_window()

    def _saved(self) -> dict[str, Any]:
        self._bind()
        self._write_back()
        forgotten = self._algorithm.reset_state and self._run.steps > 0 and not self._inner.state
        # ZeroRedundancyOptimizer keeps its state elsewhere
        if forgotten and state_of(self._inner) is self._inner.state:
            with self._empty_state():
                return self._merged()
        return self._merged()

    def _merged(self) -> dict[str, Any]:
        """The inner optimizer's state dict and what is ours, as they are now."""
        run = self._run.saved() | {
            "algo": self._algorithm.name,
            "sparsity": self._algorithm.sparsity,
            "total_steps": self.total_steps,
            "update_every": self.update_every,
            checkpoint.STATELESS: self._run.probed and self._run.steps > 0,
        }
        plain = checkpoint.in_torch_layout(self._inner)
        plain["state"] = dict(plain["state"])
        ids = dict(checkpoint.identifiers(plain["param_groups"]))
        for layer in self._layers:
            if ids[layer.key] in plain["state"]:
                entry = plain["state"][ids[layer.key]]
                plain["state"][ids[layer.key]] = self._storage.portable(layer, entry)
        return checkpoint.merge(plain, self._layers, run, self._run.dense)

    def _load(self, state_dict: dict[str, Any]) -> None:
        self._bind()
        self._write_back()
        plain, saved = checkpoint.split(state_dict)
        checkpoint.check(saved, self._layers, self._algorithm)
        for pool in self._pools:
            pool.check_length(saved, self.total_steps, self.update_every)
        if self._run.steps:
            checkpoint.refuse_lost_masks(saved, plain)
        self._inner.load_state_dict(plain.get(checkpoint.OWN_LAYOUT, plain))
        self._run.probed = False
        if saved.run.get(checkpoint.STATELESS):
            self._inner.state.clear()
        self._take_up(saved)
        # torch takes the tensors as they are: training would go on in those of the checkpoint
        state = state_of(self._inner)
        state.update({weight: copy.deepcopy(entry) for weight, entry in state.items()})

    @torch.no_grad()
    def _take_up(self, saved: checkpoint.Saved) -> None:
        if saved.entries:
            self._run.restore(saved.run, saved.steps)
        self._run.dense.clear()
        self._run.dense.update(saved.dense)
        for pool in self._pools:
            for layer in pool.layers:
                self._take_up_layer(layer, saved.of_layer(layer.key), pool.algorithm)
        self._hooks.forget()
        self._open_window()

    def _take_up_layer(self, layer: Layer, entry: dict[str, Tensor], algorithm: Algorithm) -> None:
        if "mask" not in entry:
            self._storage.clean(layer)
            return
        mask = shard_like(entry.pop("mask").to(layer.mask.device).bool(), layer.mask)
        # Accelerate loads our own state dict when it wraps us, before the first step: the weights
        # may be those of a checkpoint by then, whose masks are still to come
        moved = self._run.steps > 0 or not torch.equal(local(mask), local(layer.mask))
        given = self._given.pop(layer.key, None) if moved else None
        if given is not None and was_masked(given, layer):
            # the model's weights were loaded before wrapping masked them by another topology
            layer.weight.copy_(given)
        layer.set_mask(mask)
        found = {name: placed(value, layer).clone() for name, value in entry.items()}
        fresh = algorithm.extras(layer) | {"ever_active": layer.mask.clone()}
        layer.extras = fresh | found
        self._storage.take_up(layer, moved)

    def _is_probe(self) -> bool:
        """Whether this is the empty step with which torch.distributed.checkpoint makes state.

        If there is no state it sets every learning rate and gradient to zero and steps once.
        """
        if len(self._inner.state):
            return False
        groups = self._inner.param_groups
        if any(float(group.get("lr", 1.0)) != 0.0 for group in groups):
            return False
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return bool(grads) and not any(bool(whole(grad.ne(0).sum())) for grad in grads)

    @torch.no_grad()
    def _probe(self) -> None:
        """Make the state that a distributed checkpoint looks for; not a step, so not counted.

        Weights stay as they are: they may have been loaded already, and their masks not yet.
        """
        weights = [weight for _, _, weight in parameters(self._inner.param_groups)]
        values = [weight.detach().clone() for weight in weights]
        self._prepare([])
        self._inner_step(None, [])
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
        checkpoint.announce(self._inner, self._merged())
        self._run.probed = True

    @contextmanager
    def _empty_state(self) -> Iterator[None]:
        """For as long as a state dict is made, state that has seen no gradient.

        Distributed checkpoints load what the optimizer they load into has, and that has state.
        """
        groups = self._inner.param_groups
        weights = [weight for _, _, weight in parameters(groups)]
        rates = [group.get("lr") for group in groups]
        grads = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
        for group in groups:
            group |= {"lr": 0.0 * group["lr"]} if "lr" in group else {}
        try:
            self._probe()
        finally:
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            for group, rate in zip(groups, rates, strict=True):
                group |= {} if rate is None else {"lr": rate}
        try:
            yield
        finally:
            self._undo_probe()

    def _undo_probe(self) -> None:
        """Forget the state that a probe made, unless a checkpoint was loaded over it."""
        if self._run.probed:
            self._run.probed = False
            self._inner.state.clear()
            self._inner.param_groups[0].pop(checkpoint.RUN, None)


def placed(value: Tensor, layer: Layer) -> Tensor:
    """On the layer's device, and sharded as it is."""
    value = value.to(layer.mask.device)
    return shard_like(value, layer.mask) if value.ndim else value


def was_masked(given: Tensor, layer: Layer) -> bool:
    """Whether the weights are what masking left of those given."""
    left = local(given).masked_fill(~local(layer.mask), 0.0)
    return torch.equal(local(layer.weight), left)
