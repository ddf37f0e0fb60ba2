"""Table 9: does Mixup help a sparse network as it helps a dense one?

    python benchmarks/table9.py                 # stand-in: 6 to 12 runs of a minute on one core
    python benchmarks/table9.py --smoke         # the four cells in a few steps
    python benchmarks/table9.py --data FOLDER --device cuda          # as in the paper

Full reproduction: ResNet34 on CIFAR-100, FOLDER with cifar-100-python and CIFAR-100-C (2.9 GB); 12
runs of 160 epochs, each by our estimate 1.5 hours on one A100; on CPUs, weeks. Settings of Table
3: SGD with momentum 0.9, weight decay 5e-4, cosine learning rate from 0.1, batch 100, uniform, an
update every 500 steps, P = 0.1 polynomial. The appendix does not print the sparsity of SET nor
Mixup's alpha: 0.5 (--sparsity) and 1.

The stand-in is the small VGG of low_sparsity.py on the first 20,000 pictures of Fashion-MNIST at 32
x 32 pixels, 10 epochs, an update every 20 steps; robustness on 19 corruptions at 5 severities with
CIFAR-C's constants, 500 test images. Its runs without Mixup are runs of low_sparsity.py, and taken
from that data file as far as they are there. Writes benchmarks/results/table9.jsonl.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fashion
import low_sparsity
import torch
from common import RESULTS
from runner import finished, work_off
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from training import Batches, density, fit, linear_layers, made_with, shuffled, sparse

from sparseopt.robustness import CIFARC, RobustnessReport, evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from models import resnet34  # noqa: E402

DATA = RESULTS / "table9.jsonl"
SEEDS = (0, 1, 2)
BATCH, ALPHA = 100, 1.0
MEANS, DEVIATIONS = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)  # of CIFAR-100


@dataclass(frozen=True)
class Task:
    """One data set with its network, the length of its training, and its evaluation."""

    network: Callable[[], nn.Module]
    first: str  # the first convolution, which stays dense
    batches: Batches
    length: int
    classes: int
    epochs: int
    every: int
    robustness: Callable[[nn.Module], RobustnessReport]
    device: str = "cpu"


def mixed(batches: Batches, classes: int) -> Batches:
    """Every batch under torchvision's MixUp."""
    mixup = v2.MixUp(alpha=ALPHA, num_classes=classes)

    def epoch() -> Iterator[tuple[Tensor, Tensor]]:
        for inputs, targets in batches():
            yield mixup(inputs, targets)

    return epoch


def measure(run: dict[str, Any], task: Task) -> dict[str, Any]:
    begin = time.perf_counter()
    torch.manual_seed(run["seed"])
    model = task.network().to(task.device)
    total = task.epochs * task.length
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
    optimizer = sparse(
        sgd, run["method"], model, sparsity=run["sparsity"], total_steps=total, seed=run["seed"],
        update_every=task.every, distribution="uniform",
        exclude=[task.first, *linear_layers(model)],
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    batches = mixed(task.batches, task.classes) if run["mixup"] else task.batches
    fit(model, optimizer, schedule, batches, task.epochs)
    return {
        **fashion.result(task.robustness(model)),
        "density": density(optimizer),
        "seconds": round(time.perf_counter() - begin, 1),
        **made_with(),
    }


def stand_in(images: int = low_sparsity.IMAGES, epochs: int = 10, tested: int = 500) -> Task:
    """Fashion-MNIST at 32 x 32 pixels and a small VGG."""
    pixels, labels = fashion.datasets.load()[:2]
    size = low_sparsity.SIZE
    inputs = low_sparsity.prepared(fashion.padded(pixels[:images], size))

    def robustness(model: nn.Module) -> RobustnessReport:
        return fashion.robustness(model, "cifar", tested, low_sparsity.prepared, size)

    batches = shuffled(inputs, labels[:images], BATCH)
    length, every = images // BATCH, low_sparsity.EVERY
    return Task(
        low_sparsity.network, "0.weight", batches, length, classes=10, epochs=epochs, every=every,
        robustness=robustness,
    )  # fmt: skip


def found(run: dict[str, Any]) -> dict[str, Any] | None:
    """The result of low_sparsity.py for the same training: equal to the last digit."""
    if run["mixup"]:
        return None
    same = {key: run[key] for key in ("method", "sparsity", "seed")}
    for line in finished(low_sparsity.DATA):
        if line["run"] == same:
            result = line["result"]
            kept = ("density", "seconds", "commit", "torch", "processor")
            return {**result["cifar"], **{key: result[key] for key in kept}}
    return None


# --- CIFAR-100 ----------------------------------------------------------------------------------


def cifar100(root: Path, device: str, epochs: int = 160, workers: int = 8) -> Task:
    """CIFAR-100 and CIFAR-100-C in their published layouts, and ResNet34 for 32 x 32 pixels."""
    pixels, labels = read_cifar100(root, "train")
    clean = Pictures(*read_cifar100(root, "test"), prepare)
    corrupted = CIFARC(root / "CIFAR-100-C", transform=prepare)
    augment = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), prepare])
    loader = DataLoader(
        Pictures(pixels, labels, augment), BATCH, shuffle=True, drop_last=True, num_workers=workers
    )

    def robustness(model: nn.Module) -> RobustnessReport:
        return evaluate(model, corrupted, clean=clean, workers=workers, progress=False)

    def batches() -> Iterable[tuple[Tensor, Tensor]]:
        return loader

    return Task(
        partial(resnet34, 100), "0.0.weight", batches, len(loader), classes=100, epochs=epochs,
        every=500, robustness=robustness, device=device,
    )  # fmt: skip


def read_cifar100(root: Path, part: str) -> tuple[Tensor, Tensor]:
    """uint8 (n, 3, 32, 32) and fine labels, from the file as published."""
    path = root / "cifar-100-python" / part
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; expected CIFAR-100 for Python, unpacked")
    with path.open("rb") as file:
        content = pickle.load(file, encoding="bytes")
    pixels = torch.from_numpy(content[b"data"]).view(-1, 3, 32, 32)
    return pixels, torch.tensor(content[b"fine_labels"])


def prepare(picture: Any) -> Tensor:
    """A Pillow or uint8 image, normalized."""
    scaled = v2.functional.to_dtype(v2.functional.to_image(picture), torch.float32, scale=True)
    return v2.functional.normalize(scaled, list(MEANS), list(DEVIATIONS))


class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels in memory, transformed when they are read."""

    def __init__(self, pixels: Tensor, labels: Tensor, transform: Callable[[Any], Tensor]) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.transform(self.pixels[index]), self.labels[index]


def runs(sparsity: float = 0.5, seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    """Seed by seed, the four cells of the table."""
    return [
        {"method": method, "mixup": mixup, "sparsity": zeros, "seed": seed}
        for seed in seeds
        for mixup in (False, True)
        for method, zeros in (("dense", 0.0), ("set", sparsity))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with cifar-100-python and CIFAR-100-C")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--epochs", type=int, default=160, help="with --data")
    parser.add_argument("--sparsity", type=float, default=0.5)
    parser.add_argument("--smoke", action="store_true", help="a few steps of the stand-in")
    arguments = parser.parse_args()
    listed, path = runs(arguments.sparsity), DATA
    if arguments.data:
        path = RESULTS / "table9-cifar100.jsonl"
        task = cifar100(arguments.data, arguments.device, arguments.epochs)
        work_off(listed, lambda run: measure(run, task), path)
        return
    torch.set_num_threads(1)
    if arguments.smoke:
        task, listed = stand_in(2500, 1, 20), runs(arguments.sparsity, (0,))
        work_off(listed, lambda run: measure(run, task), RESULTS / "table9-smoke.jsonl")
    else:
        task = stand_in()
        work_off(listed, lambda run: found(run) or measure(run, task), path)


if __name__ == "__main__":
    main()
