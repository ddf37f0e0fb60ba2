"""The 19 common image corruptions at five severities, on whole batches, reproducible per image."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparseopt.robustness import _blur, _digital, _noise, _weather
from sparseopt.robustness._constants import SCALES
from sparseopt.robustness._door import (
    Array,
    Images,
    as_batch,
    check_name,
    check_seed,
    check_severity,
    check_side,
    image_indices,
    like,
)

Kernel = Callable[[Array, Any, Sequence[np.random.Generator]], Array]

_KERNELS: dict[str, Kernel] = {
    "gaussian_noise": _noise.gaussian_noise,
    "shot_noise": _noise.shot_noise,
    "impulse_noise": _noise.impulse_noise,
    "defocus_blur": _blur.defocus_blur,
    "glass_blur": _blur.glass_blur,
    "motion_blur": _blur.motion_blur,
    "zoom_blur": _blur.zoom_blur,
    "snow": _weather.snow,
    "frost": _weather.frost,
    "fog": _weather.fog,
    "brightness": _weather.brightness,
    "contrast": _digital.contrast,
    "elastic_transform": _digital.elastic_transform,
    "pixelate": _digital.pixelate,
    "jpeg_compression": _digital.jpeg_compression,
    "speckle_noise": _noise.speckle_noise,
    "gaussian_blur": _blur.gaussian_blur,
    "spatter": _weather.spatter,
    "saturate": _digital.saturate,
}

CORRUPTIONS: tuple[str, ...] = tuple(_KERNELS)
"""The 19 corruptions of CIFAR-10/100-C; the first 15 are those of ImageNet-C and mCE."""

_SMALLEST_SIDE = 4
_VALUES_AT_ONCE = 1 << 18  # about 1 MB of float32: stays in a core's cache


def corrupt(
    images: Images,
    name: str,
    severity: int,
    scale: str = "imagenet",
    seed: int = 0,
    index: int | Sequence[int] = 0,
) -> Images:
    """Images under one common corruption, in the type, shape and device of those given.

    What happens to an image depends on `name`, `severity`, `seed` and its index alone, so any
    batch size and any number of workers give the same set.

    Args:
        images: uint8 (N, H, W, C) with C 3 or 1, or gray (N, H, W); numpy or torch.
        name: one of `CORRUPTIONS`, of `C_BAR`, or a map-free one of `THREE_D`.
        severity: 1 (mild) to 5.
        scale: the constants of "cifar" (CIFAR-10/100-C, 32 px), "tiny" (Tiny-ImageNet-C, 64 px)
            or "imagenet" (ImageNet-C, 224 px; also Pascal VOC). Images of any size are accepted;
            lengths given in pixels are not rescaled.
        seed: chooses another draw of all random numbers.
        index: place of the first image in its data set (the others follow), or one per image.

    Returns:
        uint8 images of the same shape.

    Raises:
        TypeError: images are not uint8 arrays.
        ValueError: unknown name or scale, severity outside 1..5, wrong number of axes or
            channels, or images too small for the corruption.

    Example:
        >>> import numpy as np
        >>> images = np.full((2, 32, 32, 3), 128, dtype=np.uint8)
        >>> noisy = corrupt(images, "gaussian_noise", 5, scale="cifar")
        >>> noisy.shape, noisy.dtype == np.uint8, bool((noisy != images).any())
        ((2, 32, 32, 3), True, True)
        >>> second = corrupt(images[1:], "gaussian_noise", 5, scale="cifar", index=1)
        >>> bool((second == noisy[1:]).all())
        True

    Source: Hendrycks & Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
    and Perturbations" (2019).
    """
    check_name(name, CORRUPTIONS)
    check_name(scale, SCALES, "scale")
    severity, seed = check_severity(severity), check_seed(seed)
    constants = SCALES[scale][name][severity - 1]
    batch = as_batch(images)
    check_side(batch, smallest_side(name, constants), name)
    kernel = _KERNELS[name]
    generators = [generator(seed, name, severity, i) for i in image_indices(index, len(batch))]
    result = in_pieces(batch, lambda piece, rngs: kernel(piece, constants, rngs), generators)
    return like(result, images)


def smallest_side(name: str, constants: Any) -> int:
    """The shortest side in pixels that a corruption can work on."""
    if name == "glass_blur":
        return max(_SMALLEST_SIDE, 2 * int(constants[1]) + 2)
    return _SMALLEST_SIDE


def generator(seed: int, name: str, severity: int, index: int) -> np.random.Generator:
    """The random numbers of one image under one corruption."""
    key = [seed, zlib.crc32(name.encode()), severity, index]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def in_pieces(
    batch: Array,
    kernel: Callable[[Array, Sequence[np.random.Generator]], Array],
    generators: Sequence[np.random.Generator],
) -> Array:
    """Apply a kernel on float32 images in 0..255 to pieces of a uint8 batch."""
    out = np.empty_like(batch)
    size = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(batch.shape[1:]))))
    for start in range(0, len(batch), size):
        piece = slice(start, start + size)
        result = kernel(batch[piece].astype(np.float32), generators[piece])
        out[piece] = truncated(result)
    return out


def truncated(values: Array) -> Array:
    """Clipped to 0..255 and cut to whole grey levels, as the published sets are."""
    # 1e-3 keeps a value that should be a whole number from falling below it by rounding
    return np.clip(values + np.float32(1e-3), 0, 255).astype(np.uint8)
