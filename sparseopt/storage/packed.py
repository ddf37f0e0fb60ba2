"""The active values of a layer, taken out of its weight and put back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import Layer
from ..watched import is_watched
from .deferred import awaits, stamp
from .zeroing import INTEGERS, flat, memory_order

__all__ = ["Packed", "at", "can_pack", "gather", "scatter", "unflat"]


@dataclass
class Packed:
    """The active values of one layer, in the order in which they lie in memory.

    For a contiguous weight that is row-major order, so that ``index`` is the layout of CSR too.
    """

    index: Tensor
    values: nn.Parameter
    strides: tuple[int, ...]  # of the weight
    seen: tuple[int, int] | None = None  # the weight whose active entries the values were last
    left: tuple[int, int] | None = None  # the same, as the last step left it
    clean: bool = False  # all inactive entries were looked at, and nobody wrote since

    def unwritten(self, weight: Tensor) -> bool:
        """Whether nobody can have written the weight since the step that left these values."""
        if awaits(weight, self.values, self.index):
            return True
        return is_watched(weight) and self.left == stamp(weight)

    def has_room(self, index: Tensor, weight: Tensor) -> bool:
        """Whether as many other active weights fit in: compiled steps know values and state."""
        same = weight.dtype == self.values.dtype and weight.device == self.values.device
        return same and len(index) == len(self.index)

    def placed(self, index: Tensor) -> Tensor:
        """Other positions, in the memory of these where CUDA graphs know it.

        On the CPU gradients and matrices that know their topology by its index may outlive it.
        """
        return self.index.copy_(index) if self.index.is_cuda else index

    def lies_as(self, weight: Tensor) -> bool:
        """Whether the weight lies in memory as it did: in the same order, on the same device."""
        return self.strides == weight.stride() and self.values.device == weight.device


def can_pack(layer: Layer) -> bool:
    """Whether the weight is one block of memory that can be viewed as one-dimensional."""
    weight = layer.weight
    if type(weight) not in (Tensor, nn.Parameter):
        return False
    return bool(weight.permute(memory_order(weight)).is_contiguous())


def at(values: Tensor, packed: Packed | None) -> Tensor:
    """One-dimensional ``values`` at the packed places; all of them where nothing is packed."""
    return values if packed is None else values.index_select(0, packed.index)


def unflat(values: Tensor, like: Tensor) -> Tensor:
    """The inverse of ``flat``: the shape and memory order of ``like``."""
    order = memory_order(like)
    outer_first = values.view([like.shape[dim] for dim in order])
    return outer_first.permute([order.index(dim) for dim in range(like.ndim)])


def gather(source: Tensor, like: Tensor, index: Tensor, out: Tensor) -> None:
    torch.index_select(flat(source, like), 0, index, out=out)


def scatter(target: Tensor, index: Tensor, values: Tensor) -> None:
    places, whole = flat(target, target), INTEGERS.get(target.dtype)
    many = len(index) > SHARE * target.numel()
    if many or whole is None or target.device.type != "cpu":
        places.scatter_(0, index, values)
        return
    # a tenth to a third faster there; by the bits, because numpy has no bfloat16
    places.view(whole).numpy()[index.numpy()] = values.view(whole).numpy()
    torch.autograd.graph.increment_version(target)


SHARE = 0.125  # of all entries; scatter_ writes more of them up to a quarter faster than numpy
