"""Small made-up data in the layouts of the published sets, so that every recipe runs anywhere.

Pictures are noise around a brightness that tells the class: there is something to learn.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TRAIN, TEST = 16, 8  # samples
CLASSES = 4  # of the folder sets; the others say how many they have in their layout

Array = NDArray[np.uint8]


def write(data: str, folder: Path) -> Path:
    """A data set of that name in `folder`, written once."""
    done = folder / "complete"
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        WRITERS[data](folder)
        done.touch()
    return folder


def samples(count: int, shape: tuple[int, ...], classes: int) -> tuple[Array, Array]:
    """Noisy pictures and their labels; the same at every call."""
    rng = np.random.default_rng(count)
    labels = np.arange(count) % classes
    bright = 40 + 160 * (labels / max(classes - 1, 1))
    noise = rng.normal(0, 25, (count, *shape))
    pictures = bright.reshape(-1, *(1 for _ in shape)) + noise
    return pictures.clip(0, 255).astype(np.uint8), labels.astype(np.uint8)


def cifar(folder: Path, name: str, parts: dict[str, int], key: bytes, classes: int) -> None:
    (folder / name).mkdir(exist_ok=True)
    for part, count in parts.items():
        pictures, labels = samples(count, (3, 32, 32), classes)
        content = {b"data": pictures.reshape(count, -1), key: labels.tolist()}
        (folder / name / part).write_bytes(pickle.dumps(content))


def cifar10(folder: Path) -> None:
    parts = {f"data_batch_{number}": TRAIN // 4 for number in range(1, 6)} | {"test_batch": TEST}
    cifar(folder, "cifar-10-batches-py", parts, b"labels", 10)


def cifar100(folder: Path) -> None:
    parts = {"train": TRAIN, "test": TEST}
    cifar(folder, "cifar-100-python", parts, b"fine_labels", 100)


def fashion_mnist(folder: Path) -> None:
    for part, count in (("train", TRAIN), ("t10k", TEST)):
        pictures, labels = samples(count, (28, 28), 10)
        for kind, array in (("images-idx3", pictures), ("labels-idx1", labels)):
            head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(head + array.tobytes())


def save(picture: Array, path: Path) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def tiny_imagenet(folder: Path) -> None:
    classes = [f"n0000000{number}" for number in range(CLASSES)]
    (folder / "wnids.txt").write_text("\n".join(classes) + "\n")
    for i, (picture, label) in enumerate(zip(*samples(TRAIN, (64, 64, 3), CLASSES), strict=True)):
        name = classes[label]
        save(picture, folder / "train" / name / "images" / f"{name}_{i}.JPEG")
    lines = []
    for i, (picture, label) in enumerate(zip(*samples(TEST, (64, 64, 3), CLASSES), strict=True)):
        save(picture, folder / "val" / "images" / f"val_{i}.JPEG")
        lines.append(f"val_{i}.JPEG\t{classes[label]}\t0\t0\t62\t62\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def imagenet(folder: Path) -> None:
    for part, count in (("train", TRAIN), ("val", TEST)):
        pictures, labels = samples(count, (96, 80, 3), CLASSES)
        for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            save(picture, folder / part / f"n0000000{label}" / f"{part}_{i}.JPEG")


def ucf101(folder: Path) -> None:
    lists = folder / "ucfTrainTestlist"
    lists.mkdir(exist_ok=True)
    classes = [f"Action{number}" for number in range(CLASSES)]
    numbered = [f"{number} {name}" for number, name in enumerate(classes, start=1)]
    (lists / "classInd.txt").write_text("\n".join(numbered) + "\n")
    for part, count in (("train", TRAIN), ("test", TEST)):
        clips, labels = samples(count, (16, 48, 64, 3), CLASSES)
        lines = []
        for i, (clip, label) in enumerate(zip(clips, labels, strict=True)):
            name = f"{classes[label]}/v_{classes[label]}_g{i:02}_c01.avi"
            save_video(clip, folder / "UCF-101" / name)
            lines.append(f"{name} {label + 1}\n" if part == "train" else f"{name}\n")
        (lists / f"{part}list01.txt").write_text("".join(lines))


def save_video(clip: Array, path: Path) -> None:
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    size = (clip.shape[2], clip.shape[1])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, size)
    for frame in clip:
        writer.write(frame)
    writer.release()


def voc(folder: Path) -> None:
    from PIL import Image

    root = folder / "VOCdevkit" / "VOC2012"
    for part, count in (("train", TRAIN), ("val", TEST)):
        pictures, labels = samples(count, (48, 64, 3), 21)
        names = [f"2007_{part}{i}" for i in range(count)]
        for name, picture, label in zip(names, pictures, labels, strict=True):
            mask = np.zeros((48, 64), np.uint8)
            mask[12:36, 16:48], mask[:4] = label, 255
            picture[mask == 0] //= 4
            save(picture, root / "JPEGImages" / f"{name}.jpg")
            image = Image.fromarray(mask)
            image.putpalette([value % 256 for value in range(768)])
            (root / "SegmentationClass").mkdir(exist_ok=True)
            image.save(root / "SegmentationClass" / f"{name}.png")
        listing = root / "ImageSets" / "Segmentation" / f"{part}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("\n".join(names) + "\n")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashionmnist": fashion_mnist,
    "tinyimagenet": tiny_imagenet,
    "imagenet": imagenet,
    "ucf101": ucf101,
    "voc": voc,
}
