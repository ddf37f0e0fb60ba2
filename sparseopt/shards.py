"""Tensors of which this process holds a part (DTensor): FSDP2's parameters, and masks like them.

Masks, moments and whatever a recipe keeps have the parameter's own placement, so that a step
touches local memory only. So does a topology update, as far as its parts declare with
``takes_shards`` that a part of the rows is enough for them; the others see one whole layer at a
time, of which only what they look at is gathered. All processes take the decisions that a single
one would.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = [
    "cut_alike",
    "end_to_end",
    "first_row",
    "is_sharded",
    "local",
    "part_of",
    "refuse_placement",
    "row_of_each",
    "shard_like",
    "sum_over",
    "takes_shards",
    "version",
    "whole",
]

# DTensor has no masked_fill_ up to 2.9; with 2.10 and gloo, processes sometimes abort at their end
OLDEST_TORCH = (2, 11)

Part = TypeVar("Part")


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


def part_of(value: Tensor, like: Any) -> Tensor:
    """This process's part, as a tensor of the shape and the shards of ``like``."""
    if not is_sharded(like):
        return value
    from torch.distributed.tensor import DTensor

    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(value, *placement(like), shape=like.shape, stride=stride)


# --- rows -----------------------------------------------------------------------------------------


def cut_alike(tensors: Sequence[Any]) -> bool:
    """Whether all tensors are cut by rows, over the same processes."""
    if not all(is_sharded(tensor) for tensor in tensors):
        return False
    mesh, places = placement(tensors[0])
    return places[0].is_shard(0) and all(placement(one) == (mesh, places) for one in tensors)


def first_row(tensor: Any) -> int:
    """Number of the first row that is here; the number of all rows where none is."""
    mesh = tensor.device_mesh
    each = -(-len(tensor) // mesh.size())  # as torch.chunk cuts
    return min(each * mesh.get_local_rank(), len(tensor))


def sum_over(numbers: Tensor, like: Any) -> Tensor:
    """The sum over the processes of ``like``."""
    numbers = numbers.to(like.device, copy=True)
    torch.distributed.all_reduce(numbers, group=like.device_mesh.get_group())
    return numbers


def row_of_each(numbers: Tensor, like: Any) -> Tensor:
    """One row from each of the processes of ``like``."""
    numbers, mesh = numbers.to(like.device), like.device_mesh
    rows = [torch.empty_like(numbers) for _ in range(mesh.size())]
    torch.distributed.all_gather(rows, numbers, group=mesh.get_group())
    return torch.stack(rows)


def end_to_end(values: Tensor, like: Any) -> Tensor:
    """The vectors of all the processes of ``like``, of any lengths, one after the other."""
    if not is_sharded(like):
        return values
    lengths = row_of_each(torch.tensor(len(values)), like).tolist()
    padded = values.new_zeros(max(lengths))
    padded[: len(values)] = values
    rows = row_of_each(padded, like)
    return torch.cat([row[:length] for row, length in zip(rows, lengths, strict=True)])


def takes_shards(part: Part) -> Part:
    """Declare that a function, or the objects of a class, give right answers for sharded layers."""
    part.takes_shards = True  # type: ignore[attr-defined]
    return part


# --- what is refused ------------------------------------------------------------------------------


def refuse_placement(name: str, weight: Any) -> None:
    """Raise TypeError for shards other than those of ``fully_shard`` on one dimension.

    RuntimeError where this torch is too old to work with shards.
    """
    if not is_sharded(weight):
        return
    if tuple(map(int, torch.__version__.split(".")[:2])) < OLDEST_TORCH:
        raise RuntimeError(
            f"parameter {name!r} is sharded, which needs torch "
            f"{'.'.join(map(str, OLDEST_TORCH))} or newer, not {torch.__version__}"
        )
    mesh, places = placement(weight)
    plain = all(type(place).__name__ in ("Shard", "Replicate") for place in places)
    if mesh.ndim != 1 or not plain:
        raise TypeError(
            f"parameter {name!r} is a DTensor with placements {places} on a mesh of "
            f"{mesh.ndim} dimensions: only one-dimensional meshes are supported (fully_shard); "
            "exclude the parameter"
        )
