"""Dense and six sparse methods on a small VGG at low sparsity: the sweet spot of the paper.

    python benchmarks/low_sparsity.py            # about 30 minutes on one core; restart to go on
    python benchmarks/low_sparsity.py --smoke    # 2 methods, a few steps, a minute

Figures 9-11 of arXiv 2410.03030 in small: robustness accuracy against training FLOPs, and the gain
over dense per corruption and severity. Fashion-MNIST padded to 32 x 32 pixels, the first 20,000
training images, no augmentation; a VGG of five convolutions with batch norm.

Settings are those of the paper's VGG16 on CIFAR-10 (Table 3) scaled down: SGD with momentum 0.9,
weight decay 5e-4, cosine learning rate from 0.1, batch 100; uniform sparsity in all convolutions
but the first, linear layers dense; P = 0.1 with the polynomial decay; MEST's bound 0.1; GraNet from
density 0.8 to the target over half of training. 10 epochs instead of 160 make 2,000 steps, so the
topology is updated every 20 steps (100 updates) instead of every 500 (160 updates).

Full reproduction: VGG16 on CIFAR-10, 160 epochs, 57 runs; by our estimate half an hour a run on one
A100, 40 hours a run on one CPU core. Several processes may share the list. Writes
benchmarks/results/low_sparsity.jsonl; `python benchmarks/robustness_page.py` makes the page of it.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import fashion
import torch
from common import RESULTS
from runner import seed_by_seed, work_off
from torch import Tensor, nn
from training import density, fit, linear_layers, made_with, shuffled, sparse

from sparseopt import SparseOptimizer, flops

DATA = RESULTS / "low_sparsity.jsonl"
METHODS = ("set", "rigl", "mest_r", "mest_g", "granet_r", "granet_g")
SPARSITIES = (0.3, 0.5, 0.7)
CELLS = (("dense", 0.0), *((method, s) for s in SPARSITIES for method in METHODS))
SEEDS = (0, 1, 2)
EPOCHS, BATCH, IMAGES, EVERY = 10, 100, 20_000, 20
TESTED = 500  # of the 10,000 test images: 47,500 corrupted ones in a set
SIZE = 32
WIDTHS = (8, 16, 32, 64, 64)


def network() -> nn.Module:
    """3 x 3 convolutions with batch norm, pooling after each but the last, two linear layers."""
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(zip((1, *WIDTHS), WIDTHS, strict=False)):
        layers += [nn.MaxPool2d(2)] if number else []
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    last = WIDTHS[-1]
    head = [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(last, last), nn.ReLU(), nn.Linear(last, 10)]
    return nn.Sequential(*layers, *head).to(memory_format=torch.channels_last)


def prepared(pixels: Tensor) -> Tensor:
    return fashion.normalized(pixels).to(memory_format=torch.channels_last)


def train(run: dict[str, Any], images: int, epochs: int) -> tuple[nn.Module, Any, int]:
    """A network, its optimizer, and how many steps they took. As in Tables 4-6, the first
    convolution and the linear layers stay dense."""
    torch.manual_seed(run["seed"])
    pixels, labels = fashion.datasets.load()[:2]
    inputs = prepared(fashion.padded(pixels[:images], SIZE))
    model, total = network(), epochs * (images // BATCH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    optimizer = sparse(
        sgd, run["method"], model, sparsity=run["sparsity"], total_steps=total, seed=run["seed"],
        update_every=EVERY, distribution="uniform", exclude=["0.weight", *linear_layers(model)],
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    fit(model, optimizer, schedule, shuffled(inputs, labels[:images], BATCH), epochs)
    return model, optimizer, total


def cost(model: nn.Module, optimizer: Any, steps: int) -> dict[str, float]:
    """FLOPs of training and of one test image, and parameters; growth is left out as in the paper.

    For dense runs the same count without densities.
    """
    inputs = torch.zeros(1, 1, SIZE, SIZE)
    counted = flops.count(model, inputs)
    if isinstance(optimizer, SparseOptimizer):
        spent = optimizer.flops(inputs, model=model, batch_size=BATCH).so_far
    else:
        spent = flops.run_cost(counted, [(0, 1.0)], steps, BATCH)
    return {
        "training_flops": spent.training, "inference_flops": spent.inference,
        "parameters": spent.parameters, "share": round(spent.share, 5),
    }  # fmt: skip


def measure(
    run: dict[str, Any], images: int = IMAGES, epochs: int = EPOCHS, tested: int = TESTED
) -> dict[str, Any]:
    """One run: robustness on both sets, cell by cell, and what the training cost."""
    begin = time.perf_counter()
    model, optimizer, total = train(run, images, epochs)
    seconds = time.perf_counter() - begin
    reports = {
        name: fashion.result(fashion.robustness(model, name, tested, prepared, SIZE))
        for name in ("cifar", "imagenet")
    }
    return {
        **reports,
        **cost(model, optimizer, total),
        "density": density(optimizer),
        "seconds": round(seconds, 1),
        **made_with(),
    }


def runs(seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    return seed_by_seed(CELLS, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="two runs of a few steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.smoke:
        few = [run for run in runs((0,)) if run["method"] in ("dense", "set")][:2]
        work_off(few, lambda run: measure(run, 2500, 1, 20), RESULTS / "low_sparsity-smoke.jsonl")
    else:
        work_off(runs(), measure, DATA)


if __name__ == "__main__":
    main()
