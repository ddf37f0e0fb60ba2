"""Corruption sets: data sets of images keyed by corruption and severity."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sparseopt.robustness._door import (
    SEVERITIES,
    Array,
    Images,
    check_name,
    check_seed,
    check_severity,
)
from sparseopt.robustness._extras import need
from sparseopt.robustness.corruptions import CORRUPTIONS, GENERATED, check_all, corrupt

Key = tuple[str, int]
Sample = tuple[Any, Any]
Transform = Callable[[Any], Any]


def to_tensor(image: Array) -> Tensor:
    """A uint8 image (H, W, C) or (H, W) as float32 (C, H, W) in [0, 1]."""
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, dtype=np.float32, order="C")) / 255


def transformed(image: Array, transform: Transform | None) -> Any:
    """`transform` of the Pillow image, as torchvision data sets do it, or a plain tensor."""
    if transform is None:
        return to_tensor(image)
    return transform(need("PIL.Image", "a transform").fromarray(image))


class CorruptionSet(Dataset[Sample]):
    """A data set for every (corruption, severity), and all of them one after another.

    `evaluate` walks over the parts; `set.part("fog", 3)` gives one of them; indexing runs through
    all parts, corruption by corruption, severities ascending. Subclasses say how a part is read.

    Attributes:
        name: what the set is called in reports; baselines must carry the same.
        corruptions, severities: the parts there are.
        num_classes: classes a model must distinguish, or None where the files do not say.
        logit_indices: outputs to compare when a model knows more classes than the set has.
        task: "classification" or "segmentation".
        uniform: whether all images have one size, so that they can share a batch.
    """

    name: str = "corruption set"
    num_classes: int | None = None
    logit_indices: Tensor | None = None
    task: str = "classification"
    uniform: bool = True

    def __init__(self, corruptions: Sequence[str], severities: Sequence[int]) -> None:
        self.corruptions = tuple(corruptions)
        self.severities = tuple(severities)
        self._parts: dict[Key, Dataset[Sample]] = {}
        self._ends: list[int] | None = None

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        """The part of one corruption and severity, read from its source."""
        raise NotImplementedError

    def part(self, corruption: str, severity: int) -> Dataset[Sample]:
        """The data set of one corruption and severity; items are (image, target)."""
        check_name(corruption, self.corruptions, "corruption")
        check_severity(severity, self.severities)
        key = (corruption, severity)
        if key not in self._parts:
            self._parts[key] = self.read(corruption, severity)
        return self._parts[key]

    def keys(self) -> list[Key]:
        """All (corruption, severity), corruption by corruption."""
        return [(name, severity) for name in self.corruptions for severity in self.severities]

    def items(self) -> Iterator[tuple[Key, Dataset[Sample]]]:
        """Every (corruption, severity) with its part."""
        for key in self.keys():
            yield key, self.part(*key)

    def __len__(self) -> int:
        return self._end_of_parts()[-1]

    def __getitem__(self, index: int) -> Sample:
        ends = self._end_of_parts()
        place = index + ends[-1] if index < 0 else index
        if not 0 <= place < ends[-1]:
            raise IndexError(f"index {index} of a set of {ends[-1]} images")
        number = bisect.bisect_right(ends, place)
        part = self.part(*self.keys()[number])
        return part[place - (ends[number - 1] if number else 0)]

    def _end_of_parts(self) -> list[int]:
        if self._ends is None:
            sizes = [len(part) for _, part in self.items()]  # type: ignore[arg-type]
            self._ends = list(accumulate(sizes))
        return self._ends

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, {len(self.corruptions)} corruptions, "
            f"severities {self.severities})"
        )


class FileSet(CorruptionSet):
    """Files that are corrupted when they are read. Subclasses say how many, and read one."""

    def number(self) -> int:
        """How many samples every part has."""
        raise NotImplementedError

    def sample(self, index: int, corruption: str | None, severity: int) -> Sample:
        """One sample, corrupted; as it is for None."""
        raise NotImplementedError

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        return _FilePart(self, corruption, severity)

    @property
    def clean(self) -> Dataset[Sample]:
        """The same samples uncorrupted, for `evaluate(..., clean=)`."""
        return _FilePart(self, None, 1)


class _FilePart(Dataset[Sample]):
    def __init__(self, source: FileSet, corruption: str | None, severity: int) -> None:
        self.source, self.corruption, self.severity = source, corruption, severity

    def __len__(self) -> int:
        return self.source.number()

    def __getitem__(self, index: int) -> Sample:
        place = range(len(self))[index]  # from the end too: random numbers go by the place
        return self.source.sample(place, self.corruption, self.severity)


class ArrayPart(Dataset[Sample]):
    """Images of one array with their labels."""

    def __init__(self, images: Array, labels: Tensor, transform: Transform | None) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        return transformed(np.asarray(self.images[index]), self.transform), self.labels[index]


class Corrupted(CorruptionSet):
    """Any uint8 images, corrupted when they are read, nothing written.

    Args:
        images: uint8 (N, H, W, C) or (N, H, W), numpy or torch.
        labels: N class indices.
        scale, seed: see `corrupt`.
        corruption, severity: one or several, any that `corrupt` takes; by default the 19, 1..5.
        transform: called with the Pillow image; without it, float32 (C, H, W) in [0, 1].
        name: for reports.

    Raises:
        TypeError, ValueError: as `corrupt`, for any of the corruptions; and for labels that are
            not one class index per image.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((4, 32, 32, 3), dtype=np.uint8)
        >>> data = Corrupted(images, [0, 1, 2, 3], scale="cifar", corruption=["fog", "snow"])
        >>> len(data), data.part("fog", 3)[0][0].shape
        (40, torch.Size([3, 32, 32]))
    """

    def __init__(
        self,
        images: Images,
        labels: Any,
        scale: str = "imagenet",
        corruption: str | Sequence[str] | None = None,
        severity: int | Sequence[int] | None = None,
        transform: Transform | None = None,
        seed: int = 0,
        name: str = "images",
    ) -> None:
        super().__init__(
            chosen_corruptions(corruption, CORRUPTIONS, GENERATED), chosen_severities(severity)
        )
        check_all(images, self.corruptions, self.severities, scale)
        self.labels = class_indices(labels, len(images))
        self.images, self.scale, self.transform = images, scale, transform
        self.seed = check_seed(seed)
        self.name = f"{name} ({scale} constants)"

    def read(self, corruption: str, severity: int) -> Dataset[Sample]:
        return _CorruptedPart(self, corruption, severity)


class _CorruptedPart(Dataset[Sample]):
    """One corruption and severity, whole batches at a time where a DataLoader asks for them."""

    def __init__(self, source: Corrupted, corruption: str, severity: int) -> None:
        self.source, self.corruption, self.severity = source, corruption, severity

    def __len__(self) -> int:
        return len(self.source.labels)

    def __getitem__(self, index: int) -> Sample:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        own = self.source
        out = corrupt(
            own.images[indices], self.corruption, self.severity, own.scale, own.seed, indices
        )
        images = out.cpu().numpy() if isinstance(out, Tensor) else out
        images = images[..., 0] if images.ndim == 4 and images.shape[-1] == 1 else images
        return [
            (transformed(image, own.transform), own.labels[i])
            for image, i in zip(images, indices, strict=True)
        ]


def class_indices(labels: Any, count: int) -> Tensor:
    """The labels of `count` images as int64 (count,); ValueError for anything else."""
    given = labels if isinstance(labels, Tensor) else torch.as_tensor(np.asarray(labels))
    if given.ndim != 1:
        shape = tuple(given.shape)
        raise ValueError(f"labels of shape {shape} must be (N,): one class index per image")
    if len(given) != count:
        raise ValueError(f"{count} images but {len(given)} labels; give one per image")
    return given.cpu().long()


def chosen_corruptions(
    corruption: str | Sequence[str] | None,
    default: Sequence[str],
    known: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The corruptions asked for, among `known` ones; `default` for None."""
    if corruption is None:
        return tuple(default)
    names = as_names(corruption)
    for name in names:
        check_name(name, known or default, "corruption")
    return names


def as_names(names: str | Sequence[str], argument: str = "corruption") -> tuple[str, ...]:
    """One name or several as a tuple; ValueError for none at all."""
    given = (names,) if isinstance(names, str) else tuple(names)
    if not given:
        raise ValueError(f"{argument}=[] selects nothing; leave it out for all")
    return given


def chosen_severities(
    severity: int | Sequence[int] | None, known: Sequence[int] = SEVERITIES
) -> tuple[int, ...]:
    """The severities asked for, all `known` ones for None."""
    if severity is None:
        return tuple(known)
    levels = (severity,) if isinstance(severity, int | np.integer) else tuple(severity)
    if not levels:
        raise ValueError("severity=[] selects nothing; leave it out for all")
    return tuple(check_severity(level, known) for level in levels)


def existing(path: Path, expected: str) -> Path:
    """The path, or a FileNotFoundError that names it and says what was expected there."""
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; expected {expected}")
    return path


def load_array(path: Path, expected: str) -> Array:
    """A memory-mapped .npy file; missing and damaged files name the path and what was expected."""
    existing(path, expected)
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); expected {expected}") from error
    return np.asanyarray(array)
