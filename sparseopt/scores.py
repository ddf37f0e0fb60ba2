"""What a weight is worth: one number for every entry of a layer.

A score is a function ``(layer, context) -> Tensor`` of the weight's shape; larger is better. The
weights with the lowest scores are dropped, those with the highest are grown. ``layer.gradient`` is
the dense gradient of the step just taken, for scores that ask for it with
``@score(needs_gradient=True)``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from .layers import Layer

__all__ = ["Context", "MagnitudeGradient", "Score", "gradient", "magnitude", "score"]

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

    def generator(self, layer: Layer | None = None) -> torch.Generator:
        """A private random stream for one layer at this update, the same on every replica.

        It depends on the seed, the step and the layer's place in the optimizer only: nothing is
        drawn from the global stream, and a checkpoint need not store any generator.
        """
        place = (-1, -1) if layer is None else layer.key
        text = repr((self.seed, self.step, self.updates, place)).encode()
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
    """``|w|``: the score of SET, RigL and nearly everybody for what to keep."""
    return layer.weight.detach().abs()


@score(needs_gradient=True, elementwise=True)
def gradient(layer: Layer, context: Context) -> Tensor:
    """``|g|``: how fast the loss would fall if the weight were there (Evci et al. 2020, eq. 1)."""
    return given_gradient(layer).abs()


@score(needs_gradient=True, elementwise=True)
@dataclass(frozen=True)
class MagnitudeGradient:
    """``|w| + weight * |g|``: MEST's score for what to keep (Yuan et al. 2021, eq. 1).

    Attributes:
        weight: How much the gradient counts, at least 0.
    """

    weight: float = 0.01

    def __call__(self, layer: Layer, context: Context) -> Tensor:
        return layer.weight.detach().abs() + self.weight * given_gradient(layer).abs()


def given_gradient(layer: Layer) -> Tensor:
    if layer.gradient is None:
        raise RuntimeError(
            f"no dense gradient of {layer.name!r} was kept for this update: declare the score "
            "with @score(needs_gradient=True)"
        )
    return layer.gradient
