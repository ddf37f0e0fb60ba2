"""Corrupted Pascal VOC 2012: the official images, corrupted when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sparseopt.robustness._door import (
    Array,
    check_length,
    check_name,
    check_seed,
    check_severity,
    image_indices,
)
from sparseopt.robustness._extras import need
from sparseopt.robustness._streams import generator
from sparseopt.robustness.corruptions import CORRUPTIONS, corrupt
from sparseopt.robustness.folders import read_image
from sparseopt.robustness.sets import (
    FileSet,
    Sample,
    Transform,
    chosen_corruptions,
    chosen_severities,
    existing,
    transformed,
)

ENGINES = ("sparseopt", "imagecorruptions")


class CorruptedVOC(FileSet):
    """Pascal VOC 2012 segmentation under the 19 corruptions, for `evaluate`.

    Items are (image, mask): the mask int64 (H, W), classes 0..20 and 255 for void. Without `size`
    the images have their own sizes, and `evaluate` takes them one by one.

    Args:
        root: the folder with `VOCdevkit/VOC2012`, or one of these two.
        corruption: one name or several; all 19 by default.
        severity: one of 1..5 or several; all by default.
        split: a list in `ImageSets/Segmentation`: "val", "train" or "trainval".
        size: resize image (bilinear) and mask (nearest) to size x size, before corrupting.
        engine: "sparseopt", or "imagecorruptions" for the package that the paper used
            (pip install imagecorruptions-imaug); its elastic, zoom, frost and fog differ.
        transform: called with the Pillow image; without it, float32 (3, H, W) in [0, 1].
        seed: see `corrupt`.

    Raises:
        FileNotFoundError: a list, an image or a mask is missing; names its path.
        ValueError: an unknown corruption or engine, an empty list, or, on reading, a damaged file.

    Source: Everingham et al. (2012); Wu et al. (2024), appendix A.9.
    """

    name = "corrupted Pascal VOC 2012"
    num_classes = 21
    task = "segmentation"

    def __init__(
        self,
        root: str | Path,
        corruption: str | Sequence[str] | None = None,
        severity: int | Sequence[int] | None = None,
        split: str = "val",
        size: int | None = None,
        engine: str = "sparseopt",
        transform: Transform | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(chosen_corruptions(corruption, CORRUPTIONS), chosen_severities(severity))
        check_name(engine, ENGINES, "engine")
        self.size = None if size is None else check_length(size, "size")
        self.root = _voc_folder(Path(root))
        listing = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        self.names = existing(listing, "one image name per line").read_text().split()
        if not self.names:
            raise ValueError(f"{listing} is empty; expected one image name per line")
        self.pairs = [_pair(self.root, name) for name in self.names]
        self.engine, self.transform = engine, transform
        self.seed, self.uniform = check_seed(seed), size is not None
        self.name = f"corrupted Pascal VOC 2012 {split}"

    def number(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, corruption: str | None, severity: int) -> Sample:
        image, mask = _read_pair(*self.pairs[index], self.size)
        if corruption is not None:
            image = corrupted_image(image, corruption, severity, self.engine, self.seed, index)
        return transformed(image, self.transform), torch.from_numpy(mask.astype(np.int64))


def corrupted_image(
    image: Array, name: str, severity: int, engine: str = "sparseopt", seed: int = 0, index: int = 0
) -> Array:
    """One uint8 image (H, W, 3) of any size, corrupted by either engine, ImageNet's constants.

    `imagecorruptions` draws from numpy's global generator; it is seeded for this image and put
    back afterwards.

    Args:
        image: uint8 (H, W, 3).
        name: one of `CORRUPTIONS`.
        severity: 1 (mild) to 5.
        engine: "sparseopt" or "imagecorruptions".
        seed: chooses another draw of all random numbers.
        index: place of the image in its data set.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ImportError: for "imagecorruptions" without that package.
        TypeError, ValueError: as `corrupt`; also for an unknown engine.

    Example:
        >>> import numpy as np
        >>> corrupted_image(np.zeros((40, 60, 3), np.uint8), "fog", 3).shape
        (40, 60, 3)
    """
    check_name(engine, ENGINES, "engine")
    check_name(name, CORRUPTIONS)
    severity, seed = check_severity(severity), check_seed(seed)
    (place,) = image_indices(index, 1)
    if engine == "sparseopt":
        return np.asarray(corrupt(image[None], name, severity, "imagenet", seed, place))[0]
    theirs = need("imagecorruptions", "engine='imagecorruptions'").corruption_dict[name]
    number = int(generator(seed, name, severity, place).integers(2**31))
    # these two keep generators of their own, which only an argument reaches
    options = {"seed": number} if name in ("glass_blur", "impulse_noise") else {}
    before = np.random.get_state()
    try:
        np.random.seed(number)
        picture = need("PIL.Image", "engine='imagecorruptions'").fromarray(image)
        return np.clip(np.asarray(theirs(picture, severity, **options)), 0, 255).astype(np.uint8)
    finally:
        np.random.set_state(before)


def _voc_folder(root: Path) -> Path:
    existing(root, "the folder with VOCdevkit/VOC2012")
    for place in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (place / "ImageSets").is_dir():
            return place
    path = root / "VOCdevkit" / "VOC2012"
    raise FileNotFoundError(
        f"{path} is missing; expected JPEGImages, SegmentationClass and ImageSets there"
    )


def _pair(root: Path, name: str) -> tuple[Path, Path]:
    image = root / "JPEGImages" / f"{name}.jpg"
    mask = root / "SegmentationClass" / f"{name}.png"
    return existing(image, "an image of the list"), existing(mask, "the mask of an image")


def _read_pair(image: Path, mask: Path, size: int | None) -> tuple[Array, Array]:
    pillow = need("PIL.Image", "reading images")
    picture = read_image(image)
    try:
        with pillow.open(mask) as file:  # palette images: the values are the classes
            classes = np.array(file)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{mask} is damaged ({error}); expected a palette PNG") from error
    if classes.shape != picture.shape[:2]:
        raise ValueError(f"{mask} is {classes.shape}; expected {picture.shape[:2]} as {image.name}")
    if size is None:
        return picture, classes
    resized = pillow.fromarray(picture).resize((size, size), pillow.BILINEAR)
    return np.array(resized), np.array(
        pillow.fromarray(classes).resize((size, size), pillow.NEAREST)
    )
