"""The 19 common image corruptions at five severities, on whole batches, reproducible per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sparseopt.robustness import _blur, _digital, _noise, _weather, c_bar, codec, three_d
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
from sparseopt.robustness._streams import generator, in_pieces
from sparseopt.robustness.three_d import MAP_TAKING

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

GENERATED: tuple[str, ...] = (*_KERNELS, *c_bar.KERNELS, *three_d.KERNELS, *codec.KERNELS)
"""Every name that `corrupt` takes."""

# nothing is drawn here, and making a generator takes longer than some of these on small images
_WITHOUT_CHANCE = frozenset(
    {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression",
     "gaussian_blur", "saturate", "color_quant", "bit_error", "h265_abr"}
)  # fmt: skip

_SMALLEST_SIDE = 4


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
        name: one of `CORRUPTIONS`, of `C_BAR`, or one of `THREE_D` that needs no map
            ("color_quant", "iso_noise", "low_light"; "bit_error" and "h265_abr" with ffmpeg).
        severity: 1 (mild) to 5.
        scale: the constants of "cifar" (CIFAR-10/100-C, 32 px), "tiny" (Tiny-ImageNet-C, 64 px)
            or "imagenet" (ImageNet-C, 224 px; also Pascal VOC). Images of any size are accepted;
            lengths given in pixels are not rescaled. C-bar has "imagenet" and, for five of its
            ten, "cifar"; 3DCC has one table.
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
    kernel, table = recipe(name, scale)
    severity, seed = check_severity(severity), check_seed(seed)
    constants = table[severity - 1]
    batch = as_batch(images)
    check_side(batch, smallest_side(name, constants), name)
    indices = image_indices(index, len(batch))
    drawn = [] if name in _WITHOUT_CHANCE else indices
    generators = [generator(seed, name, severity, i) for i in drawn]
    result = in_pieces(batch, lambda piece, rngs: kernel(piece, constants, rngs), generators)
    return like(result, images)


def check_all(images: Images, names: Sequence[str], severities: Sequence[int], scale: str) -> None:
    """Raise TypeError or ValueError where `corrupt` would for any of these, before any work."""
    first = as_batch(images[:1])
    for name in names:
        _, table = recipe(name, scale)
        for severity in severities:
            check_side(first, smallest_side(name, table[severity - 1]), name)


def recipe(name: str, scale: str) -> tuple[Kernel, tuple[Any, ...]]:
    """The kernel of a corruption and its constants for severities 1 to 5 at a scale."""
    check_name(scale, SCALES, "scale")
    if name in MAP_TAKING:
        raise ValueError(
            f"name={name!r} needs a {MAP_TAKING[name]} map: use "
            f"sparseopt.robustness.{name}(images, severity, {MAP_TAKING[name]})"
        )
    check_name(name, GENERATED)
    if name in _KERNELS:
        return _KERNELS[name], SCALES[scale][name]
    if name in c_bar.KERNELS:
        return c_bar.KERNELS[name], _strengths(name, scale)
    if name in three_d.KERNELS:
        return three_d.KERNELS[name], three_d.CONSTANTS[name]
    return codec.KERNELS[name], codec.CONSTANTS[name]


def _strengths(name: str, scale: str) -> tuple[float, ...]:
    """Strengths of C-bar, divided by 10."""
    known = [other for other, table in c_bar.STRENGTHS.items() if name in table]
    if scale not in known:
        raise ValueError(f"scale={scale!r}: {name!r} has constants for {', '.join(known)} only")
    return tuple(strength / 10 for strength in c_bar.STRENGTHS[scale][name])


def smallest_side(name: str, constants: Any) -> int:
    """The shortest side in pixels that a corruption can work on."""
    if name == "glass_blur":
        return max(_SMALLEST_SIDE, 2 * int(constants[1]) + 2)
    return codec.SMALLEST_SIDE if name in codec.KERNELS else _SMALLEST_SIDE
