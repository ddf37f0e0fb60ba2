"""Noise: Gaussian, shot, impulse and speckle. Images float32 (N, H, W, C) in 0..255."""

from __future__ import annotations

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._resample import Generators, normal, stacked


def gaussian_noise(images: Array, sigma: float, rngs: Generators) -> Array:
    """Independent normal noise per channel; `sigma` in units of the full range."""
    return images + np.float32(255 * sigma) * normal(rngs, images.shape[1:])


def speckle_noise(images: Array, sigma: float, rngs: Generators) -> Array:
    """Normal noise proportional to the value."""
    return images + images * (np.float32(sigma) * normal(rngs, images.shape[1:]))


def shot_noise(images: Array, scale: float, rngs: Generators) -> Array:
    """Photon noise: Poisson with mean `scale` at full brightness."""
    means = images * (scale / 255)
    counts = [rng.poisson(mean) for rng, mean in zip(rngs, means, strict=True)]
    return np.stack(counts).astype(np.float32) * np.float32(255 / scale)


def impulse_noise(images: Array, amount: float, rngs: Generators) -> Array:
    """A fraction `amount` of the values set to 0 or 255, half each, per channel."""
    draw = stacked(lambda rng: rng.random(images.shape[1:], dtype=np.float32), rngs)
    out = np.where(draw < amount / 2, np.float32(0), images)
    return np.where(draw >= 1 - amount / 2, np.float32(255), out)
