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

__all__ = ["compress", "count", "positions"]


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
    if flat.numel() > CHUNK and 10 * count(flat) <= flat.numel():
        return few_positions(flat.numpy())
    return torch.from_numpy(np.flatnonzero(flat.numpy()))


CHUNK = 1 << 17  # entries; what is made of them stays in the cache


def few_positions(mask: np.ndarray[Any, Any]) -> Tensor:
    """The same where a tenth or less is true: eight entries at a time, then those of the eights.

    There numpy looks for one true entry after another, which takes up to three times as long.
    """
    found = []
    for start in range(0, len(mask), CHUNK):
        part = mask[start : start + CHUNK]
        eights = part[: len(part) // 8 * 8].view(np.uint64)
        some = np.flatnonzero(eights != 0)
        inside = np.flatnonzero(eights[some].view(np.bool_))
        found.append((some[inside >> 3] << 3) + (inside & 7) + start)
        found.append(np.flatnonzero(part[len(eights) * 8 :]) + len(eights) * 8 + start)
    return torch.from_numpy(np.concatenate(found))


def compress(values: Tensor, keep: Tensor) -> Tensor:
    """The values where ``keep`` is true, both one-dimensional.

    >>> compress(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]))
    tensor([5, 7])
    """
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:
        return torch.from_numpy(np.compress(keep.numpy(), values.detach().numpy()))
    return values[keep]
