"""Small data sets without a meaning, in the layouts of the published ones."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np


def write_clothes(folder: Path, counts: dict[str, int]) -> None:
    """Made-up Fashion-MNIST: a bright square, whose place and size tell the class."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    for part, count in counts.items():
        labels = (np.arange(count) % 10).astype(np.uint8)
        images = random.integers(0, 30, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            top, left = 2 + 12 * (label % 2), 1 + 5 * (label // 2)
            image[top : top + 12, left : left + 6] = 200
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())


def write_cifar100(root: Path, count: int) -> None:
    """CIFAR-100 and CIFAR-100-C as published, with few images."""
    from sparseopt.robustness import CORRUPTIONS

    random = np.random.default_rng(0)
    (root / "cifar-100-python").mkdir(parents=True)
    (root / "CIFAR-100-C").mkdir()
    for part in ("train", "test"):
        data = random.integers(0, 256, (count, 3072), dtype=np.uint8)
        content = {b"data": data, b"fine_labels": [i % 100 for i in range(count)]}
        (root / "cifar-100-python" / part).write_bytes(pickle.dumps(content))
    for name in CORRUPTIONS:
        images = random.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
        np.save(root / "CIFAR-100-C" / f"{name}.npy", images)
    np.save(root / "CIFAR-100-C" / "labels.npy", np.arange(10))
