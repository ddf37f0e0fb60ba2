"""Topologies that see a layer as a graph of two rings, inputs and outputs: small worlds and fields.

A weight with more than two dimensions is flattened to (outputs, inputs * kernel). The shorter side
of the matrix, m long, and the longer one, M long, lie on two rings of equal circumference: node j
of the longer side faces the place ``j * m / M`` of the shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Layer
from ..select import choose, sample, top_k
from ..shards import takes_shards


@takes_shards
@dataclass(frozen=True)
class bipartite_small_world:
    """Ring neighbours, of which a fraction beta is rewired at random (BSW).

    Every node of the longer side is linked to the ``nnz / M`` nodes of the shorter side around the
    place it faces (rounded down or up, the larger ones evenly spaced from a random start). Then
    each link is dropped with probability ``beta``, and as many are put back uniformly. On a square
    matrix the longer side is the columns, that is the inputs.

    Before rewiring no node of the longer side is without a link if there are M or more.

    Attributes:
        beta: probability of rewiring, in [0, 1]: 0 the ring, 1 a uniform draw.

    Raises:
        ValueError: if ``beta`` lies outside [0, 1].

    References:
        Zhang et al. 2025 (CHTs), bipartite small world; beta 0.25 as in the authors' training
        script. Their code rounds the first place towards 0; here every window is centred.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(4, 4))
        >>> bipartite_small_world(beta=0.0)(layer, 8, torch.Generator().manual_seed(0)).int()
        tensor([[1, 1, 0, 0],
                [0, 1, 1, 0],
                [0, 0, 1, 1],
                [1, 0, 0, 1]], dtype=torch.int32)
    """

    beta: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise ValueError(f"beta={self.beta} must be in [0, 1]: the probability of rewiring")

    def __call__(self, layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
        shorter, longer = sorted(layer.weight.flatten(1).shape)
        links = _ring(shorter, longer, nnz, generator)
        if self.beta > 0:
            links = _rewired(links, self.beta, generator)
        return _like_weight(links, layer.weight)


@takes_shards
@dataclass(frozen=True)
class bipartite_receptive_field:
    """Near neighbours more often than far ones (BRF).

    Every node i of the shorter side draws its links without replacement among the nodes of the
    longer side, with probability proportional to ``(1 + distance) ** -((1 - r) / r)``, where
    distance is measured along the ring from the place it faces, ``i * M / m``. On a square matrix
    the shorter side is the rows, that is the outputs.

    Attributes:
        r: randomness, in [0, 1]: 0 the nearest nodes, 1 a uniform draw.
        degrees: links per node of the shorter side. "fixed": ``nnz / m``, rounded down or up;
            "uniform": one each and the others at random, never more than there are places.

    Raises:
        ValueError: if ``r`` lies outside [0, 1], or ``degrees`` is neither name.

    References:
        Zhang et al. 2025 (CHTs), bipartite receptive field; r 0.25 and uniform degrees as in the
        authors' training script, whose clipping of large degrees loses links and is not copied.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(3, 6))
        >>> nearest = bipartite_receptive_field(r=0.0, degrees="fixed")
        >>> nearest(layer, 9, torch.Generator().manual_seed(0)).int()
        tensor([[1, 1, 0, 0, 0, 1],
                [0, 1, 1, 1, 0, 0],
                [0, 0, 0, 1, 1, 1]], dtype=torch.int32)
    """

    r: float = 0.25
    degrees: str = "uniform"

    def __post_init__(self) -> None:
        if not 0 <= self.r <= 1:
            raise ValueError(f"r={self.r} must be in [0, 1]: 0 the nearest, 1 a uniform draw")
        if self.degrees not in ("fixed", "uniform"):
            raise ValueError(f"degrees={self.degrees!r} must be 'fixed' or 'uniform'")

    def __call__(self, layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
        shorter, longer = sorted(layer.weight.flatten(1).shape)
        draw = _even_degrees if self.degrees == "fixed" else _uniform_degrees
        degrees = draw(nnz, shorter, longer, generator).tolist()
        fields = [
            self._field(i * longer / shorter, longer, degree, generator)
            for i, degree in enumerate(degrees)
        ]
        return _like_weight(torch.stack(fields), layer.weight)

    def _field(self, centre: float, size: int, degree: int, generator: torch.Generator) -> Tensor:
        """The nodes of a ring that one node is linked to."""
        distance = (torch.arange(size, dtype=torch.float64) - centre).abs()
        distance = torch.minimum(distance, size - distance)
        if self.r == 0:
            return top_k(-distance, degree)
        return sample(1 / (1 + distance), degree, generator, power=(1 - self.r) / self.r)


def _even_degrees(nnz: int, nodes: int, most: int, generator: torch.Generator) -> Tensor:
    """nnz shared out equally; what is left over goes to evenly spaced nodes, randomly phased."""
    extra = nnz % nodes
    phase = int(torch.randint(nodes, (), generator=generator))
    steps = torch.arange(phase, phase + nodes + 1) * extra // nodes
    return nnz // nodes + steps.diff()


def _uniform_degrees(nnz: int, nodes: int, most: int, generator: torch.Generator) -> Tensor:
    """One link each, the others on random free places; with fewer links than nodes, 0 or 1."""
    if nnz < nodes:
        return choose(torch.ones(nodes, dtype=torch.bool), nnz, generator).int()
    places = torch.ones(nodes, most - 1, dtype=torch.bool)
    return 1 + choose(places, nnz - nodes, generator).sum(1)


def _ring(shorter: int, longer: int, nnz: int, generator: torch.Generator) -> Tensor:
    """Links of every node of the longer side to those around the place it faces."""
    degree = _even_degrees(nnz, longer, shorter, generator)
    node = torch.arange(longer)
    # floor(j m / M - k / 2) in whole numbers: truncation would crowd the first places.
    start = torch.div(2 * node * shorter - degree * longer, 2 * longer, rounding_mode="floor")
    links = torch.zeros(shorter, longer, dtype=torch.bool)
    for offset in range(int(degree.max())):
        reach = node[degree > offset]
        links[(start[reach] + offset) % shorter, reach] = True
    return links


def _rewired(links: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """Each link dropped with probability beta, and as many placed where there is none now."""
    total = int(links.sum())
    kept = torch.zeros_like(links)
    kept[links] = torch.rand(total, generator=generator) >= beta
    return kept | choose(~kept, total - int(kept.sum()), generator)


def _like_weight(links: Tensor, weight: Tensor) -> Tensor:
    """Links between the shorter and the longer side as a mask of the weight's shape."""
    rows = weight.shape[0]
    matrix = links if rows == len(links) else links.T
    return matrix.reshape(weight.shape).to(weight.device)
