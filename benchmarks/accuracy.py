"""Test accuracy of every recipe on Fashion-MNIST: one MLP, one small CNN, four sparsities.

    python benchmarks/accuracy.py            # about half an hour on one core; restart to go on
    python benchmarks/accuracy.py --smoke    # one seed, two recipes, a minute
    python benchmarks/accuracy.py --table    # only write docs/accuracy.md from the data file

The same short training for all: SGD with momentum 0.9 and weight decay 5e-4, cosine learning rate
from 0.1, batch 128, 3 epochs of the first 20,000 images. Topology updates every 25 steps; every
other option is the recipe's default. One thread. Several processes may share the list. Writes
benchmarks/results/accuracy.jsonl and docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import RESULTS
from runner import finished, work_off
from torch import Tensor, nn
from training import density, fit, made_with, shuffled

from sparseopt import SparseOptimizer, available

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
import data as datasets  # noqa: E402

DATA = RESULTS / "accuracy.jsonl"
PAGE = ROOT / "docs" / "accuracy.md"
SPARSITIES = (0.5, 0.9, 0.95, 0.98)
SEEDS = (0, 1, 2)
EPOCHS, BATCH, EVERY = 3, 128, 25
IMAGES = 20_000  # of the 60,000: three seeds of 58 runs are 350 runs
N_OF_M = {0.5: (2, 4)}  # 0.9, 0.95 and 0.98 are no N of M inputs that both networks divide by


def network(name: str) -> nn.Module:
    if name == "mlp":
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
            nn.Linear(256, 10),
        )  # fmt: skip
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def wrapped(
    optimizer: torch.optim.Optimizer, run: dict[str, Any], model: nn.Module, total: int
) -> torch.optim.Optimizer:
    if run["recipe"] == "dense":
        return optimizer
    options: dict[str, Any] = {key: run[key] for key in ("distribution",) if key in run}
    if run["recipe"] == "nm":
        options |= zip("nm", N_OF_M[run["sparsity"]], strict=True)
    return SparseOptimizer(
        optimizer, run["recipe"], sparsity=run["sparsity"], total_steps=total,
        update_every=EVERY, model=model, seed=run["seed"], **options,
    )  # fmt: skip


def train(run: dict[str, Any], images: dict[str, Tensor]) -> dict[str, Any]:
    """One training run: the test accuracy in percent, and what it took."""
    torch.manual_seed(run["seed"])
    model = network(run["network"])
    total = EPOCHS * (IMAGES // BATCH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    optimizer = wrapped(sgd, run, model, total)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    batches = shuffled(images["train"][:IMAGES], images["train_labels"][:IMAGES], BATCH)
    begin = time.perf_counter()
    fit(model, optimizer, schedule, batches, EPOCHS)
    seconds = time.perf_counter() - begin
    model.eval()
    with torch.no_grad():
        correct = model(images["test"]).argmax(1).eq(images["test_labels"]).double().mean()
    return {
        "accuracy": round(100 * float(correct), 3),
        "density": density(optimizer),
        "seconds": round(seconds, 2),
        **made_with(),
    }


def load(path: str | None) -> dict[str, Tensor]:
    train_images, train_labels, test_images, test_labels = datasets.load(path)

    def normalized(values: Tensor) -> Tensor:
        return ((values.float() / 255 - 0.286) / 0.353).unsqueeze(1)

    return {
        "train": normalized(train_images), "train_labels": train_labels.long(),
        "test": normalized(test_images), "test_labels": test_labels.long(),
    }  # fmt: skip


def runs(seeds: tuple[int, ...], recipes: list[str]) -> list[dict[str, Any]]:
    """Dense first, then all recipes seed by seed: a part of the list is a fair table already."""
    listed = []
    for seed in seeds:
        for name in ("mlp", "cnn"):
            listed.append({"network": name, "recipe": "dense", "sparsity": 0.0, "seed": seed})
            for sparsity in SPARSITIES:
                for recipe in recipes:
                    if recipe != "nm" or sparsity in N_OF_M:
                        listed.append(
                            {"network": name, "recipe": recipe, "sparsity": sparsity, "seed": seed}
                        )
    return listed


def cell(results: list[dict[str, Any]], **wanted: Any) -> str:
    values = [
        line["result"]["accuracy"]
        for line in results
        if all(line["run"][key] == value for key, value in wanted.items())
    ]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def page(results: list[dict[str, Any]]) -> str:
    """docs/accuracy.md: one table per network, mean ± standard deviation over the seeds."""
    seeds = len({line["run"]["seed"] for line in results})
    parts = [
        "# Accuracy of every recipe\n",
        "<!-- Generated by benchmarks/accuracy.py; do not edit. -->\n",
        "Our own measurement on Fashion-MNIST: test accuracy in percent, mean ± standard deviation "
        f"over {seeds} seeds. All methods train alike and briefly ({EPOCHS} epochs of the first "
        f"{IMAGES:,} images, batch {BATCH}, SGD with momentum, cosine learning rate), with "
        f"the defaults of each recipe and an update every {EVERY} steps: what a method does in a "
        "long, tuned run may differ.\n",
    ]
    for name, title in (("mlp", "MLP 784-256-256-10"), ("cnn", "CNN 16-32-64-10")):
        dense = cell(results, network=name, recipe="dense")
        heads = "".join(f" S = {sparsity} |" for sparsity in SPARSITIES)
        rule = "|---" * (1 + len(SPARSITIES)) + "|"
        parts.append(f"## {title}\n\nDense: **{dense}**\n\n| recipe |{heads}\n{rule}")
        for recipe in available():
            cells = "".join(
                f" {cell(results, network=name, recipe=recipe, sparsity=sparsity)} |"
                for sparsity in SPARSITIES
            )
            parts.append(f"| `{recipe}` |{cells}")
        parts.append("")
    last = results[-1]["result"] if results else {}
    parts.append(
        f"Command: `python benchmarks/accuracy.py`. Commit {last.get('commit')}, torch "
        f"{last.get('torch')}, {last.get('processor')}, one thread. Data: "
        "`benchmarks/results/accuracy.jsonl`. N:M is measured at 2:4 only."
    )
    return "\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="folder with Fashion-MNIST")
    parser.add_argument("--smoke", action="store_true", help="one seed of two recipes")
    parser.add_argument("--table", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.table:
        images = load(arguments.data)
        listed = runs(SEEDS[:1], ["set", "rigl"]) if arguments.smoke else runs(SEEDS, available())
        path = RESULTS / "accuracy-smoke.jsonl" if arguments.smoke else DATA
        work_off(listed, lambda run: train(run, images), path)
    if not arguments.smoke:
        PAGE.write_text(page(finished(DATA)))


if __name__ == "__main__":
    main()
