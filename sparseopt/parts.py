"""Tensors laid end to end, of which this process may hold a part: what a selection asks of them.

Under FSDP2 a process has some rows of every tensor. The best k of all are found without bringing
the rows together: the processes add up how many values begin with which bits, and so narrow the
k-th largest down bit by bit; of values equal to it they exchange how many each has. What is sent
depends on the type of the values, not on how many there are. One process has everything and sends
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .positions import count
from .shards import first_row, is_sharded, local, part_of, row_of_each, sum_over

__all__ = ["Parts", "divided"]

BITS = 8  # of a value that one round looks at: 2 KiB are sent in it, and float32 takes 4 rounds


@dataclass(frozen=True)
class Parts:
    """What this process has of tensors laid end to end: one part of each tensor.

    Attributes:
        numel: Entries of all tensors in all processes.
        starts: Position of the first entry of each part among all of these.
        sizes: Entries of each part.
        like: A sharded tensor, which knows the other processes; None where this one has it all.
    """

    numel: int
    starts: Sequence[int]
    sizes: Sequence[int]
    like: Any = None

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> Parts:
        """The parts of tensors that are whole, or all cut by rows over the same processes."""
        numbers = [tensor.numel() for tensor in tensors]
        if not is_sharded(tensors[0]):
            return cls(sum(numbers), [0], [sum(numbers)])
        starts = [
            before + first_row(tensor) * math.prod(tensor.shape[1:])
            for before, tensor in zip(accumulate([0, *numbers]), tensors, strict=False)
        ]
        sizes = [local(tensor).numel() for tensor in tensors]
        return cls(sum(numbers), starts, sizes, tensors[0])

    def among(self, candidates: Tensor) -> Parts:
        """The candidates alone, counted through in the order of their positions."""
        if self.like is None:
            number = count(candidates)
            return Parts(number, [0], [number])
        sizes = [count(part) for part in candidates.split(self.sizes)]
        starts, total = self._numbered(sizes)
        return Parts(total, starts, sizes, self.like)

    def _numbered(self, sizes: Sequence[int]) -> tuple[list[int], int]:
        """Where each part starts if each process has parts of these sizes; the sum of them all."""
        table = row_of_each(torch.tensor(sizes), self.like).tolist()
        mine = self.like.device_mesh.get_local_rank()
        befores = accumulate([0, *map(sum, zip(*table, strict=True))])
        earlier = [sum(column[:mine]) for column in zip(*table, strict=True)]
        starts = [before + here for before, here in zip(befores, earlier, strict=False)]
        return starts, sum(map(sum, table))

    def total(self, number: int) -> int:
        """The sum of a number over all processes."""
        return number if self.like is None else int(sum_over(torch.tensor([number]), self.like))

    def here(self, positions: Tensor) -> Tensor:
        """Those of the positions among all entries that are here, as places in what is here."""
        if self.like is None:
            return positions
        found, before = [], 0
        for start, size in zip(self.starts, self.sizes, strict=True):
            inside = positions[(positions >= start) & (positions < start + size)]
            found.append(inside - start + before)
            before += size
        return torch.cat(found)

    def last(self, marked: Tensor, number: int) -> Tensor:
        """Where here are the last ``number`` of all marked entries of all processes."""
        places = marked.nonzero().view(-1)
        if self.like is None:
            return places[-number:]
        among = self.among(marked)
        kept = [
            min(max(among.numel - number - start, 0), size)  # are not among the last
            for start, size in zip(among.starts, among.sizes, strict=True)
        ]
        ours = zip(places.split(among.sizes), kept, strict=True)
        return torch.cat([part[first:] for part, first in ours])

    def kth_largest(self, values: Tensor, k: int) -> float:
        """The k-th largest of all processes' values, exactly; float32 or float64, without NaN."""
        keys = ordered(values)
        width = keys.element_size() * 8
        found = 0
        for shift in range(width - BITS, -1, -BITS):
            # the highest bits are signed: moved up to count from 0
            offset = 1 << (BITS - 1) if shift == width - BITS else 0
            digits = ((keys >> shift) + offset) & ((1 << BITS) - 1)
            numbers = sum_over(torch.bincount(digits, minlength=1 << BITS), self.like)
            above = numbers.flip(0).cumsum(0)
            larger = int((above < k).sum())
            k -= int(above[larger - 1]) if larger else 0
            digit = (1 << BITS) - 1 - larger
            keys = keys[digits == digit]
            found |= (digit - offset) << shift
        return float(unordered(torch.tensor(found, dtype=keys.dtype)))


def divided(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """What is here, end to end, as one tensor for each of ``tensors``, of its shape and shards."""
    pieces = flat.split([local(tensor).numel() for tensor in tensors])
    return [
        part_of(piece.view(local(tensor).shape), tensor)
        for piece, tensor in zip(pieces, tensors, strict=True)
    ]


def ordered(values: Tensor) -> Tensor:
    """Whole numbers that compare as the values do (-0.0 just below 0.0)."""
    bits = values.view(torch.int64 if values.element_size() == 8 else torch.int32)
    return bits ^ ((bits >> (8 * bits.element_size() - 1)) & torch.iinfo(bits.dtype).max)


def unordered(keys: Tensor) -> Tensor:
    """The inverse of ``ordered``.

    >>> unordered(ordered(torch.tensor([-1.5, 0.0, 2.0])))
    tensor([-1.5000,  0.0000,  2.0000])
    """
    bits = keys ^ ((keys >> (8 * keys.element_size() - 1)) & torch.iinfo(keys.dtype).max)
    return bits.view(torch.float64 if keys.element_size() == 8 else torch.float32)
