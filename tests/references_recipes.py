"""Slow, literal versions of the recipes' updates: lists and loops, one weight at a time.

A layer is a flat list of weights, of gradients and of booleans (its mask). Every function returns
the new masks. Ties go to the lower position, and what is counted is counted by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Mask = list[bool]
Values = list[float]


def best(scores: Sequence[float], among: Sequence[int], k: int) -> list[int]:
    """Positions of the k best, the lower position first among equals."""
    return sorted(among, key=lambda i: (-scores[i], i))[:k]


def mask_of(size: int, chosen: Sequence[int]) -> Mask:
    return [i in set(chosen) for i in range(size)]


def active(mask: Mask) -> list[int]:
    return [i for i, on in enumerate(mask) if on]


def mest(w: Values, g: Values, mask: Mask, target: int, level: int, weight: float) -> Mask:
    """Keep ``target`` by |w| + weight |g|, grow by |g| to ``level``."""
    worth = [abs(a) + weight * abs(b) for a, b in zip(w, g, strict=True)]
    kept = best(worth, active(mask), target)
    free = [i for i in range(len(w)) if i not in kept]
    grown = best([abs(b) for b in g], free, level - len(kept))
    return mask_of(len(w), kept + grown)


def exchange(w: Values, g: Values, mask: Mask, fraction: float) -> Mask:
    """RigL's: drop the fraction by |w|, grow as many by |g|, the just dropped included."""
    here = active(mask)
    drop = math.floor(fraction * len(here) + 1e-9)
    kept = best([abs(a) for a in w], here, len(here) - drop)
    free = [i for i in range(len(w)) if i not in kept]
    return mask_of(len(w), kept + best([abs(b) for b in g], free, drop))


def prune_globally(weights: list[Values], masks: list[Mask], total: int) -> list[Mask]:
    """The largest |w| of all layers, after each layer's own largest."""
    reserved = []
    for number, (w, mask) in enumerate(zip(weights, masks, strict=True)):
        reserved.append((number, best([abs(a) for a in w], active(mask), 1)[0]))
    others = [
        (-abs(w[i]), number, i)
        for number, (w, mask) in enumerate(zip(weights, masks, strict=True))
        for i in active(mask)
        if (number, i) not in reserved
    ]
    chosen = reserved + [(number, i) for _, number, i in sorted(others)[: total - len(reserved)]]
    return [
        mask_of(len(w), [i for layer, i in chosen if layer == number])
        for number, w in enumerate(weights)
    ]


def granet(
    weights: list[Values], gradients: list[Values], masks: list[Mask], total: int, fraction: float
) -> list[Mask]:
    """Prune all layers together to ``total``, then exchange in each; the pruned weigh nothing."""
    pruned = prune_globally(weights, masks, total)
    return [
        exchange([a if on else 0.0 for a, on in zip(w, mask, strict=True)], g, mask, fraction)
        for w, g, mask in zip(weights, gradients, pruned, strict=True)
    ]


def snfs(
    weights: list[Values], means: list[Values], masks: list[Mask], fraction: float
) -> list[Mask]:
    """Drop in each layer, share out what was dropped by mean momentum, grow by momentum."""
    sizes = [len(w) for w in weights]
    drops = [math.floor(fraction * len(active(mask)) + 1e-9) for mask in masks]
    kept = [
        best([abs(a) for a in w], active(mask), len(active(mask)) - drop)
        for w, mask, drop in zip(weights, masks, drops, strict=True)
    ]
    shares = [
        sum(abs(m[i]) for i in active(mask)) / len(active(mask))
        for m, mask in zip(means, masks, strict=True)
    ]
    total = sum(drops)
    ideal = [share / sum(shares) * total for share in shares]
    grow = [
        min(math.floor(x + 1e-9), size - len(k))
        for x, size, k in zip(ideal, sizes, kept, strict=True)
    ]
    order = sorted(range(len(sizes)), key=lambda n: (-round(ideal[n] % 1.0 % (1 - 1e-9), 9), n))
    while sum(grow) < total:
        for n in order:
            if sum(grow) < total and grow[n] < sizes[n] - len(kept[n]):
                grow[n] += 1
    return [
        mask_of(size, k + best([abs(x) for x in m], [i for i in range(size) if i not in k], n))
        for size, k, m, n in zip(sizes, kept, means, grow, strict=True)
    ]


def srigl(
    w: Values, g: Values, mask: Mask, width: int, budget: int, drop: int, gamma: float
) -> Mask:
    """Constant fan-in with ablation, row by row; ``width`` is the dense fan-in."""
    rows = len(w) // width
    alive = [i for i in active(mask) if w[i] != 0]
    kept = best([abs(a) for a in w], alive, min(len(active(mask)) - drop, len(alive)))
    salient = set(kept) | set(best([abs(b) for b in g], range(len(g)), drop))
    counts = [sum(i // width == row for i in salient) for row in range(rows)]
    need = max(1, math.floor(gamma * width + 1e-9))
    neurons = [row for row in range(rows) if counts[row] >= need]
    number = min(max(len(neurons), -(-budget // width)), budget, rows)
    if number != len(neurons):
        neurons = best(counts, range(rows), number)
    each = min(budget // len(neurons), width)
    new: list[int] = []
    for row in neurons:
        mine = [i for i in range(row * width, (row + 1) * width)]
        stay = best([abs(a) for a in w], [i for i in mine if i in kept], each)
        free = [i for i in mine if i not in stay]
        new += stay + best([abs(b) for b in g], free, each - len(stay))
    return mask_of(len(w), new)


def nm(w: Values, g: Values, mask: Mask, groups: list[list[int]], n: int, drop: int) -> Mask:
    """Drop the smallest of the layer, then bring every group back to n by |g|."""
    here = active(mask)
    kept = best([abs(a) for a in w], here, len(here) - drop)
    new: list[int] = []
    for group in groups:
        stay = [i for i in group if i in kept]
        free = [i for i in group if i not in kept]
        order = sorted(free, key=lambda i: (-abs(g[i]), group.index(i)))
        new += stay + order[: n - len(stay)]
    return mask_of(len(w), new)
