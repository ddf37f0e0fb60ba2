"""Scores to mask: exactly k entries, the best ones, a weighted sample or a uniform one.

Every choice is exact (always k entries) and repeatable: equal scores go to the lower position, and
chance comes from a CPU generator alone, so the device of the scores never changes the result.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .parts import Parts, divided
from .positions import compress
from .positions import count as _true
from .shards import local, takes_shards

__all__ = ["choose", "choose_across", "sample", "top_k", "top_k_across"]


@takes_shards
def top_k(score: Tensor, k: int) -> Tensor:
    """The k largest scores; among equal scores the lower position wins.

    Positions count in row-major order. An entry of ``-inf`` is never chosen. The cost is one
    selection (no sort) and a few passes over ``score``.

    Args:
        score: worth of every entry, any shape, real and without NaN.
        k: how many entries to choose, from 0 to the number of entries above ``-inf``.

    Returns:
        A bool tensor of the shape of ``score``, on its device, with exactly ``k`` entries true.

    Raises:
        TypeError: if ``score`` is not a real tensor, or ``k`` not a whole number.
        ValueError: if ``k`` is out of range, or ``score`` holds NaN.

    Example:
        >>> top_k(torch.tensor([0.5, 2.0, 0.5, 0.1]), 2)
        tensor([ True,  True, False, False])
    """
    return top_k_across([score], k)[0]


def top_k_across(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """The k largest scores of several tensors in one ranking; ties by tensor, then by position.

    Arguments, result and errors as `top_k`.

    Example:
        >>> top_k_across([torch.tensor([0.5, 2.0]), torch.tensor([0.5, 0.1])], 2)
        [tensor([True, True]), tensor([False, False])]
    """
    flat, parts = _joined([_flat(score) for score in scores]), Parts.of(scores)
    k = _count(k, parts.numel, "entries")
    _refuse_nan(flat, parts)
    if k == 0:
        return divided(torch.zeros_like(flat, dtype=torch.bool), scores)
    threshold = parts.kth_largest(flat, k) if parts.like is not None else _kth_largest(flat, k)
    if threshold == -math.inf:
        _count(k, parts.total(_true(flat > threshold)), "entries above -inf")
    chosen = flat >= threshold
    surplus = parts.total(_true(chosen)) - k
    if surplus:
        # torch.topk promises no order among equals: give up the ties with the highest positions.
        chosen[parts.last(flat == threshold, surplus)] = False
    return divided(chosen, scores)


def sample(
    score: Tensor,
    k: int,
    generator: torch.Generator,
    *,
    candidates: Tensor | None = None,
    power: float = 1.0,
) -> Tensor:
    """k entries drawn without replacement, each with probability proportional to its score.

    Gumbel top-k: the k largest of ``power * log(score) + Gumbel(0, 1)`` follow the same law as
    drawing one entry after another in proportion to ``score ** power`` among those left, without
    the underflow of the power and without the limit of 2**24 entries of `torch.multinomial`.
    Entries with score zero are taken only when every positive one is, and then uniformly.

    Args:
        score: worth of every entry, any shape, at least zero; ``-inf`` excludes an entry.
        k: how many entries to draw, from 0 to the number of entries that are not excluded.
        generator: where chance comes from, a generator of the CPU.
        candidates: bool tensor of the shape of ``score``; entries outside are excluded and may
            hold any value. None: all entries.
        power: exponent on the score, at least zero. 0 draws uniformly among positive scores.

    Returns:
        A bool tensor of the shape of ``score``, on its device, with exactly ``k`` entries true.

    Raises:
        TypeError: if ``score`` is not a real tensor, ``k`` not a whole number, or ``generator`` not
            a generator.
        ValueError: if ``k`` is out of range, or a candidate is negative, infinite or NaN.

    References:
        Kool, van Hoof and Welling, Stochastic Beams and Where to Find Them, ICML 2019, section 3.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample(torch.tensor([0.0, 1.0, 0.0, 3.0]), 2, generator)
        tensor([False,  True, False,  True])
    """
    flat = _flat(score)
    _check_generator(generator)
    if not (math.isfinite(power) and power >= 0):
        raise ValueError(f"power={power} must be a finite number of at least 0")
    index = (_mask(candidates, score) & (flat != -math.inf)).nonzero().view(-1)
    k = _count(k, index.numel(), "candidates")
    worth = flat[index].cpu().double()
    _refuse_unfit(worth)
    positive = worth > 0
    total = _true(positive)
    if k < total:
        chosen = torch.zeros_like(positive)
        chosen[positive] = top_k(_gumbel_keys(worth[positive], power, generator), k)
    else:
        chosen = positive | choose(~positive, k - total, generator)
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask[index[chosen.to(index.device)]] = True
    return mask.view(score.shape)


@takes_shards
def choose(candidates: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """k of the true entries, drawn uniformly without replacement.

    Args:
        candidates: bool tensor, any shape: the entries that may be drawn.
        k: how many entries to draw, from 0 to the number of candidates.
        generator: where chance comes from, a generator of the CPU.

    Returns:
        A bool tensor of the shape of ``candidates``, on its device, with exactly ``k`` entries
        true, all of them candidates.

    Raises:
        TypeError: if ``candidates`` is not a bool tensor, ``k`` not a whole number, or
            ``generator`` not a generator.
        ValueError: if ``k`` is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> choose(torch.tensor([True, False, True, True]), 2, generator).sum()
        tensor(2)
    """
    return choose_across([candidates], k, generator)[0]


def choose_across(candidates: Sequence[Tensor], k: int, generator: torch.Generator) -> list[Tensor]:
    """k of the true entries of several tensors, drawn uniformly without replacement.

    Arguments, result and errors as `choose`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> choose_across([torch.tensor([True, False]), torch.tensor([False])], 1, generator)
        [tensor([ True, False]), tensor([False])]
    """
    _check_generator(generator)
    flat, parts = _joined([_mask(one, one) for one in candidates]), Parts.of(candidates)
    among = parts.among(flat)
    k = _count(k, among.numel, "candidates")
    if 2 * among.numel > parts.numel and 2 * k < among.numel:
        return divided(_rejected(flat, k, generator, parts), candidates)
    drawn = _distinct(among, k, generator).to(flat.device)
    if among.numel < parts.numel:
        drawn = torch.zeros_like(flat).masked_scatter_(flat, drawn)
    return divided(drawn, candidates)


def _rejected(candidates: Tensor, k: int, generator: torch.Generator, parts: Parts) -> Tensor:
    """k candidates at random where most entries are: any entry is drawn, the others rejected.

    Ten times faster than counting out the candidates; by symmetry as uniform.
    """
    drawn = torch.zeros_like(candidates)
    missing = k
    while missing:
        places = parts.here(torch.randint(parts.numel, (missing,), generator=generator))
        places = places.to(candidates.device)
        fits = candidates.index_select(0, places)
        drawn.index_fill_(0, compress(places, fits), True)
        missing = k - parts.total(_true(drawn))
    return drawn


def _distinct(parts: Parts, k: int, generator: torch.Generator) -> Tensor:
    """k of all positions at random; a position drawn twice is drawn again."""
    if 2 * k > parts.numel:
        return ~_distinct(parts, parts.numel - k, generator)
    drawn = torch.zeros(sum(parts.sizes), dtype=torch.bool)
    missing = k
    while missing:
        places = torch.randint(parts.numel, (missing,), generator=generator)
        drawn[parts.here(places)] = True
        missing = k - parts.total(_true(drawn))
    return drawn


def _gumbel_keys(worth: Tensor, power: float, generator: torch.Generator) -> Tensor:
    """``power * log(worth)`` plus Gumbel noise, which is minus the log of exponential noise."""
    # 1 - rand lies in (0, 1]: -log(1 - rand) is exponential and never infinite.
    noise = torch.rand(worth.shape, generator=generator, dtype=worth.dtype)
    noise = noise.neg_().log1p_().neg_().log_()
    return worth.log().mul_(power).sub_(noise)


def _kth_largest(flat: Tensor, k: int) -> float:
    """The k-th largest value of a non-empty vector, exactly."""
    if flat.device.type == "cpu":
        # 1e7 float32 values on one thread: 10 ms, against 140 ms for kthvalue and topk. Negated,
        # because a partition is slow when most entries tie for the minimum, and -inf often does.
        negated: np.ndarray = flat.neg().numpy()
        negated.partition(k - 1)
        return -float(negated[k - 1])
    smaller = flat.numel() - k
    if k <= smaller:
        return flat.topk(k, sorted=False).values.min().item()
    return flat.topk(smaller + 1, largest=False, sorted=False).values.max().item()


def _flat(score: Tensor) -> Tensor:
    """A score as a vector in row-major order that the selection can work on."""
    if not isinstance(score, Tensor) or score.is_complex():
        kind = score.dtype if isinstance(score, Tensor) else type(score).__name__
        raise TypeError(f"score must be a real tensor, not {kind}")
    flat = local(score.detach()).reshape(-1)
    if flat.dtype in (torch.float32, torch.float64):
        return flat
    return flat.float() if flat.is_floating_point() else flat.double()


def _mask(candidates: Tensor | None, score: Tensor) -> Tensor:
    """The candidates as a vector; all entries of ``score`` when there are none given."""
    if candidates is None:
        return torch.ones(score.numel(), dtype=torch.bool, device=score.device)
    if not isinstance(candidates, Tensor) or candidates.dtype != torch.bool:
        kind = candidates.dtype if isinstance(candidates, Tensor) else type(candidates).__name__
        raise TypeError(f"candidates must be a bool tensor, not {kind}")
    if candidates.shape != score.shape:
        given, wanted = tuple(candidates.shape), tuple(score.shape)
        raise ValueError(f"candidates of shape {given} must have the shape of the score, {wanted}")
    return local(candidates.detach()).reshape(-1)


def _joined(flat: Sequence[Tensor]) -> Tensor:
    return flat[0] if len(flat) == 1 else torch.cat([*flat])


def _count(k: int, most: int, what: str) -> int:
    """k as an int, refused outside 0 to ``most``."""
    try:
        k = operator.index(k)
    except TypeError:
        raise TypeError(f"k={k!r} must be a whole number") from None
    if not 0 <= k <= most:
        raise ValueError(f"k={k} must be between 0 and {most}, the number of {what}")
    return k


def _check_generator(generator: torch.Generator) -> None:
    if not isinstance(generator, torch.Generator):
        given = type(generator).__name__
        raise TypeError(f"generator must be a torch.Generator, not {given}")
    if generator.device.type != "cpu":
        raise ValueError(
            f"generator lives on {generator.device}; pass one of the CPU, so that the device of "
            "the scores does not change the result"
        )


def _refuse_nan(flat: Tensor, parts: Parts) -> None:
    # The maximum is NaN when any entry is, and costs a fifth of isnan().any(); NumPy's the half.
    largest = flat.numpy().max if flat.device.type == "cpu" else flat.max
    if parts.total(int(flat.numel() and math.isnan(largest()))):
        number = parts.total(_true(flat.isnan()))
        raise ValueError(f"score holds {number} NaN, which cannot be ranked")


def _refuse_unfit(worth: Tensor) -> None:
    """Refuse scores that cannot be probabilities."""
    if not worth.numel():
        return
    least, most = worth.aminmax()
    # NaN fails every comparison, and aminmax hands it on.
    if not (least >= 0 and most < math.inf):
        raise ValueError(
            f"score ranges from {least:g} to {most:g} over the candidates; it must be finite and "
            "at least 0 (-inf excludes an entry)"
        )
