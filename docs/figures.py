"""Draws the figures of docs/concepts.md and docs/choosing.md from real runs on small networks.

    python docs/figures.py           # into docs/figures, under a minute
    python docs/figures.py FOLDER    # somewhere else: a test compares

Needs matplotlib and scikit-learn (``pip install sparseopt[examples]``); one thread, fixed seeds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import torch
from matplotlib import pyplot
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sparseopt import SparseOptimizer, available, distributions
from sparseopt.algorithms import find
from sparseopt.schedules import Constant, Polynomial
from sparseopt.scores import gradient, magnitude, score

FOLDER = Path(__file__).parent / "figures"
GREY, BLUE, RED, PALE = "#4d4d4d", "#2166ac", "#b2182b", "#d9d9d9"
STYLE = {
    "figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False,
    "axes.titlesize": 9, "axes.titlelocation": "left", "legend.frameon": False,
}  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
                         nn.Linear(24, 10))  # fmt: skip


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of 64 handwritten digits, 8 x 8 pixels in [0, 1]."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.tensor(digits.target)
    draws = torch.Generator().manual_seed(0)
    indices = [torch.randint(len(images), (64,), generator=draws) for _ in range(steps)]
    return [(images[index], labels[index]) for index in indices]


def train(
    algo: Any, steps: int, watch: Callable[[SparseOptimizer], None] | None = None, **options: Any
) -> SparseOptimizer:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseOptimizer(optimizer, algo, model=model, **{"total_steps": steps, **options})
    for images, labels in batches(steps):
        sparse.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        sparse.step()
        if watch is not None:
            watch(sparse)
    return sparse


# --- one topology update --------------------------------------------------------------------------


def one_update() -> dict[str, Tensor]:
    """The first layer at a topology update of RigL: what the update saw, and what it did."""
    seen: dict[str, Tensor] = {}

    @score()
    def weight(layer: Any, context: Any) -> Tensor:
        if layer.name == "0.weight":
            seen.update(weight=layer.weight.clone(), before=layer.mask.clone())
        return magnitude(layer, context)

    @score(needs_gradient=True)
    def slope(layer: Any, context: Any) -> Tensor:
        if layer.name == "0.weight":
            seen.update(gradient=layer.gradient.clone(), kept=layer.mask.clone())
        return gradient(layer, context)

    rigl = replace(find("rigl")(0.8), drop=weight, grow=slope)
    sparse = train(rigl, 100, update_every=100, total_steps=400)
    return seen | {"after": sparse.masks["0.weight"].clone()}


def topology_update() -> Figure:
    """Four pictures of one layer: weights, what is dropped, gradients, what is grown."""
    seen = one_update()
    dropped, grown = seen["before"] & ~seen["kept"], seen["after"] & ~seen["kept"]
    size = torch.where(seen["before"], seen["weight"].abs(), torch.nan)
    slope = torch.where(seen["kept"], torch.nan, seen["gradient"].abs())
    figure, axes = pyplot.subplots(4, 1, figsize=(7.2, 12.4), layout="constrained")
    titles = (
        f"1. The active weights: {int(seen['before'].sum())} of {size.numel()}, darker is larger",
        f"2. Drop: the {int(dropped.sum())} smallest (red)",
        "3. The gradient where no weight is, darker is larger",
        f"4. Grow: the {int(grown.sum())} places with the largest gradient (blue), at zero",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xlabel("64 inputs (pixels)")
        axis.set_ylabel("24 outputs")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=True, color=PALE)
    axes[0].imshow(size, cmap="Greys", vmin=0, vmax=0.6 * float(size.nan_to_num().max()))
    axes[1].imshow(roles(seen["kept"], dropped), cmap=ListedColormap(["white", "#bdbdbd", RED]))
    axes[2].imshow(slope, cmap="Blues", vmin=0, vmax=0.7 * float(slope.nan_to_num().max()))
    axes[3].imshow(roles(seen["kept"], grown), cmap=ListedColormap(["white", "#bdbdbd", BLUE]))
    return figure


def roles(kept: Tensor, changed: Tensor) -> Tensor:
    """0: inactive, 1: kept, 2: dropped or grown."""
    return kept.long() + 2 * changed.long()


# --- schedules ------------------------------------------------------------------------------------


def densities(recipe: str, steps: int = 400) -> tuple[list[float], list[list[float]]]:
    """Density of the network, and of each layer, after every step of a run at S = 0.9."""
    whole: list[float] = []
    layers: list[list[float]] = []

    def watch(optimizer: SparseOptimizer) -> None:
        whole.append(optimizer.density)
        layers.append([layer.density for layer in optimizer.layers])

    sizes = {"sparsity": 0.75, "n": 1, "m": 4} if recipe == "nm" else {"sparsity": 0.9}
    train(recipe, steps, watch, update_every=10, **sizes)
    return whole, [list(layer) for layer in zip(*layers, strict=True)]


def density_over_time() -> Figure:
    figure, axes = pyplot.subplots(
        5, 3, figsize=(7.2, 8.4), sharex=True, sharey=True, layout="constrained"
    )
    for axis, recipe in zip(axes.flat, available(), strict=True):
        whole, layers = densities(recipe)
        progress = [step / len(whole) for step in range(1, len(whole) + 1)]
        for layer in layers:
            axis.plot(progress, layer, color=PALE, linewidth=1)
        axis.plot(progress, whole, color=BLUE, linewidth=1.8)
        axis.set_title(recipe + (" (1:4)" if recipe == "nm" else ""), family="monospace")
        axis.set(ylim=(0, 1.02), yticks=(0, 0.5, 1), xticks=(0, 0.5, 1))
    figure.supxlabel("progress of training", fontsize=9)
    figure.supylabel("density", fontsize=9)
    return figure


def drop_fraction() -> Figure:
    """The default of every recipe that drops and grows, and that of the paper for RigL."""
    paper = find("rigl")(0.9, drop_fraction=Polynomial(0.1), stop=1.0)
    found = [(recipe, find(recipe)(0.9)) for recipe in available() if recipe != "nm"]
    lines: dict[tuple[Any, float], list[str]] = {}
    for name, algorithm in [*found, ("rigl in arXiv 2410.03030", paper)]:
        if algorithm.drop_fraction != Constant(0.0):
            lines.setdefault((algorithm.drop_fraction, algorithm.stop), []).append(name)
    figure, axis = pyplot.subplots(figsize=(7.2, 3.4), layout="constrained")
    strokes = ("-", "-", "-", "--", "-")  # set lies on cht, as far as that goes
    for ((schedule, stop), names), stroke in zip(lines.items(), strokes, strict=True):
        progress = [stop * step / 400 for step in range(401)]
        shares = [schedule(at / stop) for at in progress]
        axis.plot(progress, shares, stroke, linewidth=2, label=", ".join(names))
    axis.set(xlabel="progress of training", ylabel="share of active weights", ylim=(0, 0.54))
    axis.legend()
    return figure


def exploration() -> Figure:
    """Weights that were ever active, and weights exchanged at each update, at S = 0.9."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(7.2, 3.2), layout="constrained")
    for recipe, color in (("static", GREY), ("set", RED), ("rigl", BLUE), ("chts", "#1b7837")):
        history = train(recipe, 400, update_every=10, sparsity=0.9).history
        steps = [0, *(record.step for record in history)] if history else [0, 400]
        ever = [0.1, *(record.exploration_rate for record in history)] if history else [0.1, 0.1]
        left.plot(steps, ever, color=color, label=recipe)
        new = [(record.grown - record.regrown) / record.nnz for record in history]
        right.plot(steps[1 : len(new) + 1], new, color=color)
    left.set(xlabel="step", ylabel="ever active, share of all", ylim=(0, 1))
    right.set(xlabel="step", ylabel="replaced, share of active", ylim=(0, None))
    left.legend()
    return figure


# --- storage and distribution ---------------------------------------------------------------------


def stored() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A small layer under compact storage: weight, mask, positions, and Adam's first moment."""
    torch.manual_seed(3)
    model = nn.Linear(12, 6, bias=False)
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparse = SparseOptimizer(adam, "static", sparsity=0.75, storage="compact", model=model)
    for _ in range(5):
        sparse.zero_grad()
        model(torch.randn(16, 12)).square().mean().backward()
        sparse.step()
    mask = sparse.layers[0].mask
    moment = sparse.state[model.weight]["exp_avg"]
    return model.weight.detach(), mask, mask.flatten().nonzero().flatten(), moment


def compact_storage() -> Figure:
    weight, mask, positions, moment = stored()
    figure = pyplot.figure(figsize=(7.2, 4.2), layout="constrained")
    grid = figure.add_gridspec(4, 1, height_ratios=(6, 1.3, 1.3, 1.3))
    panels = [figure.add_subplot(cell) for cell in grid]
    shown = torch.where(mask, weight, torch.nan)
    cells(panels[0], shown, "The weight: 6 x 12, 18 active (the model's own tensor, dense)")
    title = "Positions of the active weights, row by row (8 bytes each)"
    cells(panels[1], torch.full((1, len(positions)), torch.nan), title)
    for at, position in enumerate(positions.tolist()):
        panels[1].text(at, 0, str(position), ha="center", va="center", fontsize=7)
    cells(panels[2], weight[mask][None], "What the inner optimizer steps on: 18 values")
    cells(panels[3], moment[None], "Its state, exp_avg: 18 values (and 18 of exp_avg_sq)")
    return figure


def cells(axis: Any, values: Tensor, title: str) -> None:
    """A matrix as squares, red below zero and blue above."""
    limit = float(values.abs().nan_to_num().max()) or 1.0
    axis.imshow(values, cmap="RdBu", vmin=-limit, vmax=limit)
    axis.set_title(title)
    axis.set_xticks([column - 0.5 for column in range(values.shape[1] + 1)], labels=[])
    axis.set_yticks([row - 0.5 for row in range(values.shape[0] + 1)], labels=[])
    axis.grid(color=PALE, linewidth=0.6)
    axis.tick_params(length=0)
    for spine in axis.spines.values():
        spine.set(visible=True, color=PALE)


VGG16: Sequence[tuple[int, ...]] = [
    (64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3),
    (256, 256, 3, 3), (256, 256, 3, 3), (512, 256, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3),
    (512, 512, 3, 3), (512, 512, 3, 3), (512, 512, 3, 3), (10, 512),
]  # fmt: skip


def distribution() -> Figure:
    """Density of every layer of VGG16 for CIFAR-10 at S = 0.9, by distribution."""
    figure, axis = pyplot.subplots(figsize=(7.2, 3.2), layout="constrained")
    places = range(len(VGG16))
    for offset, name, color in ((-0.27, "uniform", PALE), (0, "er", BLUE), (0.27, "erk", RED)):
        shares = distributions.densities(name, VGG16, 0.9)
        axis.bar([place + offset for place in places], shares, 0.25, color=color, label=name)
    labels = [f"{shape[1]}\n{shape[0]}" for shape in VGG16]
    axis.set_xticks(places, labels=labels, fontsize=7)
    axis.set(xlabel="layer: inputs over outputs; the last is linear", ylabel="density")
    axis.legend()
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "topology-update": topology_update,
    "density-over-time": density_over_time,
    "drop-fraction": drop_fraction,
    "exploration": exploration,
    "compact-storage": compact_storage,
    "distributions": distribution,
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, draw in FIGURES.items():
        with pyplot.rc_context(STYLE):
            figure = draw()
            figure.savefig(folder / f"{name}.png", metadata={"Software": None})
            pyplot.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
