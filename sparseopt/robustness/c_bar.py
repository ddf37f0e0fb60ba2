"""The ten corruptions of ImageNet-C-bar, perceptually unlike the nineteen common ones.

Source: Mintun et al., "On Interaction Between Augmentations and Corruptions in Natural Corruption
Robustness" (2021); strengths and constants from the released generators. Images are float32
(N, H, W, C) in 0..255; `amount` is the strength L of a severity divided by 10.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._resample import (
    Generators,
    gray,
    pixel_grid,
    sampled,
    smoothed,
    stacked,
)

STRENGTHS: dict[str, dict[str, tuple[float, ...]]] = {
    "imagenet": {
        "blue_noise_sample": (0.8, 1.6, 2.4, 4.0, 5.6),
        "brownish_noise": (1, 2, 3, 4, 5),
        "caustic_refraction": (2.35, 3.2, 4.9, 6.6, 9.15),
        "checkerboard_cutout": (2, 3, 4, 5, 6),
        "cocentric_sine_waves": (3, 5, 8, 9, 10),
        "inverse_sparkles": (1, 2, 4, 9, 10),
        "perlin_noise": (4.6, 5.2, 5.8, 7.6, 8.8),
        "plasma_noise": (4.75, 7, 8.5, 9.25, 10),
        "single_frequency_greyscale": (1, 1.5, 2, 4.5, 5),
        "sparkles": (1, 2, 3, 5, 6),
    },
    # five of the ten of CIFAR-10-C-bar are among these; the others are not in the paper's set
    "cifar": {
        "blue_noise_sample": (0.7, 1.4, 2.1, 3.5, 4.2),
        "brownish_noise": (2.5, 4, 5.5, 6.5, 7),
        "checkerboard_cutout": (1, 2, 3, 4, 5),
        "inverse_sparkles": (1, 1.5, 2.5, 4.5, 5),
        "sparkles": (0.7, 3.5, 5.6, 6.3, 7),
    },
}

C_BAR: tuple[str, ...] = tuple(STRENGTHS["imagenet"])
"""Names of ImageNet-C-bar (Mintun et al., 2021), in the paper's order."""

CIFAR_C_BAR: tuple[str, ...] = (
    "blue_noise_sample",
    "brownish_noise",
    "checkerboard_cutout",
    "inverse_sparkles",
    "pinch_and_twirl",
    "ripple",
    "circular_motion_blur",
    "lines",
    "sparkles",
    "transverse_chromatic_abberation",
)
"""Names of CIFAR-10-C-bar; read by `CIFARC`, five of them are not generated here."""


def blue_noise_sample(images: Array, amount: float, rngs: Generators) -> Array:
    """Pixels black where high-frequency noise falls below a threshold."""
    noise = _spectral_noise(rngs, images.shape[1:3], lambda distance: distance)
    return images * (noise > amount * 3 - 2.5)[..., None]


def brownish_noise(images: Array, amount: float, rngs: Generators) -> Array:
    """Cloudy noise, spectrum 1 / (distance^2 + 1), added to each channel."""
    noise = [
        _spectral_noise(rngs, images.shape[1:3], lambda distance: 1 / (distance**2 + 1))
        for _ in range(images.shape[-1])
    ]
    return images + np.float32(64 * amount) * np.stack(noise, axis=-1)


def _spectral_noise(
    rngs: Generators, shape: tuple[int, ...], amplitude: Callable[[Array], Array]
) -> Array:
    """Noise (N, H, W) of standard deviation 1 with random phases; its mean is not removed."""
    distance = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n, 1 / n) for n in shape), indexing="ij"))
    phases = np.stack([rng.uniform(0, 2 * math.pi, shape) for rng in rngs])
    noise = np.stack([np.fft.ifft2(amplitude(distance) * np.exp(1j * p)).real for p in phases])
    return (noise / noise.std(axis=(1, 2), keepdims=True)).astype(np.float32)


def checkerboard_cutout(images: Array, amount: float, rngs: Generators) -> Array:
    """A share of the fields of one colour of a turned checkerboard becomes gray."""
    height, width = images.shape[1:3]
    rows, columns = pixel_grid(height, width)
    masks = [_fields(rng, rows[0], columns[0], min(height, width), amount) for rng in rngs]
    return np.where(np.stack(masks)[..., None], np.float32(128), images)


def _fields(
    rng: np.random.Generator, rows: Array, columns: Array, side: int, share: float
) -> Array:
    """The pixels (H, W) of chosen fields."""
    angle, cell = rng.uniform(0, 2 * math.pi), max(rng.uniform(0.1, 0.25) * side, 1)
    down = (math.cos(angle) * rows + math.sin(angle) * columns) / cell
    right = (-math.sin(angle) * rows + math.cos(angle) * columns) / cell
    i, j = (np.floor(axis - axis.min()).astype(int) for axis in (down, right))
    chosen = rng.random((i.max() + 1, j.max() + 1)) < share
    return chosen[i, j] & ((i + j) % 2 == 0)


def cocentric_sine_waves(images: Array, amount: float, rngs: Generators) -> Array:
    """Wavy rings around a point, a sawtooth of distance, added."""
    height, width = images.shape[1:3]
    side = min(height, width)
    rows, columns = pixel_grid(height, width)
    y, x = (_per_image(rngs, 0, length) for length in (height, width))
    frequency = _per_image(rngs, 0, 10)
    reach, ring = (_per_image(rngs, 0, side / 10) for _ in range(2))
    wave = reach * np.sin(np.arctan2(columns - x, rows - y) * frequency)
    phase = (np.hypot(columns - x, rows - y) + wave) / np.maximum(ring, np.float32(1e-3)) % 1
    return images + np.float32(128 * amount) * (phase - np.float32(0.5))[..., None]


def _per_image(rngs: Generators, low: float, high: float) -> Array:
    """One uniform number per image, (N, 1, 1)."""
    return stacked(lambda rng: rng.uniform(low, high, (1, 1)), rngs)


def single_frequency_greyscale(images: Array, amount: float, rngs: Generators) -> Array:
    """One plane wave, added."""
    rows, columns = pixel_grid(*images.shape[1:3])
    waves = [_wave(rng, rows[0], columns[0]) for rng in rngs]
    return images + np.float32(196 * amount) * np.stack(waves)[..., None]


def _wave(rng: np.random.Generator, rows: Array, columns: Array) -> Array:
    first = rng.uniform(-math.pi, math.pi)
    x, y = rng.permutation([first, rng.uniform(-abs(first), abs(first))])
    wave: Array = np.sin(columns * x + rows * y + rng.uniform(0, 2 * math.pi))
    return wave.astype(np.float32)


def plasma_noise(images: Array, amount: float, rngs: Generators) -> Array:
    """A coloured plasma, mixed in."""
    height, width = images.shape[1:3]
    maps = np.stack([_plasma(rng, height, width) for rng in rngs])
    noise = maps if images.shape[-1] == 3 else gray(maps)
    weight = 64 * amount
    return np.float32(1 - weight / 255) * images + np.float32(weight) * noise


def _plasma(rng: np.random.Generator, height: int, width: int) -> Array:
    """Sines of coordinates that were bent several times: (H, W, 3) in [-1, 1]."""
    time, iterations = rng.uniform(0, 6 * math.pi), int(rng.integers(4, 7))
    shrink, cell = 2.25 - rng.uniform(0.5, 1), rng.uniform(0.075, 0.2) * min(height, width)
    y, x = (axis[0].astype(np.float64) / cell for axis in pixel_grid(height, width))
    for step in range(iterations):
        lag = time / 1.15**step
        right, down = np.cos(y * 1.93**step + lag), np.sin(x * 1.93**step + lag)
        x = x + (right - 0.3 * down) / shrink**step
        y = y + (down + 0.3 * right) / shrink**step
    colors = (np.sin(x - time), np.sin((x + y + math.sin(time)) / 2), np.sin(y + time))
    return np.stack(colors, axis=-1).astype(np.float32)


def perlin_noise(images: Array, amount: float, rngs: Generators) -> Array:
    """Bright turbulence of five octaves, mixed in."""
    height, width = images.shape[1:3]
    cell = 32 * min(height, width) / 224
    noise = sum(
        (
            np.abs(_perlin(rngs, height, width, cell / octave)) / octave
            for octave in (1, 2, 4, 8, 16)
        ),
        start=np.zeros((len(rngs), height, width), dtype=np.float32),
    )
    veil = np.minimum(0.5 + 0.5 * noise, 1)[..., None]
    weight = amount / 2
    return np.float32(1 - weight) * images + np.float32(255 * weight) * veil


def _perlin(rngs: Generators, height: int, width: int, cell: float) -> Array:
    """Gradient noise (N, H, W) with one random gradient per lattice point."""
    y, x = np.arange(height) / cell, np.arange(width) / cell
    i, j = y.astype(int), x.astype(int)
    shape = (i[-1] + 2, j[-1] + 2)
    angles = np.stack([rng.uniform(0, 2 * math.pi, shape) for rng in rngs]).astype(np.float32)
    down, right = np.sin(angles), np.cos(angles)
    fy, fx = ((y - i)[:, None].astype(np.float32), (x - j)[None, :].astype(np.float32))

    def corner(a: int, b: int) -> Array:
        at = np.ix_(np.arange(len(rngs)), i + a, j + b)
        return down[at] * (fy - a) + right[at] * (fx - b)

    sx, sy = (t * t * (3 - 2 * t) for t in (fx, fy))
    top = corner(0, 0) + sx * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + sx * (corner(1, 1) - corner(1, 0))
    return np.float32(1.5) * (top + sy * (bottom - top))


def sparkles(images: Array, amount: float, rngs: Generators) -> Array:
    """Five white sparkles with 50 to 199 rays each."""
    height, width = images.shape[1:3]
    radius = amount * 0.1 * min(height, width)
    out = []
    for image, rng in zip(images, rngs, strict=True):
        for _ in range(5):
            centre = (rng.uniform(0, height), rng.uniform(0, width))
            light = _sparkle(rng, height, width, centre, radius, 1.0, shortest=1.0)
            image = image + light * (255 - image)
        out.append(image)
    return np.stack(out)


def inverse_sparkles(images: Array, amount: float, rngs: Generators) -> Array:
    """White everywhere but in one sparkle."""
    height, width = images.shape[1:3]
    radius, exponent = 0.25 * min(height, width), 65 * amount / 50
    views = []
    for rng in rngs:
        centre = (rng.uniform(0.25, 0.75) * height, rng.uniform(0.25, 0.75) * width)
        views.append(_sparkle(rng, height, width, centre, radius, exponent))
    return 255 + np.stack(views) * (images - 255)


def _sparkle(
    rng: np.random.Generator,
    height: int,
    width: int,
    centre: tuple[float, float],
    radius: float,
    exponent: float,
    shortest: float = -math.inf,
) -> Array:
    """Brightness (H, W, 1) in [0, 1] of rays of random length around a centre."""
    count = int(rng.integers(50, 200))
    lengths = np.maximum(shortest, radius + 0.25 * radius * rng.standard_normal(count))
    rows, columns = (axis[0] - c for axis, c in zip(pixel_grid(height, width), centre, strict=True))
    place = (np.arctan2(columns, rows) + math.pi) / (2 * math.pi) * count
    ray = place.astype(int)
    between = place - ray
    length = lengths[ray % count] * (1 - between) + lengths[(ray + 1) % count] * between
    glow = (length**2 / (rows**2 + columns**2 + 1e-4)) ** exponent
    light = np.clip((1 - (between - 0.5) ** 2) * glow, 0, 1)
    return light.astype(np.float32)[..., None]


def caustic_refraction(images: Array, amount: float, rngs: Generators) -> Array:
    """Seen through rippled water: refracted by the slope of a caustic pattern, and lit by it."""
    height, width = images.shape[1:3]
    side = min(height, width)
    pattern = np.stack([_caustic(rng, height, width, side) for rng in rngs]).astype(np.float32)
    padded = np.pad(smoothed(pattern, 1.0, 4.0), ((0, 0), (1, 1), (1, 1)))
    down = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
    right = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    bend = _refraction(np.hypot(down, right)) * np.float32(amount * 0.5 * side)
    rows, columns = pixel_grid(height, width)
    seen = sampled(images, rows + bend * down, columns + bend * right, "edge")
    return seen + np.float32(255 * 2 * amount) * (down - right)[..., None]


def _refraction(slope: Array) -> Array:
    """Sideways shift per unit of slope, of light entering a medium of refractive index 4."""
    sine = slope / np.sqrt(1 + slope**2)
    shift = np.sin(np.arcsin(sine) - np.arcsin(sine / 4))
    # the released code leaves rays within 2.6 degrees of the normal unbent
    bent = np.sqrt(1 - sine**2) < 1 - 1e-3
    return np.where(bent, shift / np.maximum(slope, 1e-9), 0).astype(np.float32)


def _caustic(rng: np.random.Generator, height: int, width: int, side: int) -> Array:
    """A caustic light pattern (H, W) in [0, 1]."""
    time, size = rng.uniform(0.5, 2), rng.uniform(0.75, 1.25) * side
    y, x = (
        axis[0].astype(np.float64) / size % 1 * 2 * math.pi - 250
        for axis in pixel_grid(height, width)
    )
    i, j, total = y, x, np.ones((height, width))
    for step in range(1, 6):
        t = time * (1 - 3.5 / step)
        i, j = (
            y + np.cos(t - i) + np.sin(t + j),
            x + np.sin(t - j) + np.cos(t + i),
        )
        total += 1 / np.hypot(y * 0.005 / np.sin(i + t), x * 0.005 / np.cos(j + t))
    return np.clip(np.abs(1.17 - (total / 5) ** 1.4) ** 8, 0, 1)


KERNELS = {
    "blue_noise_sample": blue_noise_sample,
    "brownish_noise": brownish_noise,
    "caustic_refraction": caustic_refraction,
    "checkerboard_cutout": checkerboard_cutout,
    "cocentric_sine_waves": cocentric_sine_waves,
    "inverse_sparkles": inverse_sparkles,
    "perlin_noise": perlin_noise,
    "plasma_noise": plasma_noise,
    "single_frequency_greyscale": single_frequency_greyscale,
    "sparkles": sparkles,
}
