"""The data sets of the recipes, read from the layouts in which they are published."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from recipe import Recipe
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from sparseopt import robustness
from sparseopt.robustness.ucf101 import read_video

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/, for data.py
import data as fashion  # noqa: E402

Sample = tuple[Tensor, Any]
Transform = Callable[[Any], Any]

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashionmnist": ((0.2860,), (0.3530,)),
}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Inputs:
    """A data set, ready for training.

    Attributes:
        train, test: What is trained on and tested on; items are (input, target).
        classes: Their names, in the order of the labels.
        normalized: From a Pillow image (or a clip) to the network's input, without augmentation.
        root: The folder they were read from.
        task: "classification" or "segmentation".
    """

    train: Dataset[Sample]
    test: Dataset[Sample]
    classes: Sequence[str]
    normalized: Transform
    root: Path | None
    task: str = "classification"


def load(recipe: Recipe, root: Path | None) -> Inputs:
    """The recipe's data set, from a folder in the published layout.

    Args:
        recipe: Says which one, and the size of the input.
        root: The folder; None only for Fashion-MNIST, which is then fetched.

    Raises:
        ValueError: no folder was given.
        FileNotFoundError: something is missing there; names it.
    """
    if root is None and recipe.data != "fashionmnist":
        raise ValueError(
            f"--data is needed: the folder that holds {LAYOUTS[recipe.data]}; or --data fake"
        )
    return LOADERS[recipe.data](recipe, root)


LAYOUTS = {
    "cifar10": "cifar-10-batches-py (the python version of CIFAR-10)",
    "cifar100": "cifar-100-python (the python version of CIFAR-100)",
    "fashionmnist": "the four idx files of Fashion-MNIST",
    "tinyimagenet": "train, val and wnids.txt of tiny-imagenet-200",
    "imagenet": "train and val with a folder for each class",
    "ucf101": "UCF-101 and ucfTrainTestlist",
    "voc": "VOCdevkit/VOC2012",
}


def existing(path: Path, data: str) -> Path:
    """The path, or a FileNotFoundError that says what --data should hold."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; --data is the folder with {LAYOUTS[data]}")
    return path


class Normalized:
    """A Pillow image as float32 (C, H, W), or a clip (C, T, H, W), less the mean, by the spread."""

    def __init__(self, statistics: tuple[Sequence[float], Sequence[float]]) -> None:
        self.mean, self.spread = (torch.tensor(one).view(-1, 1, 1) for one in statistics)

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, Tensor):
            return (image - self.mean[..., None]) / self.spread[..., None]
        array = np.array(image)
        planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
        return (torch.from_numpy(planes.astype(np.float32)) / 255 - self.mean) / self.spread


class Pictures(Dataset[Sample]):
    """Images of an array, or image files, with their labels.

    Attributes:
        images: uint8 (N, H, W, C) or (N, H, W), or N paths.
        labels: N class indices.
        transform: From the Pillow image to the input.
        crop: Applied to what a file holds before everything else.
    """

    def __init__(
        self, images: Any, labels: Any, transform: Transform, crop: Transform | None = None
    ) -> None:
        self.images, self.transform, self.crop = images, transform, crop
        self.labels = torch.as_tensor(labels).long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.transform(self.picture(index)), self.labels[index]

    def picture(self, index: int) -> Image.Image:
        """The image before the transform."""
        one = self.images[index]
        if not isinstance(one, Path):
            return Image.fromarray(one)
        with Image.open(one) as file:
            image = file.convert("RGB")
        return self.crop(image) if self.crop else image


def shifted(recipe: Recipe, padding: int, normalized: Transform) -> Transform:
    """Random crops of padded images, and flips."""
    return v2.Compose([v2.RandomCrop(recipe.size, padding), v2.RandomHorizontalFlip(), normalized])


# --- images in arrays -----------------------------------------------------------------------------


def cifar(recipe: Recipe, root: Path) -> Inputs:
    """CIFAR-10 or CIFAR-100."""
    hundred = recipe.data == "cifar100"
    name = "cifar-100-python" if hundred else "cifar-10-batches-py"
    folder = root if root.name == name else root / name
    train = ["train"] if hundred else [f"data_batch_{number}" for number in range(1, 6)]
    test = ["test" if hundred else "test_batch"]
    normalized = Normalized(STATISTICS[recipe.data])
    return Inputs(
        Pictures(*batches(folder, train, recipe.data), shifted(recipe, 4, normalized)),
        Pictures(*batches(folder, test, recipe.data), normalized),
        classes=range_of(100 if hundred else 10),
        normalized=normalized, root=root,
    )  # fmt: skip


def batches(folder: Path, names: Sequence[str], data: str) -> tuple[Any, list[int]]:
    """Images (N, 32, 32, 3) and labels of some of CIFAR's pickled dicts."""
    images, labels = [], []
    for name in names:
        with existing(folder / name, data).open("rb") as file:
            content = pickle.load(file, encoding="bytes")
        images.append(np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32))
        labels += content[b"fine_labels" if data == "cifar100" else b"labels"]
    return np.concatenate(images).transpose(0, 2, 3, 1).copy(), labels


def fashion_mnist(recipe: Recipe, root: Path | None) -> Inputs:
    """Fashion-MNIST, without augmentation."""
    images, labels, test_images, test_labels = fashion.fashion_mnist(root)
    normalized = Normalized(STATISTICS[recipe.data])
    return Inputs(
        Pictures(images.numpy(), labels, normalized),
        Pictures(test_images.numpy(), test_labels, normalized),
        classes=range_of(10), normalized=normalized, root=root,
    )  # fmt: skip


def range_of(number: int) -> list[str]:
    return [str(one) for one in range(number)]


# --- image files ----------------------------------------------------------------------------------


def tiny_imagenet(recipe: Recipe, root: Path) -> Inputs:
    """TinyImageNet; classes are the sorted wnids."""
    folder = existing(root / "train", recipe.data)
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    train = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name / "images").glob("*.JPEG"))
    ]
    label_of = {name: label for label, name in enumerate(classes)}
    lines = existing(root / "val" / "val_annotations.txt", recipe.data).read_text().splitlines()
    test = [
        (root / "val" / "images" / name, label_of[wnid])
        for name, wnid in (line.split("\t")[:2] for line in lines)
    ]
    normalized = Normalized(IMAGENET)
    return Inputs(
        Pictures(*unzipped(train), shifted(recipe, recipe.size // 8, normalized)),
        Pictures(*unzipped(test), normalized),
        classes=classes, normalized=normalized, root=root,
    )  # fmt: skip


def imagenet(recipe: Recipe, root: Path) -> Inputs:
    """ImageNet; classes are the sorted folders."""
    from torchvision.datasets import ImageFolder

    parts = {part: ImageFolder(existing(root / part, recipe.data)) for part in ("train", "val")}
    files = {
        part: ([Path(path) for path, _ in folder.samples], folder.targets)
        for part, folder in parts.items()
    }
    size, normalized = recipe.size, Normalized(IMAGENET)
    augmented = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), normalized])
    centre = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
    return Inputs(
        Pictures(*files["train"], augmented),
        Pictures(*files["val"], normalized, crop=centre),
        classes=parts["train"].classes,
        normalized=normalized, root=root,
    )  # fmt: skip


def unzipped(pairs: Sequence[tuple[Path, int]]) -> tuple[list[Path], list[int]]:
    return [path for path, _ in pairs], [label for _, label in pairs]


# --- video ----------------------------------------------------------------------------------------


class Clips(Dataset[Sample]):
    """Training clips: a frame from each of equal parts of the video, cropped and flipped."""

    def __init__(
        self, samples: Sequence[tuple[Path, int]], recipe: Recipe, normalized: Transform
    ) -> None:
        self.samples, self.normalized = samples, normalized
        self.frames, self.size = recipe.frames or 8, recipe.size
        side = round(1.25 * self.size)
        self.augmented = v2.Compose(
            [v2.Resize(side), v2.RandomCrop(self.size), v2.RandomHorizontalFlip()]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        video = read_video(path)
        place = (torch.arange(self.frames) + torch.rand(self.frames)) * len(video) / self.frames
        clip = torch.from_numpy(video[place.long().numpy()]).permute(0, 3, 1, 2)
        clip = self.augmented(clip).transpose(0, 1).float() / 255
        return self.normalized(clip), torch.tensor(label)


def ucf101(recipe: Recipe, root: Path) -> Inputs:
    """UCF101, the first split."""
    normalized = Normalized(IMAGENET)
    test = robustness.CorruptedUCF101(
        root, frames=recipe.frames or 8, size=recipe.size, transform=normalized
    )
    listed = next(
        (path for path in (root, root / "ucfTrainTestlist", test.root.parent / "ucfTrainTestlist")
         if (path / "trainlist01.txt").exists()), root / "ucfTrainTestlist"
    ) / "trainlist01.txt"  # fmt: skip
    label_of = {name: label for label, name in enumerate(test.classes)}
    names = [line.split()[0] for line in existing(listed, recipe.data).read_text().splitlines()]
    train = [(test.root / name, label_of[name.split("/")[0]]) for name in names]
    return Inputs(Clips(train, recipe, normalized), test.clean, test.classes, normalized, root)


# --- segmentation ---------------------------------------------------------------------------------


class Segments(Dataset[Sample]):
    """Training images and masks of VOC: scaled by 0.5 to 2, cropped and flipped together."""

    def __init__(
        self, pairs: Sequence[tuple[Path, Path]], size: int, normalized: Transform
    ) -> None:
        self.pairs, self.size, self.normalized = pairs, size, normalized

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        with Image.open(self.pairs[index][0]) as file:
            image = file.convert("RGB")
        with Image.open(self.pairs[index][1]) as file:
            mask = file.copy()
        base = self.size * 520 / 480  # the short side, before the random scale
        factor = base * (0.5 + 1.5 * float(torch.rand(()))) / min(image.size)
        wide = tuple(max(1, round(side * factor)) for side in image.size)
        image = image.resize(wide, Image.Resampling.BILINEAR)
        mask = mask.resize(wide, Image.Resampling.NEAREST)
        return self.cropped(image, mask)

    def cropped(self, image: Image.Image, mask: Image.Image) -> Sample:
        """A random square of both; outside the image the mask is void."""
        size = self.size
        left, top = (
            int(torch.randint(min(0, side - size), max(0, side - size) + 1, ()))
            for side in image.size
        )
        box = (left, top, left + size, top + size)
        planes = self.normalized(image.crop(box))
        padded = Image.new("L", (size, size), 255)
        padded.paste(Image.fromarray(np.array(mask)), (-left, -top))
        target = torch.from_numpy(np.array(padded)).long()
        if torch.rand(()) < 0.5:
            planes, target = planes.flip(-1), target.flip(-1)
        return planes, target


def voc(recipe: Recipe, root: Path) -> Inputs:
    """Pascal VOC 2012: the training images and the validation images of its segmentation lists."""
    normalized = Normalized(IMAGENET)
    train = robustness.CorruptedVOC(root, split="train")
    test = robustness.CorruptedVOC(root, split="val", transform=normalized)
    return Inputs(
        Segments(train.pairs, recipe.size, normalized), test.clean,
        classes=range_of(21), normalized=normalized, root=root, task="segmentation",
    )  # fmt: skip


LOADERS: dict[str, Callable[..., Inputs]] = {
    "cifar10": cifar,
    "cifar100": cifar,
    "fashionmnist": fashion_mnist,
    "tinyimagenet": tiny_imagenet,
    "imagenet": imagenet,
    "ucf101": ucf101,
    "voc": voc,
}
