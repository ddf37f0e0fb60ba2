"""Corrupted UCF101: the official videos, perturbed when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sparseopt.robustness._door import Array, check_length, check_seed
from sparseopt.robustness._extras import need
from sparseopt.robustness.sets import (
    FileSet,
    Sample,
    Transform,
    chosen_corruptions,
    chosen_severities,
    existing,
)
from sparseopt.robustness.video import TEMPORAL, VIDEO, VIDEO_SEVERITIES, corrupt_video


class CorruptedUCF101(FileSet):
    """UCF101's test videos under 16 perturbations, at every reading the same.

    A video is decoded whole; temporal perturbations act on all frames, then `frames` of them are
    taken at the middles of equal segments, the shorter side becomes 1.25 x `size`, the centre is
    cut (`translate` cuts elsewhere), and spatial perturbations act on the result.

    Args:
        root: the folder with `UCF-101/<Class>/v_*.avi`, or `UCF-101` itself.
        annotations: the folder with `classInd.txt` and `testlist0<split>.txt`; by default
            `ucfTrainTestlist` beside the videos, or `root`.
        corruption: one of `VIDEO` or several; all 16 by default.
        severity: one of 1..5 or several; 1 to 4 by default, as in the paper.
        frames: frames of a clip, at least 1.
        size: side of its frames in pixels.
        split: 1, 2 or 3.
        transform: called with the clip, float32 (C, T, H, W) in [0, 1]; normalise here.
        seed: see `corrupt`.
        train: the videos of `trainlist0<split>.txt` instead; `.clean` has them as they are.

    Raises:
        FileNotFoundError: a list or a video is missing; names its path.
        ValueError: a list or a video is damaged; names its path.

    Source: Soomro et al., "UCF101" (2012); Wu et al. (2024), appendix A.2.
    """

    name = "corrupted UCF101"

    def __init__(
        self,
        root: str | Path,
        annotations: str | Path | None = None,
        corruption: str | Sequence[str] | None = None,
        severity: int | Sequence[int] | None = None,
        frames: int = 8,
        size: int = 224,
        split: int = 1,
        transform: Transform | None = None,
        seed: int = 0,
        train: bool = False,
    ) -> None:
        levels = VIDEO_SEVERITIES if severity is None else severity
        super().__init__(chosen_corruptions(corruption, VIDEO), chosen_severities(levels))
        folder = existing(Path(root), "the folder with UCF-101")
        self.root = folder / "UCF-101" if (folder / "UCF-101").is_dir() else folder
        self.frames, self.size = check_length(frames, "frames"), check_length(size, "size")
        self.transform = transform
        self.seed = check_seed(seed)
        lists = Path(annotations) if annotations else _annotations(folder, self.root)
        classes = _read_classes(lists / "classInd.txt")
        self.classes = tuple(sorted(classes, key=lambda name: classes[name]))
        self.num_classes = len(classes)
        listing = f"{'train' if train else 'test'}list0{split}.txt"
        self.samples = _read_list(lists / listing, classes, self.root)

    def number(self) -> int:
        return len(self.samples)

    def sample(self, index: int, corruption: str | None, severity: int) -> Sample:
        path, label = self.samples[index]
        clip = self._perturbed(read_video(path), corruption, severity, index)
        tensor = torch.from_numpy(clip.transpose(3, 0, 1, 2).astype(np.float32)) / 255
        return (self.transform(tensor) if self.transform else tensor), torch.tensor(label)

    def _perturbed(self, video: Array, name: str | None, severity: int, index: int) -> Array:
        if name in TEMPORAL:
            video = np.asarray(corrupt_video(video, name, severity, self.seed, index))
        clip = _resized(video[uniform_frames(len(video), self.frames)], round(1.25 * self.size))
        if name == "translate":
            return np.asarray(corrupt_video(clip, name, severity, self.seed, index, self.size))
        clip = _centre(clip, self.size)
        if name is None or name in TEMPORAL:
            return clip
        return np.asarray(corrupt_video(clip, name, severity, self.seed, index))


def read_video(path: str | Path) -> Array:
    """All frames of a video file as uint8 RGB (T, H, W, 3), decoded by OpenCV."""
    cv2 = need("cv2", "reading videos")
    existing(Path(path), "a video file")
    capture, frames = cv2.VideoCapture(str(path)), []
    while True:
        good, frame = capture.read()
        if not good:
            break
        frames.append(frame[..., ::-1])
    capture.release()
    if not frames:
        raise ValueError(f"{path} is damaged (no frame could be decoded); expected a video file")
    return np.stack(frames)


def uniform_frames(count: int, wanted: int) -> Array:
    """Frame numbers at the middles of `wanted` equal segments of `count` frames.

    Example:
        >>> uniform_frames(16, 4).tolist(), uniform_frames(2, 4).tolist()
        ([2, 6, 10, 14], [0, 0, 1, 1])
    """
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(int)


def _resized(clip: Array, side: int) -> Array:
    """The shorter side to `side` pixels, bilinear."""
    height, width = clip.shape[1:3]
    factor = side / min(height, width)
    size = (max(side, round(width * factor)), max(side, round(height * factor)))
    cv2 = need("cv2", "resizing videos")
    return np.stack([cv2.resize(frame, size) for frame in clip])


def _centre(clip: Array, size: int) -> Array:
    top, left = (clip.shape[1] - size) // 2, (clip.shape[2] - size) // 2
    return clip[:, top : top + size, left : left + size]


def _annotations(folder: Path, videos: Path) -> Path:
    for place in (folder, folder / "ucfTrainTestlist", videos.parent / "ucfTrainTestlist"):
        if (place / "classInd.txt").exists():
            return place
    return folder / "ucfTrainTestlist"


def _read_classes(path: Path) -> dict[str, int]:
    """Class name to label, from lines "1 ApplyEyeMakeup"."""
    expected = 'lines like "1 ApplyEyeMakeup"'
    lines = [line.split() for line in existing(path, expected).read_text().splitlines() if line]
    if not lines or any(len(line) != 2 or not line[0].isdigit() for line in lines):
        raise ValueError(f"{path} is damaged; expected {expected}")
    return {name: int(number) - 1 for number, name in lines}


def _read_list(path: Path, classes: dict[str, int], root: Path) -> list[tuple[Path, int]]:
    """Videos of a list with lines "Class/v_Class_g01_c01.avi", a label behind is ignored."""
    expected = 'lines like "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"'
    samples = []
    for line in existing(path, expected).read_text().splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        label = classes.get(name.split("/")[0])
        if label is None:
            raise ValueError(f"{path} names {name!r}, whose class is not in classInd.txt")
        samples.append((existing(root / name, f"a video of {path.name}"), label))
    if not samples:
        raise ValueError(f"{path} is empty; expected {expected}")
    return samples
