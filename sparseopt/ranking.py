"""The best of a layer's entries, or of all layers', by what they are worth or by chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor

from .gathered import gathered, seen_by
from .layers import Layer
from .positions import count, positions
from .scores import Context, Score
from .select import choose, choose_across, top_k, top_k_across
from .shards import is_sharded, local, part_of, shard_like, whole
from .shortlist import best_of_many
from .watched import values_of

__all__ = ["best", "best_across", "number_of", "pick", "prune_across", "scored"]

Select = Callable[..., Tensor]


def select_by(
    select: Select, worth: Tensor, k: int, context: Context, layer: Layer, purpose: str
) -> Tensor:
    """What a selection chooses; with the layer's own random stream, if it wants one."""
    if select is top_k:
        return top_k(worth, k)
    return select(worth, k, context.generator(layer, purpose))


def best(
    layer: Layer,
    score: Score | None,
    among: Tensor,
    k: int,
    context: Context,
    select: Select = top_k,
    purpose: str = "",
) -> Tensor:
    """The ``k`` entries ``among`` the candidates that are worth most; without a score, any."""
    if score is None:
        return choose(among, k, context.generator(layer, purpose))
    number = number_of(layer, among)
    if k in (0, number):
        return among.clone() if k else torch.zeros_like(among)
    if is_sharded(among):
        return best_of_shards(layer, score, among, k, context, select, purpose)
    if getattr(score, "elementwise", False) and 2 * number < layer.numel:
        return best_of_few(layer, score, among, k, context, select, purpose)
    if getattr(score, "elementwise", False) and select is top_k:
        chosen = best_of_many(layer, score, among, k, context)
        if chosen is not None:
            return chosen
    worth = within(score(layer, context), layer, among)
    return select_by(select, worth, k, context, layer, purpose)


def number_of(layer: Layer, mask: Tensor) -> int:
    """How many entries are true; the layer knows that of its own mask."""
    return layer.nnz if mask is layer.mask else count(mask)


def best_of_shards(
    layer: Layer,
    score: Score,
    among: Tensor,
    k: int,
    context: Context,
    select: Select,
    purpose: str,
) -> Tensor:
    """The same of a sharded layer: gathered where the selection asks for all of it."""
    if not getattr(select, "takes_shards", False):
        seen = gathered(layer)
        return shard_like(best(seen, score, whole(among), k, context, select, purpose), among)
    worth = scored(layer, score, context).masked_fill(~among, -math.inf)
    return select_by(select, worth, k, context, layer, purpose)


def scored(layer: Layer, score: Score, context: Context) -> Tensor:
    """What every entry is worth; sharded as the layer is."""
    if not is_sharded(layer.weight):
        return score(layer, context)
    if getattr(score, "elementwise", False):
        here = SimpleNamespace(
            name=layer.name, weight=local(layer.weight.detach()), gradient=local(layer.gradient)
        )
        return part_of(score(here, context), layer.mask)
    return shard_like(score(seen_by(score, layer), context), layer.mask)


def within(worth: Tensor, layer: Layer, among: Tensor) -> Tensor:
    """The scores with all but the candidates out of the running."""
    index = layer.index
    complement = index is not None and len(index) + count(among) == layer.numel
    if index is not None and complement and not bool(pick(among, index).any()):
        # all but the active ones, whose positions are known
        return worth.reshape(-1).index_fill(0, index, -math.inf).view(layer.shape)
    return worth.masked_fill(~among, -math.inf)


def best_of_few(
    layer: Layer,
    score: Score,
    among: Tensor,
    k: int,
    context: Context,
    select: Select,
    purpose: str,
) -> Tensor:
    """The same where the candidates are few: only they are scored."""
    index = layer.index if among is layer.mask else None
    index = positions(among) if index is None else index
    worth = score(entries(layer, score, index), context)
    chosen = select_by(select, worth, k, context, layer, purpose)
    mask = among.clone(memory_format=torch.contiguous_format)
    mask.view(-1).index_fill_(0, pick(index, positions(~chosen)), False)
    return mask


def entries(layer: Layer, score: Score, index: Tensor) -> SimpleNamespace:
    """What an element-wise score reads of a layer, at some entries only."""
    gradient = layer.gradient if getattr(score, "needs_gradient", False) else None
    gradient = None if gradient is None else pick(gradient, index)
    known = index is layer.index and layer.values is not None
    weight = layer.values if known else pick(values_of(layer.weight), index)
    return SimpleNamespace(name=layer.name, weight=weight, gradient=gradient)


def pick(values: Tensor, index: Tensor) -> Tensor:
    return values.reshape(-1).index_select(0, index)


def prune_across(
    layers: Sequence[Layer],
    score: Score,
    k: int,
    context: Context,
    among: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The ``k`` best active weights of all layers; every layer keeps its best one."""
    among = [layer.mask for layer in layers] if among is None else among
    return best_across(layers, score, among, k, context, reserve=1)


def best_across(
    layers: Sequence[Layer],
    score: Score | None,
    among: Sequence[Tensor],
    k: int,
    context: Context,
    reserve: int = 0,
) -> list[Tensor]:
    """The ``k`` candidates worth most over all layers, in one ranking; ties by layer, position.

    ``reserve`` of each layer are taken first, so that no layer is emptied.
    """
    if score is None:
        return choose_across(among, k, context.generator())
    worths = []
    for layer, mask in zip(layers, among, strict=True):
        worth = scored(layer, score, context).masked_fill(~mask, -math.inf)
        if reserve:
            worth.masked_fill_(top_k(worth, min(reserve, count(mask))), math.inf)
        worths.append(worth)
    return top_k_across(worths, k)
