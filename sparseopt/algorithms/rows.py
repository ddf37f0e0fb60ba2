"""Exchanges that fill a weight row by row: what SRigL and N:M share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Layer
from ..ranking import scored
from ..scores import Context
from ..shards import is_sharded, local, part_of, shard_like
from .algorithm import Algorithm

__all__ = ["Rows", "top_in_rows", "worths"]


def top_in_rows(score: Tensor, numbers: Tensor | int) -> Tensor:
    """The best entries of every row, as many as its number; ties by position, never ``-inf``.

    >>> top_in_rows(torch.tensor([[0.1, 0.9, 0.5, 0.5], [0.3, 0.3, 0.3, 0.0]]), 2).int()
    tensor([[0, 1, 1, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """
    if is_sharded(score):
        return part_of(top_in_rows(local(score), local(numbers)), score)
    order = score.argsort(dim=1, descending=True, stable=True)
    rank = torch.empty_like(order)
    places = torch.arange(score.shape[1], device=score.device).expand_as(order)
    rank.scatter_(1, order, places)
    limit = numbers[:, None] if torch.is_tensor(numbers) else numbers
    return (rank < limit) & (score > -math.inf)


@dataclass
class Rows:
    """One layer as a matrix of rows to fill: masks and scores of that shape."""

    old: Tensor
    kept: Tensor
    worth: Tensor
    growth: Tensor
    forbid: bool

    def filled(self, numbers: Tensor | int) -> tuple[Tensor, Tensor]:
        """What is kept and what is active when every row has its number.

        Where regrowing is forbidden and a row lacks places, it takes back what it dropped.
        """
        free = ~(self.kept | self.old) if self.forbid else ~self.kept
        missing = numbers - self.kept.sum(1)
        grown = top_in_rows(self.growth.masked_fill(~free, -math.inf), missing)
        taken = self.kept | grown
        back = top_in_rows(self.worth.masked_fill(taken, -math.inf), numbers - taken.sum(1))
        return self.kept | back, taken | back


def worths(layer: Layer, algorithm: Algorithm, context: Context) -> tuple[Tensor, Tensor]:
    """Of a layer: what active weights are worth, and what places are worth for growth."""
    worth = scored(layer, algorithm.drop, context)
    if algorithm.grow is not None:
        return worth, scored(layer, algorithm.grow, context)
    chance = torch.rand(layer.shape, generator=context.generator(layer))
    return worth, shard_like(chance.to(worth.device), worth)
