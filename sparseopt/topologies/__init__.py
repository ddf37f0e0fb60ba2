"""Which weights are active at the start?

A topology is a callable ``(layer, nnz, generator) -> mask`` that returns a bool tensor of the shape
of ``layer.weight`` with exactly ``nnz`` entries true, drawing from ``generator`` alone. Those with
parameters are frozen dataclasses with the names of functions, so that they print as they are
written: ``bipartite_small_world(beta=0.5)``. `snip` and `grasp` rank all layers together instead:
they have a method ``masks(layers, nnz) -> dict of name to mask``.

==============================  ===========================================  ====================
name                            what it links                                asks for
==============================  ===========================================  ====================
``random``                      a uniform draw
``magnitude``                   the largest weights
``bipartite_small_world``       ring neighbours, partly rewired (``bsw``)
``bipartite_receptive_field``   near neighbours more often (``brf``)
``constant_fan_in``             the same number at random in every row       nnz a multiple of rows
``csti(data)``                  correlated inputs                            data
``n_of_m(n, m)``                n of every m inputs in a row at random       inputs in groups of m
``snip(loss)``                  what the loss depends on most                a batch
``grasp(loss)``                 what the gradient's norm depends on most     a batch, twice
==============================  ===========================================  ====================

`resolve` turns a name, a dict of masks or a callable into a topology; `masks` applies one to a list
of layers. `swi_` sets the weights, not the topology: an explicit call.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..gathered import seen_by
from ..layers import Layer
from ..positions import count
from ..shards import is_sharded
from .bipartite import bipartite_receptive_field, bipartite_small_world
from .correlation import csti
from .initial import swi_
from .plain import constant_fan_in, magnitude, n_of_m, random
from .saliency import grasp, snip

__all__ = [
    "available",
    "bipartite_receptive_field",
    "bipartite_small_world",
    "constant_fan_in",
    "csti",
    "given",
    "grasp",
    "magnitude",
    "masks",
    "n_of_m",
    "random",
    "resolve",
    "snip",
    "swi_",
]

Topology = Callable[[Layer, int, torch.Generator], Tensor]


@runtime_checkable
class GlobalTopology(Protocol):
    """A topology that ranks the weights of all layers together."""

    def masks(self, layers: Sequence[Layer], nnz: int) -> dict[str, Tensor]: ...


NAMED: dict[str, Topology] = {
    "random": random,
    "magnitude": magnitude,
    "bipartite_small_world": bipartite_small_world(),
    "bsw": bipartite_small_world(),
    "bipartite_receptive_field": bipartite_receptive_field(),
    "brf": bipartite_receptive_field(),
    "constant_fan_in": constant_fan_in,
}
TO_CALL = {
    "csti": "csti(data), with a tensor (samples, features) or a loader of batches",
    "n_of_m": "n_of_m(n, m), for example n_of_m(2, 4)",
    "snip": "snip(loss), with a function of no arguments that returns the loss on a batch",
    "grasp": "grasp(loss), with a function of no arguments that returns the loss on a batch",
}


def available() -> list[str]:
    """The topologies that go by name alone.

    Example:
        >>> "bsw" in available()
        True
    """
    return sorted(NAMED)


def resolve(topology: Any) -> Topology | GlobalTopology:
    """A topology from its name, from masks, or from a topology.

    Args:
        topology: a name of `available`, a dict of layer name to bool mask, or a topology.

    Returns:
        A callable ``(layer, nnz, generator) -> mask``, or an object with a method
        ``masks(layers, nnz)`` (`snip`, `grasp`).

    Raises:
        ValueError: if the name is not known, or stands for a topology that needs arguments.
        TypeError: if ``topology`` is none of these.

    Example:
        >>> resolve("bsw")
        bipartite_small_world(beta=0.25)
    """
    if isinstance(topology, str):
        return _by_name(topology)
    if isinstance(topology, Mapping):
        return given(dict(topology))
    if isinstance(topology, type):
        raise TypeError(f"topology={topology.__name__} is a class; call it to make a topology")
    if callable(topology) or isinstance(topology, GlobalTopology):
        return topology
    raise TypeError(
        f"topology={topology!r} must be a name ({', '.join(available())}), a dict of layer name "
        "to mask, or a callable (layer, nnz, generator) -> mask"
    )


def masks(
    topology: Any,
    layers: Sequence[Layer],
    numbers: Sequence[int],
    generator: Callable[[Layer], torch.Generator],
) -> list[Tensor]:
    """The masks of all layers under one topology, with exactly the numbers asked for.

    A layer whose number is all of its weights is dense, whatever the topology.

    Args:
        topology: anything `resolve` takes.
        layers: objects with ``name`` and ``weight``.
        numbers: active weights per layer; `snip` and `grasp` share out their sum themselves.
        generator: gives the random stream of a layer.

    Returns:
        A bool mask for every layer, in their order.

    Raises:
        TypeError: if a topology returns something other than bool tensors.
        ValueError: if it returns a mask of another shape or count, or cannot serve a layer.

    Example:
        >>> from types import SimpleNamespace
        >>> layers = [SimpleNamespace(name="fc", weight=torch.zeros(2, 3))]
        >>> masks("magnitude", layers, [2], lambda layer: torch.Generator())
        [tensor([[ True,  True, False],
                [False, False, False]])]
    """
    topology = resolve(topology)
    if isinstance(topology, GlobalTopology):
        return _masks_across(topology, layers, sum(numbers))
    return [
        _mask(topology, layer, nnz, generator) for layer, nnz in zip(layers, numbers, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class given:
    """The topology that is handed in: a bool mask for every layer, by name.

    Example:
        >>> from types import SimpleNamespace
        >>> start = given({"fc": torch.eye(2, dtype=torch.bool)})
        >>> start(SimpleNamespace(name="fc", weight=torch.zeros(2, 2)), 2, torch.Generator())
        tensor([[ True, False],
                [False,  True]])
    """

    by_name: Mapping[str, Tensor] = field(repr=False)

    def __call__(self, layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
        if layer.name not in self.by_name:
            near = difflib.get_close_matches(layer.name, self.by_name, cutoff=0.0)
            raise ValueError(f"topology= has no mask for {layer.name!r}; near: {near}")
        mask = self.by_name[layer.name]
        return mask.to(layer.weight.device) if isinstance(mask, Tensor) else mask


def _by_name(name: str) -> Topology:
    if name in NAMED:
        return NAMED[name]
    if name in TO_CALL:
        raise ValueError(f"topology={name!r} needs more than its name: pass {TO_CALL[name]}")
    near = difflib.get_close_matches(name, [*NAMED, *TO_CALL], cutoff=0.0)
    raise ValueError(
        f"topology={name!r} is not one of {', '.join(available())}; near: {', '.join(near)}; or "
        "pass a dict of layer name to mask, or a callable (layer, nnz, generator) -> mask"
    )


def _mask(
    topology: Topology, layer: Layer, nnz: int, generator: Callable[[Layer], torch.Generator]
) -> Tensor:
    """One layer's mask, checked: the callable may be the user's own."""
    if nnz == layer.weight.numel():
        return torch.ones_like(layer.weight, dtype=torch.bool, requires_grad=False)
    mask = topology(seen_by(topology, layer), nnz, generator(layer))
    _check_kind(topology, layer, mask)
    got, wanted = (tuple(mask.shape), count(mask)), (tuple(layer.weight.shape), nnz)
    if got != wanted:
        raise ValueError(
            f"topology {topology!r} gave {layer.name!r} a mask of shape {got[0]} with {got[1]} "
            f"active weights; it must have shape {wanted[0]} with {wanted[1]}"
        )
    return mask


def _masks_across(topology: GlobalTopology, layers: Sequence[Layer], nnz: int) -> list[Tensor]:
    """The masks that one ranking over all layers gives, checked: it may be the user's own."""
    _refuse_shards(topology, layers)
    found = topology.masks(layers, nnz)
    for layer in layers:
        mask: Any = found.get(layer.name)
        _check_kind(topology, layer, mask)
        if tuple(mask.shape) != tuple(layer.weight.shape):
            raise ValueError(
                f"topology {topology!r} gave {layer.name!r} a mask of shape {tuple(mask.shape)}; "
                f"the weight has {tuple(layer.weight.shape)}"
            )
    total = sum(count(found[layer.name]) for layer in layers)
    if total != nnz:
        raise ValueError(
            f"topology {topology!r} gave masks with {total} active weights together; return {nnz}"
        )
    return [found[layer.name] for layer in layers]


def _check_kind(topology: Any, layer: Layer, mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"topology {topology!r} gave {kind} for {layer.name!r}, not a bool tensor")


def _refuse_shards(topology: GlobalTopology, layers: Sequence[Layer]) -> None:
    """Raise ValueError where gradients by weight cannot be had: FSDP2 hides the whole weights."""
    if any(is_sharded(layer.weight) for layer in layers):
        raise ValueError(
            f"topology {topology!r} cannot be made from sharded weights: make a SparseOptimizer "
            "before fully_shard, and pass the masks of its layers as topology={name: mask}"
        )
