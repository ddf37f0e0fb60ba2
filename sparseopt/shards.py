"""Tensors of which this process holds a part (DTensor): FSDP2's parameters, and masks like them.

Masks, moments and whatever a recipe keeps have the parameter's own placement, so that a step
touches local memory only. A topology update works on whole layers, gathered for its duration: every
process then takes the same decisions as a single one would.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .layers import Layer

__all__ = [
    "gathered",
    "is_sharded",
    "local",
    "refuse_placement",
    "shard_like",
    "version",
    "whole",
]


def is_sharded(tensor: Any) -> bool:
    """Whether it is a DTensor; without importing what makes them."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Any) -> Any:
    """The full tensor, gathered from (or summed over) all processes; an ordinary one as it is."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Any) -> Any:
    """This process's part, in the same memory; an ordinary tensor as it is."""
    if not is_sharded(tensor):
        return tensor
    with torch.no_grad():  # the part itself, with its count of writes, not a view
        return tensor.to_local()


def version(tensor: Tensor) -> int:
    """How often it was written in place; FSDP2 adds to the local part of a gradient."""
    return local(tensor)._version


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """The tensor placed as ``like`` is: its part is taken from the whole that each process has."""
    if not is_sharded(like):
        return whole(tensor)
    if is_sharded(tensor):
        if placement(tensor) == placement(like):
            return tensor
        tensor = whole(tensor)
    from torch.distributed.tensor import distribute_tensor

    mesh, places = placement(like)
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, mesh, places, src_data_rank=None)  # nothing is sent


def placement(tensor: Any) -> tuple[Any, Any]:
    return tensor.device_mesh, tuple(tensor.placements)


def gathered(layer: Layer) -> Layer:
    """The whole layer, for a topology update; the layer itself where nothing is sharded."""
    if not is_sharded(layer.weight):
        return layer
    seen = copy.copy(layer)
    seen.weight = whole(layer.weight).requires_grad_(layer.weight.requires_grad)
    seen.mask, seen.gradient = whole(layer.mask), whole(layer.gradient)
    seen.extras = {name: whole(value) for name, value in layer.extras.items()}
    return seen


def refuse_placement(name: str, weight: Any) -> None:
    """Raise TypeError for shards other than those of ``fully_shard`` on one dimension."""
    if not is_sharded(weight):
        return
    mesh, places = placement(weight)
    plain = all(type(place).__name__ in ("Shard", "Replicate") for place in places)
    if mesh.ndim != 1 or not plain:
        raise TypeError(
            f"parameter {name!r} is a DTensor with placements {places} on a mesh of "
            f"{mesh.ndim} dimensions: only one-dimensional meshes are supported (fully_shard); "
            "exclude the parameter"
        )
