"""What a weight is worth: one number for every entry of a layer.

A score is a function ``(layer, context) -> Tensor`` of the weight's shape; larger is better. The
weights with the lowest scores are dropped, those with the highest are grown. ``layer.gradient`` is
the dense gradient of the step just taken, for scores that ask for it with
``@score(needs_gradient=True)``; ``layer.mask`` is the topology at that stage of the update: the
dropped are out of it when growth is scored.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from . import links
from .layers import Layer

__all__ = [
    "Context",
    "LinkPrediction",
    "MagnitudeGradient",
    "RelativeImportance",
    "Score",
    "gradient",
    "magnitude",
    "score",
]

Scored = TypeVar("Scored", bound=Callable[..., Any])


@dataclass(frozen=True)
class Context:
    """When an update happens: what scores, topologies and selections may depend on.

    Attributes:
        step: Optimizer steps taken so far.
        updates: Topology updates made so far.
        progress: Fraction of training done, in [0, 1]; 0 where the length is unknown.
        seed: The seed given to SparseOptimizer.
    """

    step: int = 0
    updates: int = 0
    progress: float = 0.0
    seed: int = 0

    def generator(self, layer: Layer | None = None, purpose: str = "") -> torch.Generator:
        """A private random stream for one layer at this update, the same on every replica.

        It depends on the seed, the step, the layer's place in the optimizer and the purpose only:
        nothing is drawn from the global stream, and a checkpoint need not store any generator.
        """
        place = (-1, -1) if layer is None else layer.key
        told = (purpose,) if purpose else ()
        text = repr((self.seed, self.step, self.updates, place, *told)).encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


class Score(Protocol):
    """A function of a layer that gives a tensor of the weight's shape."""

    def __call__(self, layer: Any, context: Context) -> Tensor: ...


def score(*, needs_gradient: bool = False, elementwise: bool = False) -> Callable[[Scored], Scored]:
    """Declare what a score reads.

    Args:
        needs_gradient: It reads ``layer.gradient``; dense gradients are then kept before updates.
        elementwise: Each entry depends on the same entry of ``layer.weight`` and
            ``layer.gradient`` only, so that it may be computed for the active entries alone.

    Returns:
        A decorator for a function ``(layer, context) -> Tensor`` of the weight's shape, or for a
        class of such objects.

    Example:
        >>> @score(needs_gradient=True, elementwise=True)
        ... def saliency(layer, context):
        ...     return (layer.weight * layer.gradient).abs()
        >>> saliency.needs_gradient
        True
    """

    def declare(function: Scored) -> Scored:
        function.needs_gradient = needs_gradient  # type: ignore[attr-defined]
        function.elementwise = elementwise  # type: ignore[attr-defined]
        return function

    return declare


@score(elementwise=True)
def magnitude(layer: Layer, context: Context) -> Tensor:
    """``|w|``: the score of SET, RigL and nearly everybody for what to keep.

    Args:
        layer: Any layer.
        context: When; it does not matter here.

    Returns:
        A tensor of the weight's shape, at least 0.

    Example:
        >>> magnitude(Layer("fc", torch.tensor([[1.0, -2.0]]), (0, 0)), Context())
        tensor([[1., 2.]])
    """
    return layer.weight.detach().abs()


@score(needs_gradient=True, elementwise=True)
def gradient(layer: Layer, context: Context) -> Tensor:
    """``|g|``: how fast the loss would fall if the weight were there (Evci et al. 2020, eq. 1).

    Arguments and result as for :func:`magnitude`.

    Raises:
        RuntimeError: If no dense gradient of the layer was kept.

    Example:
        >>> layer = Layer("fc", torch.zeros(1, 2), (0, 0))
        >>> layer.gradient = torch.tensor([[0.5, -3.0]])
        >>> gradient(layer, Context())
        tensor([[0.5000, 3.0000]])
    """
    return given_gradient(layer).abs()


@score(needs_gradient=True, elementwise=True)
@dataclass(frozen=True)
class MagnitudeGradient:
    """``|w| + weight * |g|``: MEST's score for what to keep (Yuan et al. 2021, eq. 1).

    Attributes:
        weight: How much the gradient counts, at least 0.

    Raises:
        ValueError: For a weight that is negative or not finite.

    Example:
        >>> layer = Layer("fc", torch.tensor([[1.0, -2.0]]), (0, 0))
        >>> layer.gradient = torch.tensor([[10.0, 10.0]])
        >>> MagnitudeGradient(0.1)(layer, Context())
        tensor([[2., 3.]])
    """

    weight: float = 0.01

    def __post_init__(self) -> None:
        if not 0.0 <= self.weight < math.inf:
            raise ValueError(f"weight={self.weight} must be a finite number of at least 0")

    def __call__(self, layer: Layer, context: Context) -> Tensor:
        return layer.weight.detach().abs() + self.weight * given_gradient(layer).abs()


@score()
@dataclass(frozen=True)
class RelativeImportance:
    """A weight's share of its row plus its share of its column (CHTs, Zhang et al. 2025).

    Attributes:
        alpha: 0 for the shares, 1 for (twice) the magnitude, in [0, 1].

    Raises:
        ValueError: For an ``alpha`` outside [0, 1].

    Example:
        >>> layer = Layer("fc", torch.tensor([[1.0, 2.0], [0.0, 2.0]]), (0, 0))
        >>> RelativeImportance()(layer, Context())
        tensor([[1.3333, 1.1667],
                [0.0000, 1.5000]])
    """

    alpha: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(
                f"alpha={self.alpha} must be in [0, 1]: 0 relative importance, 1 magnitude"
            )

    def __call__(self, layer: Layer, context: Context) -> Tensor:
        active = layer.weight.detach().abs() * layer.mask
        return links.relative_importance(active, self.alpha)


@score()
@dataclass(frozen=True)
class LinkPrediction:
    """How likely a missing link is in the layer's graph of active weights (CHT and CHTs).

    The packed projection of attention (``in_proj_weight``) is three graphs, for q, k and v. What a
    convolution becomes (outputs by inputs * kernel) is our extension.

    Attributes:
        predictor: "ch2_l3n", "ch3_l3n", "ch2_l3p" or "ch3_l3p", see :mod:`sparseopt.links`.

    Raises:
        ValueError: For another predictor.

    Example:
        >>> layer = Layer("fc", torch.zeros(2, 3), (0, 0))
        >>> layer.set_mask(torch.tensor([[1, 1, 0], [0, 1, 1]]).bool())
        >>> LinkPrediction("ch2_l3n")(layer, Context())
        tensor([[0., 0., 4.],
                [4., 0., 0.]])
    """

    predictor: str = "ch3_l3p"

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise ValueError(f"predictor={self.predictor!r} is not one of {', '.join(PREDICTORS)}")

    def __call__(self, layer: Layer, context: Context) -> Tensor:
        graphs = 3 if layer.name.endswith("in_proj_weight") and layer.shape[0] % 3 == 0 else 1
        return torch.cat([PREDICTORS[self.predictor](part) for part in layer.mask.chunk(graphs)])


PREDICTORS = {
    "ch2_l3n": links.ch2_l3n,
    "ch3_l3n": links.ch3_l3n,
    "ch2_l3p": links.ch2_l3p,
    "ch3_l3p": links.ch3_l3p,
}


def given_gradient(layer: Layer) -> Tensor:
    if layer.gradient is None:
        raise RuntimeError(
            f"no dense gradient of {layer.name!r} was kept for this update: declare the score "
            "with @score(needs_gradient=True)"
        )
    return layer.gradient
