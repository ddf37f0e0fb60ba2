"""Shared image arithmetic: filtering, resampling and fractal maps on float32 (N, H, W, C).

Nothing here mixes images of a batch, and no result depends on the size of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sparseopt.robustness._door import Array
from sparseopt.robustness._extras import need

Generators = Sequence[np.random.Generator]

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601


def opencv() -> Any:
    """The OpenCV module."""
    return need("cv2", "this image corruption")


def stacked(draw: Any, rngs: Generators) -> Array:
    """`draw(rng)` for every image of the batch, stacked on the first axis."""
    return np.stack([draw(rng) for rng in rngs]).astype(np.float32, copy=False)


def normal(rngs: Generators, shape: tuple[int, ...]) -> Array:
    """Standard normal noise (N, *shape), each image from its own generator."""
    noise = np.empty((len(rngs), *shape), dtype=np.float32)
    for rng, out in zip(rngs, noise, strict=True):
        rng.standard_normal(out=out, dtype=np.float32)
    return noise


def uniform(rngs: Generators, shape: tuple[int, ...], low: float, high: float) -> Array:
    """Uniform noise (N, *shape) in [low, high), each image from its own generator."""
    noise = np.empty((len(rngs), *shape), dtype=np.float32)
    for rng, out in zip(rngs, noise, strict=True):
        rng.random(out=out, dtype=np.float32)
    return noise * np.float32(high - low) + np.float32(low)


def gray(images: Array) -> Array:
    """Luminance (N, H, W, 1) of RGB or gray images."""
    return images if images.shape[-1] == 1 else (images @ LUMINANCE)[..., None]


def over_channels(function: Any, images: Array) -> Array:
    """`np.maximum` or `np.minimum` over the channels: (N, H, W). Faster than a reduction."""
    return reduce(function, (images[..., channel] for channel in range(images.shape[-1])))


def tint(color: tuple[float, float, float], channels: int) -> Array:
    """An RGB colour for images of 3 channels, its luminance for gray ones."""
    rgb = np.asarray(color, dtype=np.float32)
    return rgb if channels == 3 else (rgb @ LUMINANCE)[None]


def filtered(images: Array, kernel: Array, border: str, anchor: tuple[int, int]) -> Array:
    """Every image (N, H, W, C) correlated with one kernel, `anchor` = (column, row)."""
    cv2 = opencv()
    flag = {"replicate": cv2.BORDER_REPLICATE, "reflect": cv2.BORDER_REFLECT_101}[border]
    kernel = kernel.astype(np.float32)
    out = np.empty_like(images)
    for image, target in zip(images, out, strict=True):
        result = cv2.filter2D(image, -1, kernel, anchor=anchor, borderType=flag)
        target[...] = result.reshape(target.shape)
    return out


def gaussian_blurred(images: Array, sigma: float, truncate: float = 4.0) -> Array:
    """Gaussian blur of each channel with edges replicated, cut at `truncate` sigmas."""
    radius = int(truncate * sigma + 0.5)
    if radius == 0:
        return images.copy()
    cv2 = opencv()
    size = (2 * radius + 1, 2 * radius + 1)
    out = np.empty_like(images)
    for image, target in zip(images, out, strict=True):
        blurred = cv2.GaussianBlur(image, size, sigma, borderType=cv2.BORDER_REPLICATE)
        target[...] = blurred.reshape(target.shape)
    return out


@lru_cache(maxsize=64)
def gaussian_matrix(side: int, sigma: float, truncate: float) -> Array:
    """The side x side matrix of a Gaussian filter with mirrored edges (d c b a | a b c d)."""
    radius = int(truncate * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / max(sigma, 1e-12)) ** 2)
    source = (np.arange(side)[:, None] + offsets) % (2 * side)
    source = np.where(source < side, source, 2 * side - 1 - source)
    matrix = np.zeros((side, side))
    np.add.at(matrix, (np.arange(side)[:, None], source), weights / weights.sum())
    return matrix.astype(np.float32)


def smoothed(field: Array, sigma: float, truncate: float) -> Array:
    """Gaussian filter of maps (N, H, W) with mirrored edges, for any sigma."""
    if sigma <= 0:
        return field
    rows = gaussian_matrix(field.shape[1], sigma, truncate)
    columns = gaussian_matrix(field.shape[2], sigma, truncate)
    return np.matmul(np.matmul(rows, field), columns.T)


def disk_kernel(radius: float, alias: float) -> Array:
    """A filled circle, softened by a small Gaussian: the kernel of defocus blur."""
    cv2 = opencv()
    reach, size = (8, 3) if radius <= 8 else (math.ceil(radius), 5)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), (size, size), alias)
    used = np.flatnonzero(kernel.sum(axis=0) > 0)
    return kernel[used[0] : used[-1] + 1, used[0] : used[-1] + 1]


def motion_kernel(radius: float, sigma: float, angle: float) -> tuple[Array, tuple[int, int]]:
    """One-sided Gaussian streak at `angle` degrees, as ImageMagick draws it, and its anchor."""
    taps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    radians = math.radians(angle)
    columns = np.ceil(taps * math.cos(radians) - 0.5).astype(int)
    rows = np.ceil(taps * math.sin(radians) - 0.5).astype(int)
    left, top = min(columns.min(), 0), min(rows.min(), 0)
    kernel = np.zeros((rows.max() - top + 1, columns.max() - left + 1))
    np.add.at(kernel, (rows - top, columns - left), weights / weights.sum())
    return kernel, (-int(left), -int(top))


def motion_blurred(images: Array, radius: float, sigma: float, angles: Sequence[float]) -> Array:
    """Every image blurred along its own angle (degrees), edges replicated."""
    out = np.empty_like(images)
    for i, angle in enumerate(angles):
        kernel, anchor = motion_kernel(radius, sigma, angle)
        out[i : i + 1] = filtered(images[i : i + 1], kernel, "replicate", anchor)
    return out


def sampled(images: Array, rows: Array, columns: Array, border: str = "mirror") -> Array:
    """Bilinear values of the images (N, H, W, C) at pixel coordinates (N or 1, H', W').

    `border`: "mirror" (c b | a b c), "reflect" (b a | a b c), "edge" or "zeros".
    """
    mode, corners = _BORDERS[border]
    height, width = images.shape[1:3]
    grid = np.stack([_unit(columns, width, corners), _unit(rows, height, corners)], axis=-1)
    out = F.grid_sample(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(grid).expand(len(images), -1, -1, -1),
        padding_mode=mode,
        align_corners=corners,
    )
    return out.permute(0, 2, 3, 1).contiguous().numpy()


_BORDERS = {
    "mirror": ("reflection", True),
    "reflect": ("reflection", False),
    "edge": ("border", True),
    "zeros": ("zeros", True),
}


def _unit(position: Array, side: int, corners: bool) -> Array:
    """Pixel positions in grid_sample's units of -1..1."""
    if corners:
        return (position * (2 / (side - 1)) - 1).astype(np.float32)
    return ((2 * position + 1) / side - 1).astype(np.float32)


def pixel_grid(height: int, width: int) -> tuple[Array, Array]:
    """Row and column coordinates (1, H, W) of all pixels, float32."""
    rows, columns = np.indices((1, height, width), dtype=np.float32)[1:]
    return rows, columns


@lru_cache(maxsize=512)
def zoom_coordinates(side: int, factor: float) -> Array:
    """Where the pixels of a centre crop, enlarged `factor` times and trimmed, come from."""
    crop = math.ceil(side / factor)
    enlarged = max(round(crop * factor), side)
    trim = (enlarged - side) // 2
    step = (crop - 1) / (enlarged - 1)
    return (np.arange(side) + trim) * step + (side - crop) // 2


@lru_cache(maxsize=128)
def _zoom_grid(height: int, width: int, factor: float) -> torch.Tensor:
    """The coordinates of one enlargement for grid_sample, (1, H, W, 2)."""
    rows = torch.from_numpy(_unit(zoom_coordinates(height, factor), height, True))
    columns = torch.from_numpy(_unit(zoom_coordinates(width, factor), width, True))
    down, right = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([right, down], dim=-1)[None]


def zoomed_sum(images: Array, factors: Sequence[float]) -> Array:
    """The sum of the images' enlargements about the centre, each of the same size.

    Bilinear, the corners of crop and result aligned. Shapes (N, H, W, C).
    """
    planes = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    total = torch.zeros_like(planes)
    for factor in factors:
        grid = _zoom_grid(*images.shape[1:3], factor).expand(len(images), -1, -1, -1)
        total += F.grid_sample(planes, grid, padding_mode="border", align_corners=True)
    return total.permute(0, 2, 3, 1).contiguous().numpy()


def zoomed(images: Array, factor: float) -> Array:
    """Enlarged about the centre, same size; see `zoomed_sum`."""
    return zoomed_sum(images, [factor])


def plasma(side: int, decay: float, rngs: Generators) -> Array:
    """Diamond-square fractal maps (N, side, side) in [0, 1]; `side` a power of two."""
    maps = np.zeros((len(rngs), side, side), dtype=np.float32)
    step, reach = side, 100.0
    while step >= 2:
        _squares(maps, step, reach, rngs)
        _diamonds(maps, step, reach, rngs)
        step, reach = step // 2, reach / decay
    maps -= maps.min(axis=(1, 2), keepdims=True)
    return maps / maps.max(axis=(1, 2), keepdims=True)


def _jittered(total: Array, reach: float, rngs: Generators) -> Array:
    # the released generator multiplies by `reach` twice, so jitter falls with its square
    return total / 4 + uniform(rngs, total.shape[1:], -(reach**2), reach**2)


def _squares(maps: Array, step: int, reach: float, rngs: Generators) -> None:
    """Centres of squares become the mean of their four corners plus jitter."""
    corners = maps[:, ::step, ::step]
    total = corners + np.roll(corners, -1, axis=1)
    total = total + np.roll(total, -1, axis=2)
    maps[:, step // 2 :: step, step // 2 :: step] = _jittered(total, reach, rngs)


def _diamonds(maps: Array, step: int, reach: float, rngs: Generators) -> None:
    """Middles of edges become the mean of their four neighbours plus jitter."""
    half = step // 2
    centres, corners = maps[:, half::step, half::step], maps[:, ::step, ::step]
    across = centres + np.roll(centres, 1, axis=1) + corners + np.roll(corners, -1, axis=2)
    down = centres + np.roll(centres, 1, axis=2) + corners + np.roll(corners, -1, axis=1)
    maps[:, ::step, half::step] = _jittered(across, reach, rngs)
    maps[:, half::step, ::step] = _jittered(down, reach, rngs)
