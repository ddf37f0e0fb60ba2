"""What the tests of examples/recipes share: Table 3 as printed, and short commands."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    for needed in ("cv2", "PIL", "fvcore", "timm", "torchvision", "tqdm"):
        pytest.importorskip(needed)

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "recipes"

# Table 3 of arXiv 2410.03030 as it is printed: model, data, epochs, LR, batch, LR schedule,
# optimizer, weight decay, distribution, update interval, drop-fraction schedule, P.
TABLE_3 = """
vgg16-cifar10                | VGG16           | CIFAR10         | 160 | 0.1    | 100 | Cosine     | SGD   | 5e-4 | Uniform | 500  | polynomial | 0.1
resnet34-cifar100            | ResNet34        | CIFAR100        | 160 | 0.1    | 100 | Cosine     | SGD   | 5e-4 | Uniform | 500  | polynomial | 0.1
efficientnet-b0-tinyimagenet | EfficientNet-B0 | TinyImageNet    | 100 | 0.1    | 128 | Cosine     | SGD   | 5e-4 | Uniform | 100  | polynomial | 0.1
resnet50-imagenet            | ResNet50        | ImageNet        | 90  | 0.1    | 256 | Step       | SGD   | 1e-4 | ERK     | 2000 | polynomial | 0.1
deit-base-imagenet           | DeiT-base       | ImageNet        | 200 | 0.0005 | 512 | Cosine     | AdamW | 5e-2 | Uniform | 7000 | polynomial | 0.5
resnet50-3d-ucf101           | 3D ResNet50     | UCF101          | 80  | 0.1    | 8   | Cosine     | SGD   | 1e-3 | ERK     | 300  | polynomial | 0.1
i3d-ucf101                   | I3D             | UCF101          | 80  | 0.1    | 8   | Cosine     | SGD   | 1e-3 | ERK     | 300  | polynomial | 0.1
mlp-fashionmnist             | MLP             | Fashion-MNIST   | 100 | 0.025  | 8   | Cosine     | SGD   | 5e-4 | ERK     | 300  | polynomial | 0.1
fcn-vgg16-voc                | FCN-VGG16       | Pascal VOC 2012 | 80  | 0.0001 | 4   | polynomial | SGD   | 1e-4 | ERK     | 500  | cosine     | 0.5
"""  # noqa: E501
PRINTED = {
    name: columns
    for name, *columns in (
        [cell.strip() for cell in line.split("|")] for line in TABLE_3.strip().splitlines()
    )
}
MODELS = {
    "VGG16": "vgg16", "ResNet34": "resnet34", "EfficientNet-B0": "efficientnet_b0",
    "ResNet50": "resnet50", "DeiT-base": "deit_base", "3D ResNet50": "slow_resnet50",
    "I3D": "i3d_resnet50", "MLP": "mlp", "FCN-VGG16": "fcn_vgg16",
}  # fmt: skip
SAMPLES = {  # training images or videos of each set
    "cifar10": 50_000, "cifar100": 50_000, "tinyimagenet": 100_000, "imagenet": 1_281_167,
    "ucf101": 9_537, "fashionmnist": 60_000, "voc": 1_464,
}  # fmt: skip
CHT = "mlp-fashionmnist-cht"
NAMES = [*PRINTED, CHT]


def small(name: str, out: Path, *more: str, algo: str = "rigl", **changed: Any) -> list[str]:
    """A command that runs a recipe on made-up data in about a second."""
    side = {"tinyimagenet": 64, "fashionmnist": 28}.get(name.split("-")[-1], 32)
    side = 28 if name == CHT else side
    values = {"epochs": 2, "batch_size": 4, "update_every": 2, "size": side} | changed
    values |= {"frames": 4} if "ucf101" in name else {}
    bad = ("jumble", "gaussian_noise") if "ucf101" in name else ("contrast", "gaussian_noise")
    command = [
        name, "--data", "fake", "--tiny", "--algo", algo, "--out", str(out),
        "--set", *(f"{key}={value}" for key, value in values.items()),
    ]  # fmt: skip
    parts = [] if "--robustness" in more else ["--corruption", *bad, "--severity", "1", "4"]
    return [*command, *parts, *more]
