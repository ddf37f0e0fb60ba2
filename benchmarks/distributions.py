"""Test accuracy by distribution: how the same number of weights is shared out over the layers.

    python benchmarks/distributions.py       # about 20 minutes on one core; restart to go on

The training of accuracy.py, with each of uniform, er and erk in turn: for two recipes whose default
is erk and two whose default is uniform. Writes benchmarks/results/distributions.jsonl;
docs/tables.py makes a table of it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from accuracy import SEEDS, load, train
from common import RESULTS
from runner import work_off

DATA = RESULTS / "distributions.jsonl"
SPARSITIES = (0.9, 0.98)


def runs() -> list[dict[str, Any]]:
    return [
        {
            "network": network, "recipe": recipe, "sparsity": sparsity,
            "distribution": distribution, "seed": seed,
        }
        for seed in SEEDS
        for network in ("mlp", "cnn")
        for recipe in ("set", "rigl", "gmp", "chts")
        for sparsity in SPARSITIES
        for distribution in ("uniform", "er", "erk")
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", help="folder with Fashion-MNIST")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    images = load(arguments.data)
    work_off(runs(), lambda run: train(run, images), DATA)


if __name__ == "__main__":
    main()
