"""The eleven corruptions of ImageNet-3DCC: by themselves, from a depth or shading map, by codec.

`color_quant`, `iso_noise` and `low_light` need nothing and go through `corrupt`; `bit_error` and
`h265_abr` need ffmpeg and go through `corrupt` too. The other six are functions here that take a
map. Source: Kar et al., "3D Common Corruptions and Data Augmentation" (2022), re-implemented from
the published constants. The original renders depth-based camera moves with a neural network; here
pixels are moved by their parallax, which is an approximation of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from sparseopt.robustness import _noise
from sparseopt.robustness._door import (
    Array,
    Images,
    as_batch,
    check_seed,
    check_severity,
    check_side,
    image_indices,
    like,
)
from sparseopt.robustness._resample import (
    Generators,
    gaussian_blurred,
    pixel_grid,
    sampled,
)
from sparseopt.robustness._streams import generator, truncated

THREE_D: tuple[str, ...] = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "flash",
    "color_quant",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
    "iso_noise",
    "bit_error",
    "h265_abr",
)
"""Names of ImageNet-3DCC (Kar et al., 2022), in the paper's order."""

MAP_TAKING: dict[str, str] = {
    "near_focus": "depth",
    "far_focus": "depth",
    "fog_3d": "depth",
    "flash": "shading",
    "xy_motion_blur": "depth",
    "z_motion_blur": "depth",
}
"""Corruptions that need a map, and which: `robustness.fog_3d(images, severity, depth)`."""

FOG_DENSITY = (4, 8, 12, 16, 20)
FLASH_DISTANCE = (2.4, 1.4, 0.9, 0.6, 0.4)
XY_FRAMES = (20, 30, 40, 50, 60)
Z_FRAMES = (20, 25, 30, 35, 38)
_ALL_FRAMES = 60
_LAYERS = 8


def color_quant(images: Array, bits: int, rngs: Generators) -> Array:
    """The upper `bits` bits of every value."""
    step = 2 ** (8 - bits)
    return np.floor(images / step) * step


def iso_noise(images: Array, sigma: float, rngs: Generators) -> Array:
    """Photon noise of 25 photons at full brightness, then Gaussian sensor noise."""
    photons = np.clip(_noise.shot_noise(images, 25, rngs), 0, 255)
    return _noise.gaussian_noise(photons, 0.7 * sigma, rngs)


def low_light(images: Array, factor: float, rngs: Generators) -> Array:
    """Stretched to the full range, squared, darkened, then sensor noise."""
    low = images.min(axis=(1, 2, 3), keepdims=True)
    span = images.max(axis=(1, 2, 3), keepdims=True) - low
    dark = ((images - low) / np.maximum(span, 1)) ** 2 * np.float32(255 * factor)
    photons = np.clip(_noise.shot_noise(dark, 120, rngs), 0, 255)
    return _noise.gaussian_noise(photons, 0.1 * 0.18, rngs)


CONSTANTS: dict[str, tuple[float, ...]] = {
    "color_quant": (5, 4, 3, 2, 1),
    "iso_noise": (0.08, 0.12, 0.18, 0.26, 0.38),
    "low_light": (0.6, 0.5, 0.4, 0.3, 0.2),
}
KERNELS = {"color_quant": color_quant, "iso_noise": iso_noise, "low_light": low_light}


def fog_3d(images: Images, severity: int, depth: Any) -> Images:
    """Fog that thickens with distance, in the colour of the image's mean.

    Args:
        images: uint8 (N, H, W, C) or (N, H, W), numpy or torch.
        severity: 1..5.
        depth: distance >= 0, (N, H, W) or (H, W); the original's lies in 0..0.5 (see
            `depth_from_disparity`).

    Returns:
        Images of the same type and shape.

    Raises:
        TypeError: images are not uint8 arrays.
        ValueError: severity outside 1..5, or a map that does not fit the images, is negative or
            not finite.

    Example:
        >>> import numpy as np
        >>> images = np.zeros((1, 4, 4, 3), np.uint8)
        >>> images[0, :2] = 200
        >>> fog_3d(images, 5, np.full((4, 4), 9.0))[0, 0, 0].tolist()    # far away: only fog
        [100, 100, 100]
    """
    batch, maps = _with_map(images, severity, depth, "depth")
    density = FOG_DENSITY[severity - 1]
    clear = np.exp(-density * maps)[..., None]
    air = batch.mean(axis=(1, 2), keepdims=True)
    return like(truncated(batch * clear + air * (1 - clear)), images)


def flash(images: Images, severity: int, shading: Any) -> Images:
    """Light from the camera: brighter where the shading map is.

    Args:
        images, severity: as for `fog_3d`.
        shading: >= 0, (N, H, W) or (H, W), 1 where a surface faces the camera.

    Returns:
        Images of the same type and shape.

    Raises:
        TypeError, ValueError: as `fog_3d`.

    Example:
        >>> import numpy as np
        >>> flash(np.full((1, 4, 4, 3), 60, np.uint8), 4, np.full((4, 4), 0.6))[0, 0, 0].tolist()
        [120, 120, 120]
    """
    batch, maps = _with_map(images, severity, shading, "shading")
    return like(truncated(batch + batch * maps[..., None] / FLASH_DISTANCE[severity - 1]), images)


def near_focus(images: Images, severity: int, depth: Any) -> Images:
    """The nearest eighth of the depths in focus, the rest blurred.

    Arguments, result and errors as for `fog_3d`.
    """
    batch, maps = _with_map(images, severity, depth, "depth")
    return like(truncated(_focused(batch, maps, severity + 2, 0)), images)


def far_focus(images: Images, severity: int, depth: Any) -> Images:
    """The farthest eighth of the depths in focus, the rest blurred.

    Arguments, result and errors as for `fog_3d`.
    """
    batch, maps = _with_map(images, severity, depth, "depth")
    return like(truncated(_focused(batch, maps, severity + 0.5, _LAYERS - 1)), images)


def xy_motion_blur(
    images: Images, severity: int, depth: Any, seed: int = 0, index: int | Sequence[int] = 0
) -> Images:
    """A sideways move of the camera: near things move farther.

    Args:
        images, severity, depth: as for `fog_3d`.
        seed, index: as for `corrupt`.

    Returns:
        Images of the same type and shape.

    Raises:
        TypeError, ValueError: as `fog_3d` and `corrupt`.
    """
    batch, maps = _with_map(images, severity, depth, "depth")
    height, width = batch.shape[1:3]
    unit = min(height, width) / 512
    nearness = _nearness(maps)

    def move(rng: np.random.Generator, fraction: float, near: Array) -> tuple[Array, Array]:
        right = rng.choice((-1, 1)) * rng.uniform(50, 75) * unit
        down = rng.uniform(-75, 75) * unit
        return near * fraction * down, near * fraction * right

    out = _moved(batch, nearness, "xy_motion_blur", severity, XY_FRAMES, move, seed, index)
    return like(truncated(out), images)


def z_motion_blur(
    images: Images, severity: int, depth: Any, seed: int = 0, index: int | Sequence[int] = 0
) -> Images:
    """A forward move of the camera: near things grow faster.

    Arguments, result and errors as for `xy_motion_blur`.
    """
    batch, maps = _with_map(images, severity, depth, "depth")
    height, width = batch.shape[1:3]
    rows, columns = (
        axis[0] - (n - 1) / 2
        for axis, n in zip(pixel_grid(height, width), (height, width), strict=True)
    )
    nearness = _nearness(maps)

    def move(rng: np.random.Generator, fraction: float, near: Array) -> tuple[Array, Array]:
        inward = near * fraction * (1 - rng.uniform(0.5, 0.6))
        return -rows * inward, -columns * inward

    out = _moved(batch, nearness, "z_motion_blur", severity, Z_FRAMES, move, seed, index)
    return like(truncated(out), images)


def depth_from_disparity(disparity: Any, unit: float = 512.0, farthest: float = 0.5) -> Array:
    """Depth in the original's units, min(unit / disparity, farthest), from a disparity map.

    Args:
        disparity: any shape, numpy or torch; larger is nearer: what MiDaS predicts, or stereo.
            Values that are not finite or not positive count as farthest.
        unit: the original divides predictions by 512.
        farthest: depths are cut here.

    Returns:
        float32 of the same shape, numpy.

    Example:
        >>> depth_from_disparity([4096.0, 256.0, 0.0]).tolist()
        [0.125, 0.5, 0.5]
    """
    values = np.asarray(_numpy(disparity), dtype=np.float64)
    valid = np.isfinite(values) & (values > 0)
    depth = np.where(valid, unit / np.where(valid, values, 1), np.inf)
    return np.minimum(depth, farthest).astype(np.float32)


def _with_map(images: Images, severity: int, values: Any, name: str) -> tuple[Array, Array]:
    """The batch as float32 and its map as float32 (N, H, W); checks both."""
    check_severity(severity)
    batch = as_batch(images).astype(np.float32)
    maps = np.asarray(_numpy(values), dtype=np.float32)
    if maps.shape == batch.shape[1:3]:
        maps = np.broadcast_to(maps, batch.shape[:3])
    if maps.shape != batch.shape[:3]:
        raise ValueError(
            f"{name} of shape {maps.shape} does not fit images of {batch.shape[1:3]}; "
            f"give {batch.shape[:3]} or {batch.shape[1:3]}"
        )
    if not np.isfinite(maps).all() or (maps < 0).any():
        raise ValueError(f"{name} must be finite and >= 0; fill holes in the map first")
    return batch, maps


def _numpy(values: Any) -> Any:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else values


def _focused(batch: Array, depth: Array, aperture: float, focus: int) -> Array:
    """Blurred by depth: eight blurred copies, blended linearly between their depths."""
    out = np.empty_like(batch)
    for i, (image, one) in enumerate(zip(batch, depth, strict=True)):
        levels = np.maximum(np.quantile(one, np.linspace(0, 1, _LAYERS)), 1e-6)
        sigmas = aperture * np.abs(levels - levels[focus]) / levels
        copies = [gaussian_blurred(image[None], sigma, truncate=3.0)[0] for sigma in sigmas]
        place = np.interp(one, levels, np.arange(_LAYERS))
        weights = np.maximum(0, 1 - np.abs(place - np.arange(_LAYERS)[:, None, None]))
        out[i] = sum(w[..., None] * copy for w, copy in zip(weights, copies, strict=True))
    return out


def _nearness(depth: Array) -> Array:
    """Parallax (N, H, W) relative to the nearest point, in 0..1: it falls with depth."""
    nearest = np.maximum(depth.min(axis=(1, 2), keepdims=True), 1e-3)
    return (nearest / np.maximum(depth, nearest)).astype(np.float32)


Move = Callable[[np.random.Generator, float, Array], tuple[Array, Array]]


def _moved(
    batch: Array,
    nearness: Array,
    name: str,
    severity: int,
    frames: Sequence[int],
    move: Move,
    seed: int,
    index: int | Sequence[int],
) -> Array:
    """The mean of the first frames of a camera move of 60 frames."""
    check_side(batch, 2, name)
    seed = check_seed(seed)
    rows, columns = pixel_grid(*batch.shape[1:3])
    count, out = frames[severity - 1], np.empty_like(batch)
    for i, place in enumerate(image_indices(index, len(batch))):
        total = np.zeros_like(batch[i : i + 1])
        for frame in range(count):
            # the same generator for every frame and severity: a severity is a longer exposure
            rng = generator(seed, name, 0, place)
            down, right = move(rng, frame / (_ALL_FRAMES - 1), nearness[i])
            total += sampled(batch[i : i + 1], rows + down, columns + right, "edge")
        out[i] = total[0] / count
    return out
