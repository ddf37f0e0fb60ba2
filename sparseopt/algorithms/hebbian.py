"""Cannistraci-Hebb training: links grow where the graph of links predicts them."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import links
from ..layers import Layer
from ..positions import count
from ..schedules import Constant, Schedule, Sigmoid, starting_at
from ..scores import PREDICTORS, Context, LinkPrediction, RelativeImportance, Score, magnitude
from ..scores import gradient as gradient_score
from ..select import choose, sample, top_k
from ..shards import shard_like, takes_shards, whole
from ..update import Levels, candidates, drop_each, forbids, grow_each, lacking
from .algorithm import Algorithm
from .gradual import falling
from .registry import Row, algorithm

__all__ = ["cht", "chts", "chtss"]

STOPPED = "evolution_stopped"  # in Layer.extras: whether the layer drops what it grows


@algorithm(
    "cht",
    Row("smallest weight", "CH3-L3p", "constant", "uniform", "Zhang et al. 2024"),
)
def cht(
    sparsity: float = 0.5,
    *,
    drop: str | Score = "magnitude",
    grow: str | Score = "ch3_l3p",
    soft: bool = False,
    soft_drop: bool | None = None,
    soft_grow: bool | None = None,
    drop_fraction: float | Schedule = 0.3,
    alpha: float = 0.0,
    delta: tuple[float, float] = (0.5, 0.75),
    chains: Sequence[Sequence[str]] = (),
    early_stop: float | None = 0.9,
    stop: float = 0.75,
    topology: Any = "bipartite_small_world",
    distribution: Any = "uniform",
    **options: Any,
) -> Algorithm:
    """Drop the smallest weights, grow the links that the layer's graph predicts (CHT).

    Growth needs no gradient: a missing link is worth the paths of length three between its ends.
    With ``chains``, neurons that the drop cut off lose their other links too, and their layers
    grow as many elsewhere. The paper starts from ``topology=csti(data, fallback=...)`` and
    weights from :func:`sparseopt.topologies.swi_`; both need a call of your own. Convolutions are
    graphs of outputs by inputs * kernel, which is our extension.

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        drop: "magnitude", "relative_importance", or a score.
        grow: "ch3_l3p" (the paper's), "ch3_l3n", "ch2_l3p", "ch2_l3n", "gradient", "random", or a
            score. Places that no path leads to come last, at random.
        soft: Keep and grow at random, with probability proportional to the score. Default False.
        soft_drop: The same for the drop alone; None: as ``soft``.
        soft_grow: The same for growth alone; None: as ``soft``.
        drop_fraction: Share of the active weights exchanged, or a schedule. Default 0.3, constant,
            as for the paper's MLPs; ``Cosine(0.3)`` is the authors' adaptive one, and their
            language models have 0.1.
        alpha: From relative importance (0) to magnitude (1), for that score.
        delta: Where the softness of the drop goes, linearly until ``stop``: probabilities are
            proportional to ``score ** (delta / (1 - delta))``. Default 0.5 to 0.75 (CHTs, main
            text, and CHT's code); its appendix and scripts end at 0.9.
        chains: Lists of layer names, each layer feeding the next, for percolation.
        early_stop: The topology rests for good once every layer has grown back more than this
            fraction of what it dropped in some update; None: never.
        stop: Fraction of training after which the topology rests.
        topology: Where to start; bipartite small world where no data are given.
        distribution: Every layer alike, as in the paper.
        **options: Fields of :class:`Algorithm` that make sense for every recipe.

    Raises:
        TypeError: For a ``delta`` that is no pair, or ``chains`` that are no lists.
        ValueError: For an unknown score; when the optimizer is made, for chains that name unknown
            layers or join layers that do not fit.

    Example:
        >>> cht(0.95, grow="ch2_l3n", chains=[["fc1", "fc2"]]).exchange.chains
        (('fc1', 'fc2'),)
    """
    exchange = percolating(chains, early_stop, delta, soft if soft_drop is None else soft_drop)
    removals = {"magnitude": magnitude, "relative_importance": RelativeImportance(alpha)}
    return Algorithm(
        sparsity, distribution=distribution, topology=topology, exchange=exchange, stop=stop,
        drop=named("drop", drop, removals),
        grow=named("grow", grow, GROWTH),
        grow_select=sample if (soft if soft_grow is None else soft_grow) else best_then_random,
        drop_fraction=starting_at(Constant(0.3), drop_fraction),
        **options,
    )  # fmt: skip


@algorithm(
    "chts",
    Row("smallest relative importance, sampled", "CH2-L3n, sampled", "constant", "uniform",
        "Zhang et al. 2025"),
    options_of=cht,
)  # fmt: skip
def chts(
    sparsity: float = 0.5,
    *,
    drop: str | Score = "relative_importance",
    grow: str | Score = "ch2_l3n",
    soft: bool = True,
    **options: Any,
) -> Algorithm:
    """CHT with a soft rule: what is kept and what is grown is sampled by score (CHTs).

    The paper samples growth; the released code takes the best (``soft_grow=False``).

    Args:
        sparsity: Fraction of weights that are zero, in [0, 1).
        drop: As in :func:`cht`.
        grow: As in :func:`cht`; CH2-L3n takes a few matrix products on any device.
        soft: As in :func:`cht`.
        **options: Options of :func:`cht`.

    Example:
        >>> chts(0.9, delta=(0.5, 0.9)).exchange.softness
        Softness(first=0.5, last=0.9)
    """
    return cht(sparsity, drop=drop, grow=grow, soft=soft, **options)


@algorithm(
    "chtss",
    Row("smallest relative importance, sampled", "CH2-L3n, sampled", "0.5 to the target, sigmoid",
        "uniform", "Zhang et al. 2025"),
    options_of=chts,
)  # fmt: skip
def chtss(
    sparsity: float = 0.5,
    *,
    initial_density: float | None = None,
    window: float = 0.75,
    start: float = 0.0,
    **options: Any,
) -> Algorithm:
    """CHTs with a density that falls along a sigmoid (CHTss).

    An update prunes every layer to the density of the schedule, the best by score being kept, and
    then exchanges weights as CHTs does.

    Args:
        sparsity: Fraction of weights that are zero at the end, in [0, 1).
        initial_density: Density at the start, from the target to 1. Default 0.5, as in the paper;
            for targets above that, halfway to dense.
        window: Fraction of training that the decay takes; 0.75, as in the authors' scripts.
        start: Fraction of training at which the decay starts.
        **options: Options of :func:`chts`.

    Raises:
        ValueError: For an initial density below the target, or a window not within training.

    Example:
        >>> chtss(0.95).density
        Sigmoid(initial=0.5, final=0.05, start=0.0, stop=0.75, steepness=6.0)
    """
    density = falling(Sigmoid, sparsity, initial_density, 0.5, start, window)
    return dataclasses.replace(chts(sparsity, start=start, **options), density=density)


GROWTH: dict[str, Score | None] = {name: LinkPrediction(name) for name in PREDICTORS}
GROWTH |= {"gradient": gradient_score, "random": None}


def named(argument: str, given: Any, known: dict[str, Any]) -> Any:
    """The score of that name; a score is taken as it is."""
    if callable(given):
        return given
    if given not in known:
        raise ValueError(
            f"{argument}={given!r} is not one of {', '.join(map(repr, known))}, nor a score"
        )
    return known[given]


@dataclass(frozen=True)
class Softness(Schedule):
    """Exponent of the score in a soft drop: ``delta / (1 - delta)``, delta rising linearly.

    >>> round(Softness(0.5, 0.75)(0.4), 9), Softness(0.5, 0.75)(1.0)
    (1.5, 3.0)
    """

    first: float = 0.5
    last: float = 0.75

    def __post_init__(self) -> None:
        if not (0.0 <= self.first < 1.0 and 0.0 <= self.last < 1.0):
            raise ValueError(
                f"delta=({self.first}, {self.last}) must hold two numbers in [0, 1): 0 samples "
                "uniformly, 0.5 in proportion to the score, towards 1 the drop gets hard"
            )

    def __call__(self, progress: float) -> float:
        delta = self.first + (self.last - self.first) * min(1.0, max(0.0, progress))
        return delta / (1.0 - delta)


def best_then_random(score: Tensor, k: int, generator: torch.Generator) -> Tensor:
    """The best ``k`` of positive score; if they are fewer, all of them and others at random."""
    positive = score > 0
    missing = k - count(positive)
    if missing <= 0:
        return top_k(score, k)
    return positive | choose(score == 0, missing, generator)


def percolating(
    chains: Sequence[Sequence[str]],
    early_stop: float | None,
    delta: tuple[float, float],
    soft: bool,
) -> Percolating:
    """The exchange of the Cannistraci-Hebb recipes, its arguments checked."""
    if early_stop is not None and not 0.0 <= early_stop <= 1.0:
        raise ValueError(f"early_stop={early_stop} must be in [0, 1], an overlap, or None")
    listed = isinstance(chains, Sequence) and not isinstance(chains, str)
    if not listed or any(isinstance(chain, str) for chain in chains):
        raise TypeError(f"chains={chains!r} must be a list of lists of layer names")
    pair = isinstance(delta, Sequence) and len(delta) == 2
    if not pair or not all(isinstance(one, numbers.Real) for one in delta):
        raise TypeError(f"delta={delta!r} must be two numbers: where it starts and where it ends")
    softness = Softness(*delta)
    return Percolating(tuple(map(tuple, chains)), early_stop, softness if soft else None)


@takes_shards
@dataclass(frozen=True)
class Percolating:
    """Exchange with percolation between drop and growth, soft drop and early stop.

    Attributes:
        chains: Layer names, each layer feeding the next.
        early_stop: Overlap of dropped and grown above which a layer counts as settled.
        softness: Exponent of the score for a sampled drop, over the updates; None: a hard drop.
    """

    chains: tuple[tuple[str, ...], ...] = ()
    early_stop: float | None = 0.9
    softness: Softness | None = None

    def extras(self, layer: Layer) -> dict[str, Tensor]:
        """No layer has settled at the start."""
        if self.early_stop is None:
            return {}
        return {STOPPED: torch.zeros((), dtype=torch.bool, device=layer.mask.device)}

    def check(self, layers: Sequence[Layer]) -> None:
        """Raise ValueError for chains that do not fit the layers."""
        if not self.chains:
            return
        masks = {layer.name: whole(layer.mask) for layer in layers}
        try:
            links.percolate(masks, self.chains)
        except ValueError as error:
            if all(name in masks for chain in self.chains for name in chain):
                raise
            raise ValueError(
                f'{error}. Layers whose parameter group has a "sparsity" of its own are updated '
                "apart; distribution= gives each layer its own and keeps them together"
            ) from None

    def __call__(
        self,
        layers: Sequence[Layer],
        settled: Sequence[Tensor],
        algorithm: Algorithm,
        levels: Levels,
        context: Context,
    ) -> tuple[list[Tensor], list[Tensor]]:
        if all(STOPPED in layer.extras and bool(layer.extras[STOPPED]) for layer in layers):
            return list(settled), list(settled)
        if self.softness is not None:
            power = self.softness(context.progress / max(algorithm.stop, 1e-9))
            select = functools.partial(sample, power=power)
            algorithm = dataclasses.replace(algorithm, drop_select=select)
        kept = drop_each(layers, settled, algorithm, levels, context)
        kept = self.percolated(layers, settled, kept, algorithm)
        active = grow_each(layers, kept, lacking(layers, settled, kept), algorithm, context)
        self.mark(layers, settled, kept, active)
        return kept, active

    def percolated(
        self,
        layers: Sequence[Layer],
        settled: Sequence[Tensor],
        kept: Sequence[Tensor],
        algorithm: Algorithm,
    ) -> list[Tensor]:
        """The masks without neurons that were cut off, where there is room to grow elsewhere."""
        if not self.chains:
            return list(kept)
        by_name = {layer.name: whole(mask) for layer, mask in zip(layers, kept, strict=True)}
        found = links.percolate(by_name, self.chains)
        cut = [shard_like(found[layer.name], layer.mask) for layer in layers]
        return [
            less
            if not forbids(algorithm) or missing <= count(candidates(layer, mask, algorithm))
            else mask
            for layer, mask, less, missing in zip(
                layers, kept, cut, lacking(layers, settled, cut), strict=True
            )
        ]

    def mark(
        self,
        layers: Sequence[Layer],
        settled: Sequence[Tensor],
        kept: Sequence[Tensor],
        active: Sequence[Tensor],
    ) -> None:
        """Remember the layers that grew back nearly all that they dropped."""
        if self.early_stop is None:
            return
        for layer, before, low, after in zip(layers, settled, kept, active, strict=True):
            gone = before & ~low
            overlap = count(gone & after) / max(count(gone), 1)
            over = overlap > self.early_stop or not count(gone)
            last = layer.extras.get(STOPPED, torch.zeros((), dtype=torch.bool))
            layer.extras[STOPPED] = (last | over).to(layer.mask.device)
