"""Layers that share one target sparsity: their algorithm, first masks and updates."""

from __future__ import annotations

import dataclasses
import difflib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import topologies
from .algorithms import Algorithm
from .checkpoint import LENGTH, Saved
from .distributions import counts
from .gathered import Gathered, gathered
from .layers import Layer
from .positions import count
from .scores import Context
from .shards import cut_alike, is_sharded, shard_like, whole
from .storage.active_gradient import factors_of
from .update import Change, plan

__all__ = ["Pool", "check_length", "check_names"]


@dataclass
class Pool:
    """Layers of one target sparsity and the algorithm for it: a budget of its own."""

    algorithm: Algorithm
    layers: list[Layer]

    def first_masks(self, context: Context, total_steps: int | None, every: int) -> list[Tensor]:
        """The topology to start from, with exactly as many active weights as asked.

        Raises:
            ValueError: If a given topology does not fit the layers or the sparsity.
        """
        if self._sharded and not self._cut_by_rows:
            return self.gathered().first_masks(context, total_steps, every)
        if self.algorithm.check is not None:
            self.algorithm.check(self.layers)
        density = self.algorithm.levels(context.step, total_steps, every).density
        masks = self._chosen_masks(density, context)
        self.algorithm.check_masks(self.layers, masks)
        return masks

    def _chosen_masks(self, density: float, context: Context) -> list[Tensor]:
        topology = self.algorithm.topology
        if isinstance(topology, Mapping):
            with warnings.catch_warnings():  # of layers left empty: here the masks decide
                warnings.simplefilter("ignore")
                return self._given(topology, self._numbers(density))
        return topologies.masks(topology, self.layers, self._numbers(density), context.generator)

    def check_length(self, saved: Saved, total_steps: int | None, every: int) -> None:
        """Raise ValueError if a run of another length left off where this one would be done.

        Raises:
            ValueError: If its density has not come to its end, and no update is to come.
        """
        step, masks, algorithm = saved.steps, saved.masks, self.algorithm
        theirs = {name: saved.run[name] for name in LENGTH if name in saved.run}
        same = theirs in ({}, dict(zip(LENGTH, (total_steps, every), strict=True)))
        if same or step is None or total_steps is None or not algorithm.needs_total_steps:
            return
        active = sum(count(masks[layer.key]) for layer in self.layers if layer.key in masks)
        target = sum(self._numbers(algorithm.density(1.0)))
        if active > target and algorithm.ends_at(step, total_steps, every):
            raise ValueError(
                f"total_steps={total_steps}, update_every={every}: after the checkpoint's step "
                f"{step} no update is left to bring its {active} active weights to {target}; it "
                f"was written with {', '.join(f'{name}={theirs[name]}' for name in theirs)}: "
                "pass these, or a larger total_steps"
            )

    def _numbers(self, density: float) -> list[int]:
        """How many weights of each layer are active at a density."""
        return counts(self.algorithm.distribution, [layer.shape for layer in self.layers], density)

    def _given(self, masks: Mapping[str, Tensor], numbers: Sequence[int]) -> list[Tensor]:
        names = [layer.name for layer in self.layers]
        missing = [name for name in names if name not in masks]
        if missing:
            raise ValueError(
                f"topology= has no mask for {', '.join(missing)}; it has {', '.join(masks)}"
            )
        for layer, number in zip(self.layers, numbers, strict=True):
            self._check_given(layer, masks[layer.name], number)
        total = sum(int(masks[name].sum()) for name in names)
        if total != sum(numbers):
            size = sum(layer.numel for layer in self.layers)
            raise ValueError(
                f"topology= has {total} active weights, sparsity={self.algorithm.sparsity} asks "
                f"for {sum(numbers)} of {size}: pass sparsity={1 - total / size:.6g}, or "
                "other masks"
            )
        return [masks[name] for name in names]

    def _check_given(self, layer: Layer, mask: Any, number: int) -> None:
        if not torch.is_tensor(mask) or mask.dtype != torch.bool:
            kind = mask.dtype if torch.is_tensor(mask) else type(mask).__name__
            raise TypeError(f"topology[{layer.name!r}] is {kind}, it must be a bool tensor")
        if tuple(mask.shape) != layer.shape:
            raise ValueError(
                f"topology[{layer.name!r}] has shape {tuple(mask.shape)}, the weight {layer.shape}"
            )
        # at constant density the masks themselves say how the weights are shared out
        if self.algorithm.needs_total_steps and int(mask.sum()) != number:
            raise ValueError(
                f"topology[{layer.name!r}] has {int(mask.sum())} active weights, "
                f"distribution={self.algorithm.distribution!r} asks for {number} at the start"
            )

    def due(self, step: int, total_steps: int | None, every: int) -> bool:
        """Whether the topology is updated right after optimizer step number ``step``."""
        return self.algorithm.due(step, total_steps, every)

    def plan(self, context: Context, total_steps: int | None, every: int) -> list[Change]:
        """The changes that one update makes, without making them."""
        takes_shards = getattr(self.algorithm.exchange, "takes_shards", False)
        if self._sharded and not (self._cut_by_rows and takes_shards):
            return self._plan_whole(context, total_steps, every)
        levels = self.algorithm.levels(context.step, total_steps, every)
        layers = [layer for layer in self.layers if self._takes_part(layer)]
        return plan(layers, self.algorithm, levels, context) if layers else []

    @property
    def _sharded(self) -> bool:
        return any(is_sharded(layer.weight) for layer in self.layers)

    @property
    def _cut_by_rows(self) -> bool:
        return cut_alike([layer.weight for layer in self.layers])

    def gathered(self) -> Pool:
        """The same with whole layers instead of shards."""
        return Pool(self.algorithm, [gathered(layer) for layer in self.layers])

    def _plan_whole(self, context: Context, total_steps: int | None, every: int) -> list[Change]:
        """The changes to shards, decided on whole layers by every process alike."""
        pool = self.gathered()
        ours = {layer.key: layer for layer in self.layers}
        changes = pool.plan(context, total_steps, every)
        for seen in pool.layers:
            if isinstance(seen, Gathered):
                ours[seen.key].extras |= seen.marks()
        return [
            dataclasses.replace(
                change,
                layer=ours[change.layer.key],
                mask=shard_like(change.mask, ours[change.layer.key].mask),
                carried=shard_like(change.carried, ours[change.layer.key].mask),
            )
            for change in changes
        ]

    def _takes_part(self, layer: Layer) -> bool:
        """A frozen layer rests; so does one without a gradient, unless its density must move."""
        if not layer.weight.requires_grad:
            return False
        if self.algorithm.needs_gradient and layer.gradient is None:
            if not self.algorithm.ramps:
                return False
            layer.gradient = torch.zeros_like(layer.weight, requires_grad=False)
        return True

    def is_finite(self) -> bool:
        """Whether everything that an update ranks is a number."""
        return all(
            values is None or all_finite(values)
            for layer in self.layers
            for values in (weights_of(layer), layer.gradient)
        )

    def is_last(self, step: int, total_steps: int | None, every: int) -> bool:
        """Whether the density has to move at this update, and can: the weights are finite."""
        if total_steps is None or not self.algorithm.ramps:
            return False
        last = self.algorithm.ends_at(step, total_steps, every)
        return last and all(all_finite(weights_of(layer)) for layer in self.layers)


def check_length(algorithm: Algorithm, total_steps: int | None, every: int) -> None:
    """Raise ValueError where a schedule cannot run its course; warn where nothing would happen."""
    if total_steps is None:
        if algorithm.needs_total_steps:
            raise ValueError(
                f"algo={algorithm.name!r} changes its density over training: pass total_steps=, "
                "the number of optimizer steps (epochs * len(loader))"
            )
        return
    algorithm.check_length(total_steps, every)
    if algorithm.exchanges and algorithm.last_step(total_steps, every) < 1:
        warnings.warn(
            f"update_every={every} leaves no topology update within total_steps={total_steps}: the "
            "topology stays as it starts; lower update_every",
            stacklevel=5,
        )


def check_names(topology: Any, layers: Sequence[Layer]) -> None:
    """Raise ValueError for masks given to what is no sparse layer: most likely a misspelt name."""
    if not isinstance(topology, Mapping):
        return
    names = [layer.name for layer in layers]
    for name in topology:
        if name not in names:
            near = difflib.get_close_matches(str(name), names, n=2, cutoff=0.0)
            raise ValueError(
                f"topology= has a mask for {name!r}, which is no sparse layer; near: "
                f"{', '.join(near)}"
            )


def weights_of(layer: Layer) -> Tensor:
    """Those that are not zero, and perhaps the others."""
    return layer.weight.detach() if layer.values is None else layer.values


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite: their sum tells, unless it overflows by itself."""
    factors = factors_of(values)
    if factors is not None and factors.is_finite():
        return True
    if bool(whole(values.sum()).isfinite()):
        return True
    return bool(whole(values.sum(dtype=torch.float64)).isfinite())
