"""A network with 2 % of its weights learns Fashion-MNIST, through an ordinary training loop.

    make demo                               or: python examples/demo.py
    make demo ARGS="--data digits"          without any download, in seconds

Trains the same network five times: dense, and with SET and RigL at 90 % and 98 % sparsity. Nothing
but the optimizer differs. Prints a table and writes a figure (demo.png): accuracy over epochs, the
share of weights that each topology update replaces, and which pixels the first layer looks at.
Takes minutes. Expect dense near 90 % test accuracy, 90 % sparsity within one point of it, and 98 %
sparsity within two and a half.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from data import Dataset, load
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR
from tqdm import tqdm

from sparseopt import SparseOptimizer

RUNS = (("dense", 0.0), ("set", 0.9), ("rigl", 0.9), ("set", 0.98), ("rigl", 0.98))
HIDDEN = (512, 256)
BATCH_SIZE = 128
UPDATES = 50  # topology updates that fit into a run; RigL rests in its last quarter


@dataclass
class Run:
    """One training: what was asked for, and what came out."""

    algorithm: str
    sparsity: float
    accuracy: list[float] = field(default_factory=list)  # on the test images, after each epoch
    seconds: float = 0.0
    active: int = 0  # weights of the linear layers
    weights: int = 0
    cost: float = 1.0  # training FLOPs of those layers, as a share of dense training
    replaced: list[tuple[int, float]] = field(default_factory=list)  # (step, share of active)
    looks: Tensor = field(default_factory=Tensor)  # active first-layer weights per input pixel

    @property
    def name(self) -> str:
        names = {"dense": "dense", "set": "SET", "rigl": "RigL"}
        return names[self.algorithm] + (f" {percent(self.sparsity, 0)}" if self.sparsity else "")


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    options = parse(arguments)
    data = Standardized(load(options.data))
    steps = options.epochs * data.batches
    runs = [Run(algorithm, sparsity) for algorithm, sparsity in RUNS]
    with tqdm(total=len(runs) * steps, unit="step", disable=None) as bar:  # quiet in a log file
        for run in runs:
            bar.set_description(run.name)
            train(run, data, options.epochs, options.seed, bar)
            bar.write(f"{run.name}: {percent(run.accuracy[-1], 2)} in {run.seconds:.0f} s")
    print(table(runs))
    draw(runs, data, options.out)
    print(f"\nThe figure is in {options.out}")
    return runs


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", help="a folder with Fashion-MNIST, or digits")
    parser.add_argument("--epochs", type=positive, default=10, help="passes over the training data")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data order and topology")
    parser.add_argument("--out", type=Path, default=Path("demo.png"), help="where the figure goes")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be 1 or more")
    return int(text)


class Standardized:
    """The whole data set in memory: rows of pixels with mean 0 and deviation 1."""

    def __init__(self, data: Dataset) -> None:
        images, self.labels, test_images, self.test_labels = data
        self.shape = tuple(images.shape[1:])
        self.mean_image = images.float().mean(0)
        mean, deviation = images.float().mean(), images.float().std()
        self.images = (images.flatten(1).float() - mean) / deviation
        self.test_images = (test_images.flatten(1).float() - mean) / deviation
        self.batches = -(-len(images) // BATCH_SIZE)


def network(inputs: int) -> nn.Sequential:
    widths = (inputs, *HIDDEN)
    layers: list[nn.Module] = []
    for fan_in, fan_out in zip(widths, HIDDEN, strict=False):
        layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 10))


def update_interval(steps: int) -> int:
    """Optimizer steps between updates: at least ten, where the run is long enough."""
    return max(steps // UPDATES, min(10, steps // 4), 1)


def train(run: Run, data: Standardized, epochs: int, seed: int, bar: tqdm) -> None:
    """The same for every run, but for the one statement that wraps the optimizer."""
    torch.manual_seed(seed)
    model = network(data.images.shape[1])
    steps = epochs * data.batches
    opt: Optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    if run.sparsity:
        opt = SparseOptimizer(
            opt,
            algo=run.algorithm,
            sparsity=run.sparsity,
            total_steps=steps,
            update_every=update_interval(steps),
            model=model,
            seed=seed,
        )
    scheduler = CosineAnnealingLR(opt, steps)
    start = time.perf_counter()
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(data.images)).split(BATCH_SIZE):
            opt.zero_grad()
            cross_entropy(model(data.images[batch]), data.labels[batch]).backward()
            opt.step()
            scheduler.step()
            bar.update()
        run.accuracy.append(accuracy(model, data))
    run.seconds = time.perf_counter() - start
    record(run, model, opt, steps, data.shape)


@torch.no_grad()
def accuracy(model: nn.Module, data: Standardized) -> float:
    """Share of test images that are classified right."""
    right = model.eval()(data.test_images).argmax(1) == data.test_labels
    return right.float().mean().item()


def record(run: Run, model: nn.Module, opt: Optimizer, steps: int, shape: tuple[int, ...]) -> None:
    """Reads from the optimizer what the table and the figure show."""
    run.weights = sum(part.weight.numel() for part in model if isinstance(part, nn.Linear))
    run.active = run.weights
    if not isinstance(opt, SparseOptimizer):
        return
    run.active = sum(layer.nnz for layer in opt.layers)
    run.replaced = [(made.step, (made.dropped - made.regrown) / run.active) for made in opt.history]
    run.looks = opt.layers[0].mask.sum(0).view(shape).float()
    run.cost = training_cost(run, updates=len(opt.history), steps=steps)


def training_cost(run: Run, updates: int, steps: int) -> float:
    """Training FLOPs of the linear layers, as a share of dense training.

    Forward pass, gradients of the activations and gradients of the weights cost the same, each in
    proportion to the active weights; RigL needs all gradients of the weights at an update.
    (Evci et al., "Rigging the Lottery", appendix H.)
    """
    density = run.active / run.weights
    dense_gradients = (1 - density) / 3 * updates / steps
    return density + (dense_gradients if run.algorithm == "rigl" else 0.0)


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f} %"


def cells(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """The heads of the table, and a row for every run."""
    rows = [("", "test accuracy", "active weights", "training FLOPs", "seconds")]
    for run in runs:
        right = percent(run.accuracy[-1], digits=2)
        active = f"{run.active:,} ({percent(run.active / run.weights)})"
        rows.append((run.name, right, active, percent(run.cost), f"{run.seconds:.0f}"))
    return rows


def table(runs: Sequence[Run]) -> str:
    rows = cells(runs)
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [
        "   ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    note = (
        "Training FLOPs: what the linear layers need, as a share of dense training. Seconds are\n"
        "those of dense arithmetic on masked weights: they do not shrink with the FLOPs."
    )
    return "\n".join(["", lines[0], "-" * len(lines[0]), *lines[1:], "", note])


def draw(runs: Sequence[Run], data: Standardized, path: Path) -> None:
    """The figure: two charts above, pictures of what the first layers look at below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sparse = [run for run in runs if run.sparsity]
    figure = pyplot.figure(figsize=(11, 6.5), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(3, 2))
    left, right = above.subplots(1, 2)
    chart_accuracy(left, runs)
    chart_replaced(right, sparse)
    below.suptitle("Active weights of the first layer per input pixel", fontsize="medium")
    pictures = below.subplots(1, 1 + len(sparse))
    show(pictures[0], data.mean_image, "mean training image", "gray")
    for axes, run in zip(pictures[1:], sparse, strict=True):
        colors = show(axes, run.looks, run.name, "viridis")
        figure.colorbar(colors, ax=axes, shrink=0.7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


COLORS = {"dense": "black", "set": "tab:blue", "rigl": "tab:orange"}


def style(run: Run) -> dict[str, Any]:
    return {
        "color": COLORS[run.algorithm],
        "linestyle": "--" if run.sparsity > 0.95 else "-",
        "linewidth": 1.2 if run.algorithm == "rigl" else 2.2,  # seen where it lies on top of SET
        "label": run.name,
    }


def chart_accuracy(axes: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        values = [100 * accuracy for accuracy in run.accuracy]
        axes.plot(range(1, len(values) + 1), values, **style(run))
    axes.set(title="Test accuracy (%)", xlabel="epoch")
    axes.grid(alpha=0.3)
    axes.legend()


def chart_replaced(axes: Any, runs: Sequence[Run]) -> None:
    for run in runs:
        steps, shares = zip(*run.replaced, strict=True) if run.replaced else ((), ())
        axes.plot(steps, [100 * share for share in shares], **style(run))
    axes.set(title="Active weights replaced per update (%)", xlabel="optimizer step")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def show(axes: Any, image: Tensor, title: str, colors: str) -> Any:
    axes.set_title(title, fontsize="small")
    axes.axis("off")
    return axes.imshow(image.numpy(), cmap=colors, interpolation="nearest")


if __name__ == "__main__":
    main()
