"""Table 8 on real data: is a sparse MLP more robust on corrupted Fashion-MNIST than the dense one?

    python benchmarks/table8.py                        # 27 runs of 2 to 6 minutes on one core each
    python benchmarks/table8.py --seeds 3 4            # more seeds; start it twice on two cores
    python benchmarks/table8.py --smoke                # two epochs of a small one, under 2 minutes
    python benchmarks/table8.py --batch 8 --epochs 100 # as printed: 10 times as long

An MLP 784-784-784-784-10 (Cannistraci-Hebb training's own size), dense and with SET, RigL,
CHTs+CSTI and CHTs+BSW at 95 % and 97 %, on one thread. Settings of Table 3: SGD with momentum 0.9,
weight decay 5e-4, cosine learning rate from 0.025 at batch 8, ERK, an update every 300 steps of
batch 8, drop fraction polynomial from 0.1. Shorter here: 40 epochs of batch 32, an update every 75
steps and learning rate 0.05, which is 0.025 * sqrt(4): scaled in proportion, to 0.1, CHTs+CSTI
diverges in its first epoch. Not printed and therefore chosen: initial weights are normal with
variance 2 / (density * inputs) for every network, dense included; topology updates go on to the
end, for CHTs to 75 % of training as its authors have it. Sparse networks run with compute="sparse".
The accuracy is the last epoch's: no epoch is chosen on the test set.

Each finished run is a line in benchmarks/results/table8.jsonl; a restart skips what is done.
`python benchmarks/robustness_page.py` writes docs/tables-8-12.md from it.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import fashion
import torch
from common import RESULTS, machine
from runner import seed_by_seed, work_off
from torch import Tensor, nn
from training import density, fit, shuffled

from sparseopt import SparseOptimizer, topologies
from sparseopt.schedules import Polynomial

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from models import mlp  # noqa: E402

DATA = RESULTS / "table8.jsonl"
SPARSITIES = (0.97, 0.95)
METHODS = ("dense", "set", "rigl", "chts+csti", "chts+bsw")
CELLS = (("dense", 0.0), *((method, s) for s in SPARSITIES for method in METHODS[1:]))
SIZES = (784, 784, 784, 784, 10)
LEARNING_RATE, INTERVAL, TABLE_BATCH = 0.025, 300, 8


def runs(
    seeds: list[int], methods: list[str], epochs: int, batch: int, sizes: tuple[int, ...]
) -> list[dict[str, Any]]:
    """The runs of these methods, with all that a line of the data file says of their training."""
    settings = {"epochs": epochs, "batch": batch, "sizes": list(sizes)}
    return [run | settings for run in seed_by_seed(CELLS, seeds) if run["method"] in methods]


def wrapped(
    optimizer: torch.optim.Optimizer, model: nn.Module, run: dict[str, Any], total: int
) -> SparseOptimizer:
    """The method of a run around SGD, with Table 3's settings."""
    recipe, _, start = run["method"].partition("+")
    options: dict[str, Any] = {"stop": 1.0}
    if recipe == "chts":
        ring = topologies.bipartite_small_world()
        names = [f"{2 * number + 1}.weight" for number in range(len(run["sizes"]) - 1)]
        first = topologies.csti(fashion.images()["train"], layers=names[:-1], fallback=ring)
        options = {"topology": first if start == "csti" else ring, "chains": [names]}
    return SparseOptimizer(
        optimizer, recipe, sparsity=run["sparsity"], total_steps=total, model=model,
        update_every=INTERVAL * TABLE_BATCH // run["batch"], distribution="erk",
        drop_fraction=Polynomial(0.1), compute="sparse", seed=run["seed"], **options,
    )  # fmt: skip


def start_(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Normal weights with variance 2 / (density * inputs); biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.in_features))
            nn.init.zeros_(module.bias)
    if isinstance(optimizer, SparseOptimizer):
        topologies.swi_(optimizer.layers, torch.Generator().manual_seed(seed))


def train(run: dict[str, Any], images: dict[str, Tensor]) -> tuple[nn.Module, dict[str, Any]]:
    """One training run; the model and what it took."""
    torch.manual_seed(run["seed"])
    model, batch = mlp(run["sizes"]), run["batch"]
    steps = len(images["train"]) // batch
    rate = LEARNING_RATE * math.sqrt(batch / TABLE_BATCH)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(
        model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4, fused=True
    )
    if run["method"] != "dense":
        optimizer = wrapped(optimizer, model, run, steps * run["epochs"])
    start_(model, optimizer, run["seed"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps * run["epochs"])
    batches = shuffled(images["train"], images["train_labels"], batch)
    begin = time.perf_counter()
    fit(model, optimizer, schedule, batches, run["epochs"])
    seconds = time.perf_counter() - begin
    return model, {"seconds": round(seconds), "density": density(optimizer)}


def measure(run: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    model, taken = train(run, fashion.images())
    reports = {name: fashion.result(fashion.robustness(model, name)) for name in fashion.SETS}
    print(run["method"], run["sparsity"], run["seed"], taken, {
        name: report["robustness"] for name, report in reports.items()
    }, "clean", reports["weiss"]["clean"], flush=True)  # fmt: skip
    return {**taken, **reports, "machine": here}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--out", type=Path, default=DATA, help="the file of the results")
    parser.add_argument("--smoke", action="store_true", help="small network, one seed, 2 epochs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = (arguments.seeds, arguments.methods, arguments.epochs, arguments.batch)
    listed, path = runs(*asked, SIZES), arguments.out
    if arguments.smoke:
        listed = runs([0], arguments.methods, 2, 128, (784, 784, 784, 10))
        listed = [run for run in listed if run["sparsity"] in (0.0, SPARSITIES[0])]
        path = path.with_name("table8-smoke.jsonl")
    here = machine()  # as the code was read, not as it is hours later
    work_off(listed, lambda run: measure(run, here), path)


if __name__ == "__main__":
    main()
