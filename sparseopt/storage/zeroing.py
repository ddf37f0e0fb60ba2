"""Exact zeros at inactive entries, at the speed of memory."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..layers import Layer
from ..shards import is_sharded, local
from ..watched import Watched, untouched
from .active_gradient import ActiveGradient, holds_active_only, of_values

__all__ = [
    "INTEGERS",
    "flat",
    "is_here",
    "memory_order",
    "same_where",
    "zero_at_sentinels",
    "zero_inactive",
]

INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
CHUNK = 1 << 19  # entries; the widened mask of one chunk stays in the cache


def zero_inactive(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the entries outside the mask, in place, whatever they hold.

    A product with the mask would keep NaN and infinity, and ``masked_fill_`` is 4 to 20 times
    slower than memory on a CPU. There the bits, taken for integers, are multiplied by it instead.

    Args:
        values: Tensor of any shape, changed in place.
        mask: Bool tensor of the same shape, true where values stay.

    Returns:
        ``values``.

    Example:
        >>> zero_inactive(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True]))
        tensor([1., 0., 3.])
    """
    if is_sharded(values):
        zero_inactive(local(values), local(mask))
        return values
    if isinstance(values, ActiveGradient) and holds_active_only(values):
        zero_inactive(of_values(values), mask.reshape(-1).index_select(0, values.held.index))
        return values
    bits = bits_of(values)
    if bits is None:
        return values.masked_fill_(~mask, 0.0)
    keep = mask.view(torch.int8)
    if not (bits.is_contiguous() and keep.is_contiguous()):
        bits.mul_(keep)
        return values
    for part, kept in zip(bits.view(-1).split(CHUNK), keep.view(-1).split(CHUNK), strict=True):
        part.mul_(kept)
    return values


def same_where(one: Tensor, other: Tensor, mask: Tensor) -> bool:
    """Whether two tensors hold the same wherever the mask is true.

    >>> one, other = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    >>> same_where(one, other, torch.tensor([True, False]))
    True
    """
    bits, others = bits_of(one), bits_of(other)
    if bits is None or others is None:
        return not bool((one.ne(other) & mask).any())
    if not (bits.is_contiguous() and others.is_contiguous() and mask.is_contiguous()):
        return not bool((bits.ne(others) & mask).any())
    flats = [values.view(-1).numpy() for values in (bits, others, mask)]
    for start in range(0, one.numel(), CHUNK):
        first, second, here = (values[start : start + CHUNK] for values in flats)
        if np.logical_and(first != second, here).any():
            return False
    return True


def bits_of(values: Tensor) -> Tensor | None:
    """The same memory as integers; None where another class, a device or a compiler has it."""
    whole = INTEGERS.get(values.dtype)
    plain = type(values) in (Tensor, nn.Parameter, Watched) and values.device.type == "cpu"
    if whole is None or not plain or torch.compiler.is_compiling():
        return None
    return values.view(whole)


def is_here(values: Tensor) -> bool:
    """Whether they can be looked at without waiting for another device."""
    return values.device.type == "cpu"


WHOLE = 1 << 16  # a layer with no more entries is looked at entirely
WINDOWS = 32  # places of a larger one that are looked at in a turn: each is a few cache misses
WIDTH = 64  # entries at each of them


def zero_at_sentinels(values: Tensor, layer: Layer, turn: int) -> bool:
    """Whether a sample of the inactive entries is zero, in a fraction of a millisecond.

    Guards against writes that autograd does not count (``weight.data.copy_(average)``). Every turn
    looks at other places of a large layer, evenly spread: at all of them within
    ``numel / (WINDOWS * WIDTH)`` turns, but for the ends, which take as many again. False too where
    ``values`` has another layout than the weight, or lies on another device: to be told, training
    would have to wait for that device in every step.
    """
    weight, mask = layer.weight, layer.mask
    if is_sharded(weight):
        values, weight, mask = local(values), local(weight), local(mask)
    if not is_here(values) or values.stride() != weight.stride() or values.is_sparse:
        return False
    with untouched():  # only read
        seen, active = sample(flat(values, weight), turn), sample(flat(mask, weight), turn)
        bits = bits_of(seen.detach())
    if bits is None:
        return not bool(seen.ne(0).gt(active).any())
    return not np.greater(bits.numpy() != 0, active.numpy()).any()


def sample(values: Tensor, turn: int) -> Tensor:
    """What is looked at of a vector in this turn."""
    if values.numel() <= WHOLE:
        return values
    between = values.numel() // WINDOWS
    lap, place = divmod(turn, -(-between // WIDTH))
    # what does not divide is left out at the end in one lap, at the beginning in the next
    first = values.numel() - WINDOWS * between if lap % 2 else 0
    first += min(place * WIDTH, between - WIDTH)
    return values.as_strided((WINDOWS, WIDTH), (between, 1), values.storage_offset() + first)


def memory_order(weight: Tensor) -> list[int]:
    """Dimensions from the outermost to the innermost in memory (channels_last differs)."""
    strides = weight.stride()
    return sorted(range(weight.ndim), key=lambda dim: -strides[dim])


def flat(tensor: Tensor, like: Tensor) -> Tensor:
    """One-dimensional, in the memory order of ``like``; a view where the layouts agree."""
    if tensor.ndim == 1 or (tensor.is_contiguous() and like.is_contiguous()):
        return tensor.view(-1)
    return tensor.permute(memory_order(like)).reshape(-1)
