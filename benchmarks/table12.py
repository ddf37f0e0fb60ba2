"""Table 12: a segmentation network with a pruned backbone, clean and corrupted.

    python benchmarks/table12.py                # stand-in: 12 runs of a minute on one core
    python benchmarks/table12.py --smoke        # dense and SET in a few steps
    python benchmarks/table12.py --data FOLDER --backbone vgg16.pth --device cuda

Full reproduction: FOLDER with VOCdevkit/VOC2012 (2 GB) and torchvision's VGG16 weights for
ImageNet; 12 runs of 80 epochs, each by our estimate 3 hours on one A100, and 1,449 pictures x 95
corruptions to evaluate, half an hour with 16 cores that corrupt them. Settings of
Table 3: SGD with momentum 0.9, weight decay 1e-4, learning rate 0.0001 falling polynomially, batch
4, ERK, an update every 500 steps, P = 0.5 cosine. Crops of 480 pixels are ours; the appendix has
none.

FCN-32s on VGG16. As in the appendix (A.9): the backbone, trained for classification, is pruned by
magnitude, then fine-tuned sparsely; the head stays dense. Sparsities 0.1 and 0.2 are the paper's,
RigL beside SET is ours.

The stand-in: VGG16 of an eighth of the width, pretrained on single pieces of clothing, then
fine-tuned on scenes of 96 x 96 pixels (stand_ins.py) for 20 epochs at a learning rate of 0.01, an
update every 24 steps. Writes benchmarks/results/table12.jsonl.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import fashion
import stand_ins
import torch
from common import RESULTS
from runner import seed_by_seed, work_off
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from training import Batches, density, fit, made_with, shuffled, sparse

from sparseopt.robustness import CorruptedVOC, RobustnessReport, evaluate
from sparseopt.schedules import Cosine

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from models import FCN, fcn_vgg16  # noqa: E402

DATA = RESULTS / "table12.jsonl"
SEEDS = (0, 1, 2)
CELLS = (("dense", 0.0), ("set", 0.2), ("set", 0.1), ("rigl", 0.1))
BATCH, POWER = 4, 0.9
MEANS, DEVIATIONS = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # of ImageNet


@dataclass(frozen=True)
class Task:
    """Where the pictures are, and how the network is made and trained."""

    root: Path
    width: float
    epochs: int
    every: int
    learning_rate: float
    side: int | None  # of all pictures; None: they have their own sizes
    crop: int
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    backbone: Path | None = None
    pretraining: tuple[int, int] = (6000, 8)  # pictures and epochs, of the stand-in
    device: str = "cpu"
    workers: int = 0


def prepare(picture: Any) -> Tensor:
    """A Pillow image or a float one in [0, 1], normalized."""
    scaled = v2.functional.to_dtype(v2.functional.to_image(picture), torch.float32, scale=True)
    return v2.functional.normalize(scaled, MEANS, DEVIATIONS)


# --- the backbone -------------------------------------------------------------------------------


def started(model: nn.Module) -> nn.Module:
    """Normal weights that keep the size of the signal through thirteen layers without norms."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


@cache
def pretrained(width: float, seed: int, pictures: int, epochs: int) -> dict[str, Tensor]:
    """The backbone of the stand-in, after classifying single pieces of clothing on photographs."""
    torch.manual_seed(seed)
    pixels, kinds = (torch.from_numpy(array) for array in stand_ins.portraits(pictures))
    inputs = torch.stack([prepare(picture) for picture in pixels.permute(0, 3, 1, 2)])
    model = fcn_vgg16(width=width)
    started(model)
    wide = model.features(inputs[:1]).shape[1]
    classifier = nn.Sequential(model.features, nn.Flatten(), nn.Linear(wide, len(stand_ins.ITEMS)))
    adam = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, epochs * (pictures // 100))
    fit(classifier, adam, schedule, shuffled(inputs, kinds, 100), epochs)
    return {name: value.clone() for name, value in model.features.state_dict().items()}


def network(task: Task, seed: int) -> FCN:
    """FCN-32s whose backbone has learned to classify."""
    if task.backbone is None:
        weights = pretrained(task.width, seed, *task.pretraining)
    else:
        file = torch.load(task.backbone, map_location="cpu", weights_only=True)
        named = {k.removeprefix("features."): v for k, v in file.items() if "features." in k}
        weights = named or file
    torch.manual_seed(seed)
    model = fcn_vgg16(CorruptedVOC.num_classes, task.width)
    started(model)
    model.features.load_state_dict(weights)
    return model


# --- pictures -----------------------------------------------------------------------------------


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Random crops of pictures and masks alike, mirrored half of the time; void outside."""

    def __init__(self, pairs: Any, crop: int) -> None:
        self.pairs = pairs
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: stand_ins.VOID}
        self.transform = v2.Compose(
            [v2.RandomCrop(crop, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        picture, mask = self.pairs[index]
        pair = self.transform(tv_tensors.Image(picture), tv_tensors.Mask(mask))
        return pair[0].as_subclass(Tensor), pair[1].as_subclass(Tensor).long()


def training_batches(task: Task) -> tuple[Batches, int]:
    """Epochs of batches, and the length of one."""
    pairs: Any = CorruptedVOC(task.root, split="train", size=task.side, transform=prepare).clean
    if task.side is not None:
        pairs = [pairs[index] for index in range(len(pairs))]  # small enough for memory
    loader = DataLoader(
        Augmented(pairs, task.crop), BATCH, shuffle=True, drop_last=True, num_workers=task.workers
    )

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        return loader

    return epoch, len(loader)


def measure(run: dict[str, Any], task: Task) -> dict[str, Any]:
    begin = time.perf_counter()
    model = network(task, run["seed"]).to(task.device)
    batches, length = training_batches(task)
    total = task.epochs * length
    sgd = torch.optim.SGD(
        model.parameters(), lr=task.learning_rate, momentum=0.9, weight_decay=1e-4, fused=True
    )
    optimizer = sparse(
        sgd, run["method"], model, Cosine(0.5), sparsity=run["sparsity"], total_steps=total,
        update_every=task.every, distribution="erk", topology="magnitude", seed=run["seed"],
        exclude="head.*",
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, total, POWER)
    loss = partial(nn.functional.cross_entropy, ignore_index=stand_ins.VOID)
    fit(model, optimizer, schedule, batches, task.epochs, loss)
    return {
        **evaluated(model, task),
        "density": density(optimizer),
        "seconds": round(time.perf_counter() - begin, 1),
        **made_with(),
    }


def evaluated(model: nn.Module, task: Task) -> dict[str, Any]:
    """Pixel accuracy and mIoU, clean and over 19 corruptions, in percent."""
    val = CorruptedVOC(task.root, severity=task.severities, size=task.side, transform=prepare)
    report = evaluate(
        model, val, clean=val.clean, batch_size=20, workers=task.workers, progress=False
    )
    metrics: dict[str, RobustnessReport] = {
        "pixel_accuracy": report.pixel_accuracy,
        "mean_iou": report.mean_iou,
    }
    return {name: fashion.result(metric) for name, metric in metrics.items()}


def stand_in(smoke: bool = False) -> Task:
    if smoke:
        return Task(
            stand_ins.scenes(train=8, test=2, side=64), width=1 / 16, epochs=2, every=2,
            learning_rate=0.01, side=64, crop=64, severities=(3,), pretraining=(100, 1),
        )  # fmt: skip
    return Task(
        stand_ins.scenes(), width=1 / 8, epochs=20, every=24, learning_rate=0.01, side=96, crop=96
    )


def runs(seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    return seed_by_seed(CELLS, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with VOCdevkit/VOC2012")
    parser.add_argument("--backbone", type=Path, help="state dict of torchvision's VGG16")
    parser.add_argument("--epochs", type=int, default=80, help="with --data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a few steps of the stand-in")
    arguments = parser.parse_args()
    if (arguments.data is None) != (arguments.backbone is None):
        parser.error("--data and --backbone belong together: the backbone comes pretrained")
    listed, path = runs(), DATA
    if arguments.data:
        path = RESULTS / "table12-voc.jsonl"
        task = Task(
            arguments.data, width=1.0, epochs=arguments.epochs, every=500, learning_rate=1e-4,
            side=None, crop=480, backbone=arguments.backbone, device=arguments.device, workers=8,
        )  # fmt: skip
    else:
        torch.set_num_threads(1)
        task = stand_in(arguments.smoke)
    if arguments.smoke:
        listed, path = runs((0,))[:2], RESULTS / "table12-smoke.jsonl"
    work_off(listed, lambda run: measure(run, task), path)


if __name__ == "__main__":
    main()
