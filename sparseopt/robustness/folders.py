"""Sets kept as image folders: Tiny-ImageNet-C, ImageNet-C, C-bar, 3DCC, ImageNet-R, -V2."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sparseopt.robustness._door import nearest
from sparseopt.robustness._extras import need
from sparseopt.robustness._imagenet_r import IMAGENET_R
from sparseopt.robustness.c_bar import C_BAR
from sparseopt.robustness.corruptions import CORRUPTIONS
from sparseopt.robustness.sets import (
    CorruptionSet,
    Sample,
    Transform,
    as_names,
    chosen_severities,
    existing,
    transformed,
)
from sparseopt.robustness.three_d import THREE_D

ENDINGS = (".jpeg", ".jpg", ".png")


class FolderPart(Dataset[Sample]):
    """Images of `<folder>/<class>/<name>.JPEG`, in sorted order."""

    def __init__(self, folder: Path, labels: dict[str, int], transform: Transform | None) -> None:
        self.transform = transform
        self.samples = [
            (path, label)
            for name, label in sorted(labels.items())
            if (folder / name).is_dir()
            for path in sorted((folder / name).iterdir())
            if path.suffix.lower() in ENDINGS
        ]
        if not self.samples:
            raise FileNotFoundError(f"{folder} holds no images; expected <class>/<name>.JPEG")

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.samples[index]
        return transformed(read_image(path), self.transform), torch.tensor(label)


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 RGB (H, W, 3); a damaged one names its path."""
    pillow = need("PIL.Image", "reading images")
    try:
        with pillow.open(existing(path, "an image file")) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged ({error}); expected an image file") from error


class _FolderSet(CorruptionSet):
    """`<root>/<corruption>/<severity>/<class>/<name>.JPEG`."""

    published: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()

    def __init__(
        self,
        root: str | Path,
        corruption: str | Sequence[str] | None = None,
        severity: int | Sequence[int] | None = None,
        transform: Transform | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.root = existing(Path(root), f"the folder of {self.name}")
        super().__init__(self._names(corruption), chosen_severities(severity))
        self.transform = transform
        self.folders = {key: self._folder(*key) for key in self.keys()}
        self.classes = tuple(classes or class_folders(self.folders[self.keys()[0]]))
        self.num_classes = len(self.classes)
        for folder in self.folders.values():
            check_classes(folder, self.classes)

    def _names(self, corruption: str | Sequence[str] | None) -> tuple[str, ...]:
        if corruption is None:
            present = tuple(name for name in self.extra if self._find(name).is_dir())
            return self.published + present
        names = as_names(corruption)
        for name in names:
            if name not in (*self.published, *self.extra):
                raise ValueError(f"corruption={nearest(name, (*self.published, *self.extra))}")
        return names

    def _find(self, name: str) -> Path:
        """`root/<corruption>`, or one level deeper where the groups of the tars were kept."""
        direct = self.root / name
        if direct.is_dir():
            return direct
        grouped = sorted(path for path in self.root.glob(f"*/{name}") if path.is_dir())
        return grouped[0] if grouped else direct

    def _folder(self, name: str, severity: int) -> Path:
        folder = existing(self._find(name), f"a folder of {self.name} with severities 1..5")
        return existing(folder / str(severity), "a severity with one folder per class")

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        labels = {name: label for label, name in enumerate(self.classes)}
        return FolderPart(self.folders[corruption, severity], labels, self.transform)


def class_folders(folder: Path) -> list[str]:
    """Sorted names of the class folders, never empty."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        raise FileNotFoundError(f"{folder} holds no class folders; expected one per class")
    return names


def check_classes(folder: Path, classes: Sequence[str]) -> None:
    """Every class folder must be one of `classes`, else labels would be shifted."""
    unknown = sorted(set(class_folders(folder)) - set(classes))
    if unknown:
        raise ValueError(
            f"{folder / unknown[0]} is no class of this set; expected folders named "
            f"{', '.join(list(classes)[:3])}, … ({len(classes)} classes)"
        )


class TinyImageNetC(_FolderSet):
    """Tiny-ImageNet-C: `Tiny-ImageNet-C/<corruption>/<1..5>/<wnid>/<name>.JPEG`, 64 px.

    Args:
        root: the folder that holds the corruptions.
        corruption: one name or several; by default the 15 of the main archive, and those of the
            4 extra ones that are there.
        severity: one of 1..5 or several; all by default.
        transform: called with the Pillow image; without it, float32 (3, H, W) in [0, 1].
        classes: wnids in the order of the training labels; sorted folder names by default.

    Raises:
        FileNotFoundError: a folder is missing; names its path.
        ValueError: an unknown corruption, or a folder that is no class.
    """

    name = "Tiny-ImageNet-C"
    published, extra = CORRUPTIONS[:15], CORRUPTIONS[15:]


class ImageNetC(_FolderSet):
    """ImageNet-C: `<corruption>/<1..5>/<wnid>/ILSVRC2012_val_xxxxxxxx.JPEG`, already 224 px.

    The group folders of the archives (noise, blur, weather, digital, extra) may be there or not.
    The images are already cropped: normalise them, but do not resize to 256 first.
    Arguments and errors as for `TinyImageNetC`.
    """

    name = "ImageNet-C"
    published, extra = CORRUPTIONS[:15], CORRUPTIONS[15:]


class ImageNet3DCC(_FolderSet):
    """ImageNet-3DCC: `<corruption>/<1..5>/<wnid>/<name>.JPEG`, 11 corruptions.

    `h265_crf` is shipped too but not among the 11: name it to read it.
    Arguments and errors as for `TinyImageNetC`. Source: Kar et al. (2022).
    """

    name = "ImageNet-3DCC"
    published, extra = THREE_D, ("h265_crf",)

    def _names(self, corruption: str | Sequence[str] | None) -> tuple[str, ...]:
        return self.published if corruption is None else super()._names(corruption)


class ImageNetCBar(_FolderSet):
    """ImageNet-C-bar: `<corruption>/<strength>/<wnid>/<name>.JPEG`, 10 corruptions.

    The five strength folders ("2.35") sorted by number are severities 1 to 5.
    Arguments and errors as for `TinyImageNetC`. Source: Mintun et al. (2021).
    """

    name = "ImageNet-C-bar"
    published = C_BAR

    def _folder(self, name: str, severity: int) -> Path:
        folder = existing(self._find(name), f"a folder of {self.name} with five strengths")
        strengths = sorted(
            (path for path in folder.iterdir() if path.is_dir() and _is_number(path.name)),
            key=lambda path: float(path.name),
        )
        if len(strengths) != 5:
            found = ", ".join(path.name for path in strengths) or "none"
            raise FileNotFoundError(
                f"{folder} holds the strengths {found}; expected five folders named by number"
            )
        return strengths[severity - 1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class ImageNetR(CorruptionSet):
    """ImageNet-R: `imagenet-r/<wnid>/*.jpg`, 200 of the 1000 ImageNet classes.

    Labels are ImageNet's, 0..999; `evaluate` compares only the 200 outputs in `logit_indices`.
    It is a `CorruptionSet` with the single part ("rendition", 1).

    Args:
        root: the folder that holds the wnids.
        transform: called with the Pillow image; without it, float32 (3, H, W) in [0, 1].

    Raises:
        FileNotFoundError: the folder is missing or has no class folders.
        ValueError: a folder that is none of the 200 classes.

    Source: Hendrycks et al., "The Many Faces of Robustness" (2021).
    """

    name = "ImageNet-R"
    num_classes = 1000

    def __init__(self, root: str | Path, transform: Transform | None = None) -> None:
        super().__init__(("rendition",), (1,))
        root = existing(Path(root), "the folder of ImageNet-R with one folder per wnid")
        self.root = root / "imagenet-r" if (root / "imagenet-r").is_dir() else root
        self.transform = transform
        self.logit_indices = torch.tensor(sorted(IMAGENET_R.values()))
        check_classes(self.root, list(IMAGENET_R))

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        return FolderPart(self.root, IMAGENET_R, self.transform)


class ImageNetV2(CorruptionSet):
    """ImageNet-V2's three test sets: top-images, threshold0.7, matched-frequency.

    Class folders are the numbers 0..999, read as numbers. It is a `CorruptionSet` whose
    "corruptions" are the three sets, with the single severity 1.

    Args:
        root: the folder with the three; `imagenetv2-` before and `-format-val` after the name
            are accepted.
        variant: one of the three or several; all by default.
        transform: called with the Pillow image; without it, float32 (3, H, W) in [0, 1].

    Raises:
        FileNotFoundError: a folder is missing; names its path.
        ValueError: an unknown variant, or a folder that is no number from 0 to 999.

    Source: Recht et al., "Do ImageNet Classifiers Generalize to ImageNet?" (2019).
    """

    name = "ImageNet-V2"
    num_classes = 1000
    variants = ("top-images", "threshold0.7", "matched-frequency")

    def __init__(
        self,
        root: str | Path,
        variant: str | Sequence[str] | None = None,
        transform: Transform | None = None,
    ) -> None:
        names = self.variants if variant is None else as_names(variant, "variant")
        for name in names:
            if name not in self.variants:
                raise ValueError(f"variant={nearest(name, self.variants)}")
        super().__init__(names, (1,))
        self.root = existing(Path(root), "the folder with the test sets of ImageNet-V2")
        self.transform = transform
        self.folders = {name: self._folder(name) for name in names}
        for folder in self.folders.values():
            check_classes(folder, [str(number) for number in range(1000)])

    def _folder(self, name: str) -> Path:
        for before in ("", "imagenetv2-"):
            for after in ("", "-format-val"):
                folder = self.root / f"{before}{name}{after}"
                if folder.is_dir():
                    return folder
        path = self.root / f"imagenetv2-{name}-format-val"
        raise FileNotFoundError(f"{path} is missing; expected class folders 0 to 999 there")

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        labels = {str(number): number for number in range(1000)}
        return FolderPart(self.folders[corruption], labels, self.transform)
