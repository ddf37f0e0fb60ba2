"""How the weights of a layer are spread over its filters and kernels (Figures 16 and 17)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class FilterSummary(NamedTuple):
    """Non-zero weights and their magnitude, per filter and per kernel.

    Attributes:
        filter_nonzero: int64 (O,), how many weights of a filter are not zero.
        filter_magnitude: (O,), their sum of |w|.
        kernel_nonzero: int64 (O, I), the same per kernel.
        kernel_magnitude: (O, I).
    """

    filter_nonzero: Tensor
    filter_magnitude: Tensor
    kernel_nonzero: Tensor
    kernel_magnitude: Tensor


def filters(weight: Tensor | nn.Module) -> FilterSummary:
    """Number of non-zero weights and sum of |w| of every filter and kernel of a layer.

    A filter is one output channel, a kernel one (output, input) pair of channels; in a Linear
    layer a kernel is a single weight.

    Args:
        weight: (O, I, ...) with at least two axes, or a layer that has such a `weight`.

    Returns:
        A `FilterSummary`: `filter_nonzero` and `filter_magnitude` (O,), `kernel_nonzero` and
        `kernel_magnitude` (O, I); counts are int64, sums have the dtype of the weight.

    Raises:
        TypeError: not a tensor and no `weight`.
        ValueError: fewer than two axes.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[[[0.0, -2.0]], [[1.0, 0.5]]]])    # (1, 2, 1, 2)
        >>> summary = filters(weight)
        >>> summary.filter_nonzero.tolist(), summary.filter_magnitude.tolist()
        ([3], [3.5])
        >>> summary.kernel_nonzero.tolist()
        [[1, 2]]

    Source: Wu et al. (2024), appendix A.5.
    """
    values = getattr(weight, "weight", None) if isinstance(weight, nn.Module) else weight
    if not isinstance(values, Tensor):
        raise TypeError(f"weight must be a tensor or a layer with one, not {type(weight).__name__}")
    if values.ndim < 2:
        raise ValueError(
            f"weight of shape {tuple(values.shape)} has no filters; give (outputs, inputs, ...)"
        )
    kernels = values.detach().unsqueeze(2).flatten(2)
    nonzero = torch.count_nonzero(kernels, dim=2)
    magnitude = kernels.abs().sum(dim=2)
    return FilterSummary(nonzero.sum(dim=1), magnitude.sum(dim=1), nonzero, magnitude)
