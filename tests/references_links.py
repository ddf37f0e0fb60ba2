"""Growth scores and percolation told link by link, as slow and as literal as they can be."""

from __future__ import annotations

import math

Links = list[list[int]]


def neighbours_of_row(links: Links, i: int) -> set[int]:
    return {b for b in range(len(links[0])) if links[i][b]}


def neighbours_of_column(links: Links, a: int) -> set[int]:
    return {j for j in range(len(links)) if links[j][a]}


def paths(links: Links, i: int, a: int) -> list[tuple[int, int]]:
    """The middle nodes (b, j) of every path i - b - j - a, each end and middle different."""
    return [
        (b, j)
        for b in sorted(neighbours_of_row(links, i))
        for j in sorted(neighbours_of_column(links, a))
        if b != a and j != i and links[j][b]
    ]


def by_paths(links: Links, local: bool) -> list[list[float]]:
    """CH2-L3p (local) or CH3-L3p of every missing link."""
    score = [[0.0] * len(row) for row in links]
    for i, row in enumerate(links):
        for a, linked in enumerate(row):
            for b, j in [] if linked else paths(links, i, a):
                of_b, of_j = neighbours_of_column(links, b), neighbours_of_row(links, j)
                i_b = len(of_b & neighbours_of_column(links, a))
                i_j = len(of_j & neighbours_of_row(links, i))
                # Links neither into the local community nor to the end node on the other side.
                e_b = len(of_b - neighbours_of_column(links, a) - {i})
                e_j = len(of_j - neighbours_of_row(links, i) - {a})
                gain = (1 + i_b) * (1 + i_j) if local else 1
                score[i][a] += math.sqrt(gain / ((1 + e_b) * (1 + e_j)))
    return score


def node_worth(end: set[int], middle: set[int], local: bool) -> float:
    """What a middle node gives, by its links and those of the end on its own side."""
    shared = len(end & middle)
    if shared == 0:
        return 0.0
    return ((shared + 1) if local else 1) / (max(len(middle) - shared - 1, 0) + 1)


def by_nodes(links: Links, local: bool) -> list[list[float]]:
    """CH2-L3n (local) or CH3-L3n of every missing link."""
    score = [[0.0] * len(row) for row in links]
    for i, row in enumerate(links):
        for a, linked in enumerate(row):
            if linked:
                continue
            for j in neighbours_of_column(links, a):
                ends = neighbours_of_row(links, i), neighbours_of_row(links, j)
                score[i][a] += node_worth(*ends, local)
            for b in neighbours_of_row(links, i):
                ends = neighbours_of_column(links, a), neighbours_of_column(links, b)
                score[i][a] += node_worth(*ends, local)
    return score


def relative_importance(weight: list[list[float]], alpha: float) -> list[list[float]]:
    rows = [sum(row) for row in weight]
    columns = [sum(row[j] for row in weight) for j in range(len(weight[0]))]
    return [
        [
            w / (alpha + (1 - alpha) * rows[i]) + w / (alpha + (1 - alpha) * columns[j])
            if w
            else 0.0
            for j, w in enumerate(row)
        ]
        for i, row in enumerate(weight)
    ]


def percolate(layers: list[Links]) -> list[Links]:
    """One backward and one forward sweep over a chain of matrices, neuron by neuron."""
    layers = [[list(row) for row in links] for links in layers]
    for links, following in reversed(list(zip(layers, layers[1:], strict=False))):
        for u in range(len(links)):
            if not any(row[u] for row in following):
                links[u] = [0] * len(links[u])
    for links, following in zip(layers, layers[1:], strict=False):
        for u in range(len(links)):
            if not any(links[u]):
                for row in following:
                    row[u] = 0
    return layers
