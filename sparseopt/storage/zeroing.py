"""Exact zeros at inactive entries, at the speed of memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["zero_inactive"]

INTEGERS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}
CHUNK = 1 << 18  # entries; the widened mask of one chunk stays in the cache


def zero_inactive(values: Tensor, mask: Tensor) -> Tensor:
    """Zero the entries outside the mask, in place, whatever they hold.

    A product with the mask would keep NaN and infinity, and ``masked_fill_`` is 4 to 20 times
    slower than memory on a CPU. There the bits are combined with a mask of ones or zeros instead.

    Args:
        values: Tensor of any shape, changed in place.
        mask: Bool tensor of the same shape, true where values stay.

    Returns:
        ``values``.

    Example:
        >>> zero_inactive(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True]))
        tensor([1., 0., 3.])
    """
    whole = INTEGERS.get(values.dtype)
    plain = type(values) in (Tensor, nn.Parameter) and values.device.type == "cpu"
    if whole is None or not plain or torch.compiler.is_compiling():
        return values.masked_fill_(~mask, 0.0)
    bits, keep = values.view(whole), mask.view(torch.int8)
    if not (bits.is_contiguous() and keep.is_contiguous()):
        bits.bitwise_and_(keep.neg())
        return values
    for part, kept in zip(bits.view(-1).split(CHUNK), keep.view(-1).split(CHUNK), strict=True):
        part.bitwise_and_(kept.neg())  # true is 1, minus one is all bits set
    return values
