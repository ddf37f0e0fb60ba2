"""Where a mask is true, fast: counts, positions, and what is picked by them.

On a CPU numpy does these 5 to 50 times faster than the torch operators of the same meaning; the
tensors share memory, so nothing is copied for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .shards import is_sharded, whole

__all__ = ["compress", "count", "positions", "true_entries"]


def count(mask: Tensor) -> int:
    """How many entries are true.

    >>> count(torch.tensor([True, False, True]))
    2
    """
    if is_sharded(mask):
        return int(whole(mask.sum()))
    if mask.device.type == "cpu":
        return int(np.count_nonzero(mask.detach().numpy()))
    return int(torch.count_nonzero(mask))


def positions(mask: Tensor) -> Tensor:
    """Positions of the true entries in row-major order, ascending; int64.

    >>> positions(torch.tensor([[True, False], [True, True]]))
    tensor([0, 2, 3])
    """
    flat = mask.reshape(-1)
    if flat.device.type != "cpu":
        return flat.nonzero().squeeze(1)
    entries: np.ndarray[Any, Any] = flat.contiguous().numpy()
    many = len(entries) < FEW or 10 * np.count_nonzero(entries) > len(entries)
    return torch.from_numpy(np.flatnonzero(entries) if many else true_entries(entries))


FEW = 1 << 17  # entries; of fewer, numpy finds the true ones as fast


def true_entries(mask: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Positions in a numpy array of which a tenth or less is true: eight entries at a time.

    There numpy looks for one true entry after another, which takes up to three times as long; its
    loop without branches, which it takes otherwise, is made to serve by true entries at the end.
    """
    whole = len(mask) // 8 * 8
    eights = mask[:whole].view(np.uint64)
    more = len(eights) // 8 + 1
    filled = np.ones(len(eights) + more, dtype=np.bool_)
    np.not_equal(eights, 0, out=filled[:-more])
    some = np.flatnonzero(filled)[:-more]
    inside = np.flatnonzero(eights[some].view(np.bool_))
    found = (some[inside >> 3] << 3) + (inside & 7)
    return np.append(found, np.flatnonzero(mask[whole:]) + whole) if len(mask) % 8 else found


def compress(values: Tensor, keep: Tensor) -> Tensor:
    """The values where ``keep`` is true, both one-dimensional.

    >>> compress(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]))
    tensor([5, 7])
    """
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:
        return torch.from_numpy(np.compress(keep.numpy(), values.detach().numpy()))
    return values[keep]
