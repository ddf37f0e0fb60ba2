"""Figures of reports. Only this module draws; it needs Matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparseopt.robustness._extras import need
from sparseopt.robustness.report import RobustnessReport


def heat_map(
    report: RobustnessReport, baseline: RobustnessReport | None = None, ax: Any = None
) -> Any:
    """Severity × corruption: accuracy in %, or relative gain in % over a baseline.

    Gains are drawn red above and blue below zero (Figures 10-15).

    Args:
        report: what is drawn.
        baseline: a report on the same set; None draws the accuracy itself.
        ax: Matplotlib axes to draw on; a new figure by default.

    Returns:
        The axes.

    Raises:
        ImportError: without Matplotlib.
        ValueError: for a baseline of another set.
    """
    pyplot = need("matplotlib.pyplot", "plotting a report")
    table = report.accuracy if baseline is None else report.relative_gain(baseline)
    cells = [[table[name].get(level, np.nan) for name in table] for level in report.severities]
    values = 100 * np.array(cells, dtype=float)
    if ax is None:
        ax = pyplot.subplots(figsize=(0.55 * len(table) + 2, 0.45 * len(values) + 2))[1]
    image = ax.imshow(values, aspect="auto", **_colors(values, baseline is not None))
    _label(ax, report, values, image)
    title = report.metric if baseline is None else f"relative gain in {report.metric}"
    ax.figure.colorbar(image, ax=ax, label=f"{title} (%)")
    return ax


def _colors(values: Any, signed: bool) -> dict[str, Any]:
    if not signed:
        return {"cmap": "viridis"}
    finite = values[np.isfinite(values)]
    reach = max(float(np.abs(finite).max()) if finite.size else 0.0, 1e-9)
    return {"cmap": "RdBu_r", "vmin": -reach, "vmax": reach}


def _label(ax: Any, report: RobustnessReport, values: Any, image: Any) -> None:
    ax.set_xticks(range(len(report.corruptions)), report.corruptions, rotation=60, ha="right")
    ax.set_yticks(range(len(report.severities)), [str(level) for level in report.severities])
    ax.set_ylabel("severity")
    ax.set_title(report.dataset)
    for (row, column), value in np.ndenumerate(values):
        # The weights of the luminance of ITU-R BT.709; below one half a color is dark.
        luminance = np.dot(image.cmap(image.norm(value))[:3], (0.2126, 0.7152, 0.0722))
        color = "white" if luminance < 0.5 and np.isfinite(value) else "black"
        ax.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color=color)
