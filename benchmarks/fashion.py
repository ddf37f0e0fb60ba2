"""Fashion-MNIST and three corrupted copies of its test set, for the robustness experiments.

| set | what it is |
|---|---|
| `imagenet` | 19 corruptions at 5 severities, ImageNet-C's constants |
| `cifar` | 19 corruptions at 5 severities, CIFAR-10-C's constants |
| `weiss` | the 15 types of Weiss & Tonella's Fashion-MNIST-C at their one strength, made again |

The published set of Weiss & Tonella gives every image one type at random; here every image gets
every type, whose mean is what the published set estimates. The sets are made on first use and kept
beside the data.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparseopt.robustness import CORRUPTIONS, RobustnessReport, corrupt, evaluate

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
import data as datasets  # noqa: E402

SETS = ("imagenet", "cifar", "weiss")
MEAN, DEVIATION = 0.2860, 0.3530
IMAGES = 2000  # of the 10,000 test images: 190,000 corrupted ones in a set

Array = np.ndarray
Cell = tuple[str, int]


@cache
def images() -> dict[str, Tensor]:
    """Normalized pictures (n, 1, 28, 28) in float32 and labels (n,), train and test."""
    train, train_labels, test, test_labels = datasets.load()
    return {
        "train": normalized(train), "train_labels": train_labels,
        "test": normalized(test), "test_labels": test_labels,
    }  # fmt: skip


def normalized(pixels: Tensor) -> Tensor:
    return (pixels.float() / 255 - MEAN).div_(DEVIATION).unsqueeze(1)


def padded(pixels: Tensor, size: int) -> Tensor:
    """Pictures (n, size, size): black all around."""
    margin = (size - pixels.shape[-1]) // 2
    return nn.functional.pad(pixels, (margin,) * 4)


def corrupted(name: str, count: int = IMAGES, size: int = 28) -> dict[Cell, Tensor]:
    """uint8 (count, size, size) for every (corruption, severity): the first test images, padded."""
    suffix = "" if size == 28 else f"-{size}px"
    path = datasets.cache_folder() / f"fashion-mnist-{name}-{count}{suffix}.npz"
    if not path.exists():
        clean = padded(datasets.load()[2][:count], size).numpy()
        arrays = {f"{key[0]}:{key[1]}": make(clean) for key, make in makers(name).items()}
        unfinished = path.with_suffix(f".{os.getpid()}.npz")
        np.savez(unfinished, **arrays)
        unfinished.replace(path)
    with np.load(path) as arrays:
        return {cell(key): torch.from_numpy(arrays[key]) for key in arrays.files}


def cell(key: str) -> Cell:
    corruption, severity = key.split(":")
    return corruption, int(severity)


def makers(name: str) -> dict[Cell, Callable[[Array], Array]]:
    if name == "weiss":
        return {(corruption, 1): make for corruption, make in WEISS.items()}
    return {
        (corruption, severity): common(corruption, severity, name)
        for corruption in CORRUPTIONS
        for severity in range(1, 6)
    }


def common(corruption: str, severity: int, scale: str = "imagenet") -> Callable[[Array], Array]:
    return lambda clean: corrupt(clean, corruption, severity, scale=scale)


def half_glass(clean: Array) -> Array:
    """Glass blur in which a pixel keeps its value with probability one half."""
    blurred = corrupt(clean, "glass_blur", 1, scale="imagenet")
    return np.where(np.random.default_rng(0).random(clean.shape) < 0.5, blurred, clean)


def affine(angle: float = 0.0, scale: float = 1.0, shear: float = 0.0) -> Callable[[Array], Array]:
    """Rotated, scaled and sheared about the centre; angles in radians, black outside."""
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as transforms

    degrees = [math.degrees(angle), math.degrees(shear)]

    def move(clean: Array) -> Array:
        batch = torch.from_numpy(clean).unsqueeze(1).float()
        moved = transforms.affine(
            batch, degrees[0], [0, 0], scale, [degrees[1], 0.0], InterpolationMode.BILINEAR
        )
        return moved.round().squeeze(1).to(torch.uint8).numpy()

    return move


# Types and strengths: Weiss & Tonella, "Simple techniques work surprisingly well for neural
# network test prioritization and active learning" (2022). Their constants are ImageNet-C's at one
# severity; geometry goes back to MNIST-C (Mu & Gilmer, 2019).
WEISS: dict[str, Callable[[Array], Array]] = {
    "shot_noise": common("shot_noise", 5),
    "impulse_noise": common("impulse_noise", 4),
    "glass_blur": half_glass,
    "motion_blur": common("motion_blur", 1),
    "shear": affine(shear=0.4),
    "scale": affine(scale=0.7),
    "rotate": affine(angle=0.4),
    "brightness": common("brightness", 5),
    "contrast": common("contrast", 4),
    "saturate": common("saturate", 5),
    "inverse": lambda clean: 255 - clean,
    "flip_left_right": lambda clean: clean[:, :, ::-1].copy(),
    "flip_up_down": lambda clean: clean[:, ::-1].copy(),
    "turn_left": lambda clean: np.rot90(clean, 1, (1, 2)).copy(),
    "turn_right": lambda clean: np.rot90(clean, -1, (1, 2)).copy(),
}


class Batches:
    """Batches of normalized images and their labels."""

    def __init__(self, pixels: Tensor, labels: Tensor, prepare: Callable[[Tensor], Tensor]) -> None:
        self.pixels, self.labels, self.prepare = pixels, labels, prepare

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in zip(self.pixels.split(100), self.labels.split(100), strict=True):
            yield self.prepare(pixels), labels


def robustness(
    model: nn.Module,
    name: str,
    count: int = IMAGES,
    prepare: Callable[[Tensor], Tensor] = normalized,
    size: int = 28,
) -> RobustnessReport:
    """Accuracy on one of `SETS`, and on the 10,000 clean test images.

    Args:
        model: scores (n, 10) of what `prepare` returns.
        name: one of `SETS`.
        count: how many of the test images, from the first.
        prepare: from uint8 (n, size, size) to the model's input.
        size: pixels to which pictures are padded before they are corrupted.
    """
    clean, labels = datasets.load()[2:]
    parts = {
        key: Batches(pixels, labels[:count], prepare)
        for key, pixels in corrupted(name, count, size).items()
    }
    everything = Batches(padded(clean, size), labels, prepare)
    return evaluate(model, parts, clean=everything, progress=False, name=f"Fashion-MNIST {name}")


def result(report: RobustnessReport) -> dict[str, Any]:
    """What a data file keeps of a report: percent."""
    return {
        "robustness": round(100 * report.mean, 3),
        "clean": round(100 * (report.clean_accuracy or 0.0), 3),
        "cells": {
            corruption: [round(100 * value, 2) for value in levels.values()]
            for corruption, levels in report.accuracy.items()
        },
    }
