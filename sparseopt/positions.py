"""Where a mask is true, fast: counts, positions, and what is picked by them.

On a CPU numpy does these 5 to 50 times faster than the torch operators of the same meaning; the
tensors share memory, so nothing is copied for it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .shards import is_sharded, whole

__all__ = ["compress", "count", "merge", "positions"]


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
    if flat.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flat.numpy()))
    return flat.nonzero().squeeze(1)


def compress(values: Tensor, keep: Tensor) -> Tensor:
    """The values where ``keep`` is true, both one-dimensional.

    >>> compress(torch.tensor([5, 6, 7]), torch.tensor([True, False, True]))
    tensor([5, 7])
    """
    if values.device.type == "cpu" and values.dtype != torch.bfloat16:
        return torch.from_numpy(np.compress(keep.numpy(), values.detach().numpy()))
    return values[keep]


def merge(one: Tensor, other: Tensor) -> Tensor:
    """Two ascending vectors as one.

    >>> merge(torch.tensor([1, 4]), torch.tensor([2, 9]))
    tensor([1, 2, 4, 9])
    """
    both = torch.cat([one, other])
    if both.device.type != "cpu":
        return both.sort().values
    return torch.from_numpy(np.sort(both.numpy(), kind="stable"))  # finds and merges the two runs
