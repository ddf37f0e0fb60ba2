"""Weights for a sparse layer: larger, for fewer of them add up (SWI)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from ..layers import Layer


@torch.no_grad()
def swi_(
    layers: Iterable[Layer], generator: torch.Generator, *, density: float | None = None
) -> None:
    """Draw the weights anew, scaled to the number of inputs that a sparse layer really has.

    Normal with mean 0 and standard deviation ``sqrt(2 / (density * fan_in))``: Kaiming's rule with
    the expected number of active inputs per output. Inactive weights become zero. Call it after
    making the optimizer and before the first step; nothing does so on its own.

    Args:
        layers: objects with ``weight``, shape (outputs, inputs, ...), and, unless ``density`` is
            given, with ``mask``: ``opt.layers`` of a SparseOptimizer. With ``density`` modules do
            as well: ``[model.fc1, model.fc2]``.
        generator: where chance comes from, a generator of the CPU.
        density: fraction of weights active, in (0, 1], the same for all layers; then no mask is
            read and no weight set to zero. None: the density of each layer's mask.

    Raises:
        ValueError: if ``density`` lies outside (0, 1].

    References:
        Zhang et al., ICLR 2024 (CHT): sparse weight initialization. The authors' code takes the
        fan-out, which is the same for square layers only.

    Example:
        >>> from types import SimpleNamespace
        >>> mask = torch.eye(200, dtype=torch.bool)
        >>> layer = SimpleNamespace(weight=torch.ones(200, 200), mask=mask)
        >>> swi_([layer], torch.Generator().manual_seed(0))
        >>> f"{layer.weight[mask].std():.1f}"  # one input each: sqrt(2)
        '1.4'
        >>> layer.weight[~mask].any()
        tensor(False)
    """
    if density is not None and not 0 < density <= 1:
        raise ValueError(f"density={density} must be in (0, 1]: the fraction of active weights")
    for layer in layers:
        weight = layer.weight
        share = layer.mask.float().mean().item() if density is None else density
        fan_in = weight.flatten(1).shape[1]
        # An empty layer has no scale; all its weights are zero anyway.
        scale = math.sqrt(2 / (share * fan_in)) if share else 0.0
        weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
        if density is None:
            weight.masked_fill_(~layer.mask, 0)
