"""Real pictures put together into small data sets, in the layouts of those that cannot be shipped.

| made here | from | in the layout of |
|---|---|---|
| scenes: clothes on photographs, masks | Fashion-MNIST, scikit-image, scikit-learn | VOC 2012 |
| portraits: one piece of clothing on a photograph | the same | images in memory |
| clips: clothes that move over photographs | the same | UCF101 |
| renditions and selections of clothes | Fashion-MNIST | ImageNet-R and -V2 |

All pixels are real; what is put where is drawn. Training and test sets share neither clothes nor
photographs. They let a whole pipeline run and learn, and say nothing about the data they stand for.
Made once and kept beside Fashion-MNIST.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import fashion
import numpy as np
from PIL import Image

Array = np.ndarray
TRAIN, TEST = ("astronaut", "coffee", "china", "flower"), ("chelsea", "rocket")
ITEMS = (0, 1, 3, 7, 8, 9)  # T-shirt, trouser, dress, sneaker, bag, boot: told apart by outline
VOID = 255


@cache
def photograph(name: str) -> Array:
    """uint8 (height, width, 3)."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return np.asarray(load_sample_image(f"{name}.jpg"))
    from skimage import data

    return np.asarray(getattr(data, name)())[..., :3]


def crop(names: Sequence[str], side: int, random: np.random.Generator) -> Array:
    """A square of random place and extent from a random photograph, side x side pixels."""
    picture = photograph(names[random.integers(len(names))])
    extent = int(random.integers(side, min(picture.shape[:2]) + 1))
    top, left = (random.integers(0, length - extent + 1) for length in picture.shape[:2])
    square = Image.fromarray(picture[top : top + extent, left : left + extent])
    return np.array(square.resize((side, side), Image.Resampling.BOX))


def item(part: str, kinds: Sequence[int], random: np.random.Generator) -> tuple[Array, int]:
    """A piece of clothing, uint8 (28, 28), and its place in `kinds`."""
    pixels, labels = clothes(part)
    kind = int(random.integers(len(kinds)))
    chosen = random.choice(np.flatnonzero(labels == kinds[kind]))
    return pixels[chosen], kind


@cache
def clothes(part: str) -> tuple[Array, Array]:
    train, train_labels, test, test_labels = fashion.datasets.load()
    pair = (train, train_labels) if part == "train" else (test, test_labels)
    return pair[0].numpy(), pair[1].numpy()


def enlarged(pixels: Array, side: int) -> Array:
    return np.array(Image.fromarray(pixels).resize((side, side), Image.Resampling.BILINEAR))


def paste(picture: Array, pixels: Array, top: int, left: int) -> Array:
    """The picture with gray clothes on it, changed in place; which of its pixels they cover."""
    covered = np.zeros(picture.shape[:2], dtype=bool)
    covered[top : top + len(pixels), left : left + len(pixels)] = pixels > 40
    square = picture[top : top + len(pixels), left : left + len(pixels)]
    square[pixels > 40] = pixels[pixels > 40][:, None]
    return covered


def kept(name: str, make: Callable[[Path], Any]) -> Path:
    """The folder of a made data set, made now if it is missing, whole or not at all."""
    folder = fashion.datasets.cache_folder() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as workshop:
            unfinished = Path(workshop) / name
            unfinished.mkdir()
            make(unfinished)
            if not folder.exists():  # another process may have been faster
                unfinished.replace(folder)
    return folder


# --- scenes -------------------------------------------------------------------------------------


def scenes(train: int = 320, test: int = 40, side: int = 96) -> Path:
    """Folder with VOCdevkit/VOC2012: one or two pieces of clothing on a photograph, six classes."""
    return kept(f"scenes-{train}-{test}-{side}", lambda root: write_scenes(root, train, test, side))


def write_scenes(root: Path, train: int, test: int, side: int) -> None:
    voc = root / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (voc / name).mkdir(parents=True)
    for split, part, names, count in (
        ("train", "train", TRAIN, train),
        ("val", "test", TEST, test),
    ):
        random = np.random.default_rng(len(split))
        listed = [f"{split}_{number:06d}" for number in range(count)]
        for name in listed:
            picture, classes = scene(part, names, side, random)
            Image.fromarray(picture).save(voc / "JPEGImages" / f"{name}.jpg", quality=95)
            mask = Image.fromarray(classes)
            mask.putpalette([value for color in palette() for value in color])
            mask.save(voc / "SegmentationClass" / f"{name}.png")
        (voc / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(listed) + "\n")


def scene(
    part: str, names: Sequence[str], side: int, random: np.random.Generator
) -> tuple[Array, Array]:
    """A picture and its classes, 1 to 6 for the clothes and void along their outlines."""
    picture = crop(names, side, random)
    classes = np.zeros((side, side), dtype=np.uint8)
    for _ in range(random.integers(1, 3)):
        pixels, kind = item(part, ITEMS, random)
        extent = int(random.integers(side // 2, 3 * side // 4))
        top, left = random.integers(0, side - extent + 1, 2)
        covered = paste(picture, enlarged(pixels, extent), int(top), int(left))
        classes[covered] = kind + 1
        classes[outline(covered)] = VOID
    return picture, classes


def outline(covered: Array) -> Array:
    """The pixels next to an edge, as VOC marks them."""
    from scipy.ndimage import binary_dilation, binary_erosion

    return np.asarray(binary_dilation(covered) & ~binary_erosion(covered))


def palette() -> Array:
    """256 colors that can be told apart; the values of a mask are its classes whatever they are."""
    return np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


def portraits(count: int = 6000, side: int = 48) -> tuple[Array, Array]:
    """uint8 (count, side, side, 3): one piece of clothing on each, and which of the six it is."""

    def write(root: Path) -> None:
        random = np.random.default_rng(0)
        pictures, kinds = np.empty((count, side, side, 3), np.uint8), np.empty(count, np.int64)
        for picture, number in zip(pictures, range(count), strict=True):
            picture[:] = crop(TRAIN, side, random)
            pixels, kinds[number] = item("train", ITEMS, random)
            extent = int(random.integers(5 * side // 8, side))
            top, left = random.integers(0, side - extent + 1, 2)
            paste(picture, enlarged(pixels, extent), int(top), int(left))
        np.savez(root / "portraits.npz", pictures=pictures, kinds=kinds)

    with np.load(kept(f"portraits-{count}-{side}", write) / "portraits.npz") as file:
        return file["pictures"], file["kinds"]


# --- clips --------------------------------------------------------------------------------------

STEPS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}
MOVING = {"trouser": 1, "sneaker": 7, "bag": 8}


def clips(train: int = 480, test: int = 60, side: int = 40, frames: int = 32) -> Path:
    """Folder with UCF-101 and its lists: 12 classes, a piece of clothing times where it goes."""
    name = f"clips-{train}-{test}-{side}-{frames}"
    return kept(name, lambda root: write_clips(root, train, test, side, frames))


def write_clips(root: Path, train: int, test: int, side: int, frames: int) -> None:
    classes = [f"{item.title()}{way.title()}" for item in MOVING for way in STEPS]
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    lines = [f"{number} {name}\n" for number, name in enumerate(classes, start=1)]
    (lists / "classInd.txt").write_text("".join(lines))
    for split, part, names, count in (
        ("trainlist01", "train", TRAIN, train),
        ("testlist01", "test", TEST, test),
    ):
        random, listed = np.random.default_rng(len(split)), []
        for number in range(count):
            name = classes[number % len(classes)]
            kind, way = list(MOVING.values())[number % 12 // 4], list(STEPS.values())[number % 4]
            file = f"{name}/v_{name}_{split[:-6]}{number:05d}.avi"
            write_video(root / "UCF-101" / file, clip(part, names, kind, way, side, frames, random))
            label = f" {classes.index(name) + 1}" if split == "trainlist01" else ""
            listed.append(f"{file}{label}\n")
        (lists / f"{split}.txt").write_text("".join(listed))


def clip(
    part: str, names: Sequence[str], kind: int, way: tuple[int, int], side: int, frames: int,
    random: np.random.Generator,
) -> Array:  # fmt: skip
    """uint8 (frames, side, side, 3): one piece of clothing passes over a photograph at rest."""
    ground, pixels = crop(names, side, random), item(part, [kind], random)[0]
    extent = side // 2
    pixels = enlarged(pixels, extent)
    room = side - extent
    across = int(random.integers(0, room + 1))
    far = np.linspace(0, room, frames).round().astype(int)
    out = np.repeat(ground[None], frames, axis=0)
    for frame, moved in zip(out, far if sum(way) > 0 else far[::-1], strict=True):
        top, left = (int(moved), across) if way[0] else (across, int(moved))
        paste(frame, pixels, top, left)
    return out


def write_video(path: Path, frames: Array) -> None:
    """Motion JPEG, which OpenCV has everywhere."""
    import cv2

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames.shape[1:3]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
