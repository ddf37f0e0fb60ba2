"""Sets kept as arrays: CIFAR-10-C, CIFAR-100-C and the published Fashion-MNIST-C."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparseopt.robustness._door import Array, nearest
from sparseopt.robustness.c_bar import C_BAR, CIFAR_C_BAR
from sparseopt.robustness.corruptions import CORRUPTIONS
from sparseopt.robustness.sets import (
    ArrayPart,
    CorruptionSet,
    Sample,
    Transform,
    as_names,
    chosen_severities,
    existing,
    load_array,
)

_IMAGES = "uint8 images (5 x N, H, W, 3) or (5 x N, H, W), severity by severity"
_FOLDERS = {"CIFAR-10-C": 10, "CIFAR-100-C": 100}


class CIFARC(CorruptionSet):
    """CIFAR-10-C, CIFAR-100-C, or any set in their layout, memory-mapped.

    The folder holds `<corruption>.npy`, uint8 (5 N, H, W, C), five severities of N images one
    after another, and `labels.npy` with N or 5 N labels. CIFAR-10-C-bar has the same layout; name
    its corruptions.

    Args:
        root: that folder, or the one that holds `CIFAR-10-C` or `CIFAR-100-C`.
        corruption: one name or several; the 19 published ones by default.
        severity: one of 1..5 or several; all by default.
        transform: called with the Pillow image; without it, float32 (C, H, W) in [0, 1].

    Raises:
        FileNotFoundError: a file is missing; names its path.
        ValueError: a file is damaged or has another shape; names its path.

    Source: Hendrycks & Dietterich (2019).
    """

    def __init__(
        self,
        root: str | Path,
        corruption: str | Sequence[str] | None = None,
        severity: int | Sequence[int] | None = None,
        transform: Transform | None = None,
    ) -> None:
        self.root = _array_folder(Path(root))
        names = CORRUPTIONS if corruption is None else as_names(corruption)
        super().__init__(names, chosen_severities(severity))
        self.name, self.num_classes = self.root.name, _FOLDERS.get(self.root.name)
        self.transform = transform
        self.arrays = {name: self._load(name) for name in self.corruptions}
        self.labels = self._load_labels()

    def _load(self, name: str) -> Array:
        path = self.root / f"{name}.npy"
        known = (*CORRUPTIONS, *C_BAR, *CIFAR_C_BAR)
        if not path.exists() and name not in known:
            raise ValueError(f"corruption={nearest(name, known)}")
        array = load_array(path, _IMAGES)
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or len(array) % 5:
            raise ValueError(f"{path} holds {array.dtype} {array.shape}; expected {_IMAGES}")
        return array

    def _load_labels(self) -> Tensor:
        images = {name: len(array) for name, array in self.arrays.items()}
        total = next(iter(images.values()))
        for name, count in images.items():
            if count != total:
                path = self.root / f"{name}.npy"
                raise ValueError(f"{path} holds {count} images; expected {total} as the others")
        path, expected = self.root / "labels.npy", f"{total} labels, or {total // 5}"
        labels = torch.from_numpy(np.array(load_array(path, expected)).astype(np.int64))
        if labels.shape not in ((total,), (total // 5,)):
            raise ValueError(f"{path} has shape {tuple(labels.shape)}; expected {expected}")
        return labels

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        array = self.arrays[corruption]
        count = len(array) // 5
        rows = slice((severity - 1) * count, severity * count)
        labels = self.labels if len(self.labels) == count else self.labels[rows]
        return ArrayPart(array[rows], labels, self.transform)


def _array_folder(root: Path) -> Path:
    existing(root, "the folder with <corruption>.npy files and labels.npy")
    if (root / "labels.npy").exists():
        return root
    inner = [root / name for name in _FOLDERS if (root / name).is_dir()]
    if len(inner) == 2:
        raise ValueError(f"{root} holds both CIFAR-10-C and CIFAR-100-C; give the one you mean")
    return inner[0] if inner else root


class FashionMNISTC(CorruptionSet):
    """The published Fashion-MNIST-C: one mixed set, one unnamed corruption per image, no levels.

    It is a `CorruptionSet` with the single part ("mixed", 1). Reads `fmnist-c-test.npy` with
    `fmnist-c-test-labels.npy`, or the idx files `fmnist-c-test-ubyte.gz` and
    `fmnist-c-test-labels-ubyte.gz`, which are published without actual compression; both work.

    Args:
        root: folder of the files, or its parent with the folders `npy` and `ubyte`.
        train: the 60000 training images instead of the 10000 test images.
        transform: called with the Pillow image; without it, float32 (1, 28, 28) in [0, 1].

    Raises:
        FileNotFoundError: a file is missing; names its path.
        ValueError: a file is damaged or has another shape; names its path.

    Source: Weiss & Tonella, "Simple techniques work surprisingly well for neural network test
    prioritization and active learning" (2022).
    """

    name = "Fashion-MNIST-C"
    num_classes = 10

    def __init__(
        self, root: str | Path, train: bool = False, transform: Transform | None = None
    ) -> None:
        super().__init__(("mixed",), (1,))
        stem = f"fmnist-c-{'train' if train else 'test'}"
        path, label_path = _fashion_files(Path(root), stem)
        self.images, labels = _read_any(path, 3), _read_any(label_path, 1)
        if len(self.images) != len(labels):
            raise ValueError(
                f"{label_path} holds {len(labels)} labels; expected {len(self.images)}, "
                f"one for each image of {path}"
            )
        self.labels = torch.from_numpy(np.array(labels).astype(np.int64))
        self.transform = transform

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        return ArrayPart(self.images, self.labels, self.transform)


def _fashion_files(root: Path, stem: str) -> tuple[Path, Path]:
    existing(root, f"the folder with {stem}.npy or {stem}-ubyte.gz")
    folders = [root, root / "npy", root / "ubyte", root / "generated/npy", root / "generated/ubyte"]
    for folder in folders:
        for ending in (".npy", "-ubyte.gz", "-ubyte"):
            images = folder / f"{stem}{ending}"
            if images.exists():
                labels = folder / f"{stem}-labels{ending}"
                return images, existing(labels, f"the labels of {images.name}")
    path = root / f"{stem}.npy"
    raise FileNotFoundError(f"{path} is missing; expected it or {stem}-ubyte.gz beside it")


def _read_any(path: Path, axes: int) -> Array:
    """A .npy or idx file, told apart by their first bytes; idx files gzipped or not."""
    expected = "uint8 images (N, H, W)" if axes == 3 else "N labels"
    if path.suffix == ".npy":
        array = load_array(path, expected)
    else:
        array = _read_idx(path, expected)
    if array.ndim != axes or (axes == 3 and array.dtype != np.uint8):
        raise ValueError(f"{path} holds {array.dtype} {array.shape}; expected {expected}")
    return array


def _read_idx(path: Path, expected: str) -> Array:
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error}); expected {expected}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is damaged (no idx header of bytes); expected {expected}")
    axes = data[3]
    shape = tuple(np.frombuffer(data, ">i4", axes, 4).tolist()) if len(data) > 4 * axes else ()
    start = 4 + 4 * axes
    if not shape or len(data) - start != int(np.prod(shape)):
        raise ValueError(
            f"{path} is damaged ({len(data) - start} bytes for shape {shape}); expected {expected}"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
