"""Figures of the analyses. Only this module draws; it needs Matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparseopt.analysis.filters import FilterSummary


def plot_filters(summaries: Mapping[str, FilterSummary], axes: Any = None) -> Any:
    """One point per filter: non-zero count above, sum of |w| below, a column per network.

    Args:
        summaries: name of the network → `filters(...)` of the same layer (Figures 16 and 17).
        axes: Matplotlib axes (2, len(summaries)); a new figure by default.

    Returns:
        The axes, (2, len(summaries)).
    """
    if axes is None:
        size = (3 * len(summaries), 5)
        axes = _pyplot().subplots(2, len(summaries), figsize=size, squeeze=False, sharey="row")[1]
    for column, (name, summary) in enumerate(summaries.items()):
        rows = (summary.filter_nonzero, summary.filter_magnitude)
        for row, values in enumerate(rows):
            axes[row][column].plot(values.cpu().tolist(), ".", markersize=3)
        axes[0][column].set_title(name)
        axes[1][column].set_xlabel("filter")
    axes[0][0].set_ylabel("non-zero weights")
    axes[1][0].set_ylabel("sum of |w|")
    return axes


def plot_radius_accuracy(
    radii: Sequence[float], curves: Mapping[str, Tensor], ax: Any = None
) -> Any:
    """Accuracy in % against radius, a line per network (Figure 18).

    Args:
        radii: cycles per image.
        curves: name → `radius_accuracy(...)`.
        ax: a Matplotlib axes; a new figure by default.

    Returns:
        The axes.
    """
    ax = ax or _pyplot().subplots(figsize=(5, 3.5))[1]
    for name, accuracy in curves.items():
        ax.plot(list(radii), (100 * accuracy).cpu().tolist(), marker=".", label=name)
    ax.set_xlabel("radius (cycles per image)")
    ax.set_ylabel("accuracy (%)")
    ax.legend()
    return ax


def plot_attention(images: Tensor, maps: Mapping[str, Tensor], axes: Any = None) -> Any:
    """Images with their Grad-CAM maps on top: a row per image, a column per network (Figure 19).

    Args:
        images: (N, C, H, W) in [0, 1], C 1 or 3.
        maps: name → `grad_cam(...)` (N, H, W).
        axes: Matplotlib axes (N, 1 + len(maps)); a new figure by default.

    Returns:
        The axes, (N, 1 + len(maps)).
    """
    columns = 1 + len(maps)
    if axes is None:
        size = (2 * columns, 2 * len(images))
        axes = _pyplot().subplots(len(images), columns, figsize=size, squeeze=False)[1]
    pictures = images.detach().cpu().expand(-1, 3, -1, -1).permute(0, 2, 3, 1).clamp(0, 1)
    for row, picture in enumerate(pictures):
        for column, (name, layer) in enumerate([("image", None), *maps.items()]):
            _draw(axes[row][column], picture, None if layer is None else layer[row])
            axes[0][column].set_title(name)
    return axes


def _draw(ax: Any, picture: Tensor, layer: Tensor | None) -> None:
    ax.imshow(picture.numpy())
    if layer is not None:
        ax.imshow(layer.detach().to(torch.float32).cpu().numpy(), cmap="jet", alpha=0.5)
    ax.set_axis_off()


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError("plotting needs matplotlib: pip install sparseopt[robustness]") from error
    return pyplot
