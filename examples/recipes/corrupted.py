"""The corruption set of each data set: the official download, or made from the test set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from inputs import Inputs, Pictures, Sample
from recipe import Recipe
from torch.utils.data import Dataset

from sparseopt import robustness

OFFICIAL: dict[str, dict[str, Callable[..., Any]]] = {
    "cifar10": {"CIFAR-10-C": robustness.CIFARC},
    "cifar100": {"CIFAR-100-C": robustness.CIFARC},
    "fashionmnist": {"": robustness.FashionMNISTC},
    "tinyimagenet": {"Tiny-ImageNet-C": robustness.TinyImageNetC},
    "imagenet": {
        "ImageNet-C": robustness.ImageNetC,
        "ImageNet-C-bar": robustness.ImageNetCBar,
        "ImageNet-3DCC": robustness.ImageNet3DCC,
        "imagenet-r": robustness.ImageNetR,
        "imagenet-v2": robustness.ImageNetV2,
    },
}
"""Folder of a download, which --robustness holds or is, and what reads it."""

SCALES = {"cifar10": "cifar", "cifar100": "cifar", "fashionmnist": "cifar", "tinyimagenet": "tiny"}
WITHOUT_PARTS = (robustness.FashionMNISTC, robustness.ImageNetR, robustness.ImageNetV2)


def official(
    recipe: Recipe,
    inputs: Inputs,
    root: Path,
    corruption: Sequence[str] | None,
    severity: Sequence[int] | None,
) -> list[robustness.CorruptionSet]:
    """The official downloads of this data set that are in a folder, at least one.

    Args:
        recipe, inputs: The data set that was trained on.
        root: A folder with downloads, or one of them.
        corruption, severity: Parts to read; all by default.

    Raises:
        ValueError: there is no download for this data set.
        FileNotFoundError: the folder holds none; names what is missing.
    """
    known = OFFICIAL.get(recipe.data)
    if known is None:
        raise ValueError(
            f"--robustness {root}: {recipe.data} has no official corruption set; leave the option "
            "out, and its test set is corrupted when it is read"
        )
    present = {name: root / name for name in known if name and (root / name).is_dir()}
    found = present or {next(iter(known)): root}
    sets = []
    for name, folder in found.items():
        options: dict[str, Any] = {"transform": inputs.normalized}
        if known[name] not in WITHOUT_PARTS:
            options |= {"corruption": corruption, "severity": severity}
        if recipe.data == "tinyimagenet":
            options["classes"] = inputs.classes
        sets.append(known[name](folder, **options))
    return sets


def generated(
    recipe: Recipe,
    inputs: Inputs,
    corruption: Sequence[str] | None,
    severity: Sequence[int] | None,
) -> robustness.CorruptionSet:
    """The test set, corrupted when it is read: the paper's corruptions at the constants for it.

    Args:
        recipe, inputs: The data set that was trained on.
        corruption, severity: Parts to make; the paper's by default.
    """
    options: dict[str, Any] = {
        "corruption": corruption,
        "severity": severity,
        "transform": inputs.normalized,
    }
    if recipe.data == "ucf101":
        frames, size = recipe.frames or 8, recipe.size
        return robustness.CorruptedUCF101(inputs.root, frames=frames, size=size, **options)
    if recipe.data == "voc":
        return robustness.CorruptedVOC(inputs.root, **options)
    test: Any = inputs.test
    scale = SCALES.get(recipe.data, "imagenet")
    if isinstance(test.images, np.ndarray):
        name = f"{recipe.data} test"
        return robustness.Corrupted(test.images, test.labels, scale, name=name, **options)
    return CorruptedPictures(test, recipe.data, scale, corruption, severity)


class CorruptedPictures(robustness.CorruptionSet):
    """Image files, corrupted when they are read; without the JPEG loss of the downloads."""

    def __init__(
        self,
        pictures: Pictures,
        name: str,
        scale: str,
        corruption: Sequence[str] | None,
        severity: Sequence[int] | None,
    ) -> None:
        super().__init__(corruption or robustness.CORRUPTIONS[:15], severity or (1, 2, 3, 4, 5))
        self.pictures, self.scale = pictures, scale
        self.name = f"{name} test ({scale} constants)"
        for one in self.corruptions:  # refuses unknown names and severities right here
            for level in self.severities:
                robustness.corrupt(np.zeros((1, 32, 32, 3), np.uint8), one, level, scale)

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        return _Part(self, corruption, severity)


class _Part(Dataset[Sample]):
    def __init__(self, source: CorruptedPictures, corruption: str, severity: int) -> None:
        self.source, self.corruption, self.severity = source, corruption, severity

    def __len__(self) -> int:
        return len(self.source.pictures)

    def __getitem__(self, index: int) -> Sample:
        own = self.source
        image = np.asarray(own.pictures.picture(index))
        bad = robustness.corrupt(
            image[None], self.corruption, self.severity, own.scale, index=index
        )
        return own.pictures.transform(bad[0]), own.pictures.labels[index]
