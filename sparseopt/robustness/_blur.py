"""Blur: defocus, glass, motion, zoom and Gaussian. Images float32 (N, H, W, C) in 0..255."""

from __future__ import annotations

import math

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._resample import (
    Generators,
    disk_kernel,
    filtered,
    gaussian_blurred,
    motion_blurred,
    zoomed_sum,
)


def defocus_blur(images: Array, constants: tuple[float, float], rngs: Generators) -> Array:
    """A disk of the given radius, softened by an alias blur."""
    kernel = disk_kernel(*constants)
    return filtered(images, kernel, "reflect", (-1, -1))


def gaussian_blur(images: Array, sigma: float, rngs: Generators) -> Array:
    """A Gaussian, cut at four sigmas, edges replicated."""
    return gaussian_blurred(images, sigma)


def motion_blur(images: Array, constants: tuple[float, float], rngs: Generators) -> Array:
    """A one-sided streak at an angle drawn from U(-45, 45) degrees."""
    return motion_blurred(images, *constants, [rng.uniform(-45, 45) for rng in rngs])


def zoom_blur(images: Array, constants: tuple[float, float], rngs: Generators) -> Array:
    """The mean of the image and its enlargements by 1, 1 + step, … below `stop`."""
    stop, step = constants
    # the released code zooms over np.arange(1, stop, step), whose length depends on rounding
    count = math.ceil((stop - 1) / step)
    total = 2 * images + zoomed_sum(images, [1 + i * step for i in range(1, count)])
    return total / np.float32(count + 1)


def glass_blur(images: Array, constants: tuple[float, int, int], rngs: Generators) -> Array:
    """Blurred, pixels replaced by neighbours up to `reach` away, blurred again.

    The released generators mean to swap pixels, but their assignment copies on colour images, so
    the published sets hold copies. The same is done here, on gray images too.
    """
    sigma, reach, iterations = constants
    blurred = np.floor(gaussian_blurred(images, sigma) + 1e-3)
    source = _scattered(blurred.shape[1], blurred.shape[2], reach, iterations, rngs)
    pixels = blurred.reshape(-1, blurred.shape[-1])
    return gaussian_blurred(pixels[source].reshape(blurred.shape), sigma)


def _scattered(height: int, width: int, reach: int, iterations: int, rngs: Generators) -> Array:
    """Flat index, into all pixels of the batch, of the pixel that each pixel ends up showing."""
    total = np.arange(len(rngs) * height * width, dtype=np.int32)
    for _ in range(iterations):
        total = total[_one_pass(height, width, reach, rngs)]
    return total


def _one_pass(height: int, width: int, reach: int, rngs: Generators) -> Array:
    """Source of every pixel after one scan from the bottom right to the top left.

    Each visited pixel takes the value its neighbour has at that moment: the neighbour's old value,
    or, where the neighbour was visited before, whatever that one took. Following these
    references by pointer doubling replaces the scan over single pixels.
    """
    count, inner = height * width, (height - 2 * reach, width - 2 * reach)
    offsets = np.stack([rng.integers(-reach, reach, (2, *inner), dtype=np.int16) for rng in rngs])
    shift = offsets[:, 0].astype(np.int32) * width + offsets[:, 1]
    visited = np.zeros((height, width), dtype=bool)
    visited[reach + 1 : height - reach + 1, reach + 1 : width - reach + 1] = True
    source = np.arange(len(rngs) * count, dtype=np.int32)
    source.reshape(len(rngs), height, width)[:, visited] += shift.reshape(len(rngs), -1)
    pending = source > np.arange(len(source), dtype=np.int32)
    return _resolved(source, pending)


def _resolved(source: Array, pending: Array) -> Array:
    """Follow `source` from every pending place until a place that is not pending."""
    places = np.flatnonzero(pending)
    while places.size:
        targets = source[places]
        source[places], still = source[targets], pending[targets]
        pending[places] = still
        places = places[still]
    return source
