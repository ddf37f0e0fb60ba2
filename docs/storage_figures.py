"""Draws the figures of docs/storage.md from the data files of benchmarks/.

    python docs/storage_figures.py           # into docs/figures
    python docs/storage_figures.py FOLDER    # somewhere else

Needs matplotlib (``pip install sparseopt[examples]``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
COLORS = {"masked": "#4d4d4d", "compact": "#2166ac"}
STYLE = {
    "figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip


def rows_of(file: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / file).read_text())["rows"]
    return rows


def line(
    axes: Axes, across: Sequence[float], rows: Sequence[dict[str, Any]], key: str, dotted: bool
) -> None:
    """Medians of one storage, with their quartiles as a band."""
    name = rows[0]["storage"]
    label = f"{name}, with the hooks in backward()" if dotted else f"{name}, step()"
    values = [[row[key][part] for row in rows] for part in ("ratio", "low", "high")]
    axes.plot(across, values[0], ":" if dotted else "-", color=COLORS[name], label=label,
              marker=".", markersize=5)  # fmt: skip
    axes.fill_between(across, values[1], values[2], color=COLORS[name], alpha=0.15, linewidth=0)


def panels(rows: Sequence[dict[str, Any]], key: str) -> Figure:
    """One panel for each optimizer: its ratios against sparsity, or against size."""
    optimizers = list(dict.fromkeys(row["optimizer"] for row in rows))
    figure, every = pyplot.subplots(
        1, len(optimizers), figsize=(9, 3), sharey=True, layout="constrained"
    )
    for axes, optimizer in zip(every, optimizers, strict=True):
        for storage in COLORS:
            ours = [r for r in rows if (r["optimizer"], r["storage"]) == (optimizer, storage)]
            for quantity in ("step", "total"):
                line(axes, [row[key] for row in ours], ours, quantity, quantity == "total")
        axes.axhline(1.0, color="#b2182b", linewidth=0.8)
        axes.set_title(optimizer)
        axes.set_yscale("log")
        axes.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axes.minorticks_off()
    every[0].set_ylabel("seconds / dense step()")
    every[-1].legend(fontsize=7)
    return figure


def by_sparsity() -> Figure:
    rows = rows_of("speed.json")
    figure = panels([row | {"density": 1 - row["sparsity"]} for row in rows], "density")
    for axes in figure.axes:
        axes.set_xscale("log")
        axes.set_xlim(0.8, 0.018)
        axes.set_xticks([0.5, 0.2, 0.1, 0.05, 0.02], ["0.5", "0.8", "0.9", "0.95", "0.98"])
        axes.minorticks_off()
    figure.supxlabel("sparsity (25.2 M weights, one thread)", fontsize=9)
    return figure


def by_size() -> Figure:
    figure = panels(rows_of("speed-sizes.json"), "parameters")
    for axes in figure.axes:
        axes.set_xscale("log")
    figure.supxlabel("weights (S = 0.9, one thread)", fontsize=9)
    return figure


FIGURES = {"storage-sparsity": by_sparsity, "storage-sizes": by_size}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "figures"
    with pyplot.rc_context(STYLE):
        for name, draw in FIGURES.items():
            figure = draw()
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            pyplot.close(figure)


if __name__ == "__main__":
    main()
