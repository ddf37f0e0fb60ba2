"""Digital: contrast, saturate, pixelate, JPEG, elastic. Images float32 (N, H, W, C) in 0..255."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._resample import (
    Generators,
    gray,
    opencv,
    over_channels,
    pixel_grid,
    sampled,
    smoothed,
    uniform,
)


def contrast(images: Array, factor: float, rngs: Generators) -> Array:
    """Values drawn together towards the mean of their channel."""
    mean = images.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    out = images * np.float32(factor)
    out += mean * np.float32(1 - factor)
    return out


def saturate(images: Array, constants: tuple[float, float], rngs: Generators) -> Array:
    """HSV saturation times `factor` plus `shift`, clipped; a gray image counts as hue red.

    A gray image has no saturation to scale, so only a shift changes it (severities 4 and 5).
    """
    factor, shift = (np.float32(c) for c in constants)
    value = over_channels(np.maximum, images)
    span = value - over_channels(np.minimum, images)
    wanted = np.clip(span / np.maximum(value, 1) * factor + shift, 0, 1) * value
    # at fixed hue and value every channel's distance from the value grows with saturation
    share, colorless = wanted / np.maximum(span, 1), span == 0
    out = np.empty((*images.shape[:3], 3), dtype=np.float32)
    for channel in range(3):
        own = images[..., min(channel, images.shape[-1] - 1)]
        red = wanted if channel else np.float32(0)
        out[..., channel] = value - np.where(colorless, red, (value - own) * share)
    return out if images.shape[-1] == 3 else gray(out)


def pixelate(images: Array, factor: float, rngs: Generators) -> Array:
    """Shrunk and enlarged again with a box filter."""
    height, width = images.shape[1:3]
    small = box_resized(images, int(height * factor), int(width * factor))
    # enlarging with a box repeats pixels
    rows, columns = (box_matrix(a, b).argmax(axis=1) for a, b in _sides(small, images))
    return small[:, rows][:, :, columns]


def _sides(source: Array, target: Array) -> list[tuple[int, int]]:
    return list(zip(source.shape[1:3], target.shape[1:3], strict=True))


def box_resized(images: Array, height: int, width: int) -> Array:
    """Resized as Pillow's BOX filter does it, rounding to 8 bits after each axis."""
    across = _along_columns(box_matrix(images.shape[2], width), images)
    across = np.floor(across + 0.5)
    flat = across.reshape(*across.shape[:2], -1)
    down = np.floor(np.matmul(box_matrix(images.shape[1], height), flat) + 0.5)
    return down.reshape(len(images), height, *across.shape[2:])


def _along_columns(matrix: Array, images: Array) -> Array:
    """`matrix` (W', W) applied along the width, as one product per image."""
    count, height, width, channels = images.shape
    columns = images.transpose(0, 2, 1, 3).reshape(count, width, height * channels)
    out = np.matmul(matrix, columns).reshape(count, -1, height, channels)
    return np.ascontiguousarray(out.transpose(0, 2, 1, 3))


@lru_cache(maxsize=64)
def box_matrix(side: int, new_side: int) -> Array:
    """Weights (new_side, side): every source pixel whose centre lies in the target's box."""
    scale = side / new_side
    reach = 0.5 * max(scale, 1.0)
    centre = (np.arange(new_side) + 0.5) * scale
    offset = (np.arange(side) + 0.5 - centre[:, None]) / max(scale, 1.0)
    first = np.floor(np.maximum(centre - reach + 0.5, 0))[:, None]
    inside = (offset > -0.5) & (offset <= 0.5) & (np.arange(side) >= first)
    return (inside / inside.sum(axis=1, keepdims=True)).astype(np.float32)


def jpeg_compression(images: Array, quality: int, rngs: Generators) -> Array:
    """Through a JPEG file of the given quality (OpenCV's, equal to Pillow's in every bit)."""
    out = np.empty_like(images)
    for image, target in zip(images.astype(np.uint8), out, strict=True):
        target[...] = _through_jpeg(image, quality)
    return out


def _through_jpeg(image: Array, quality: int) -> Array:
    cv2 = opencv()
    # OpenCV's channels are blue, green, red
    _, file = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if image.shape[-1] == 3:
        return cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1]
    return cv2.imdecode(file, cv2.IMREAD_GRAYSCALE)[..., None]


def elastic_transform(images: Array, constants: tuple[float, ...], rngs: Generators) -> Array:
    """A small random affine map, then smooth random displacements."""
    height, width = images.shape[1:3]
    unit = constants[3] * min(height, width)
    amplitude, sigma, shift = (c * unit for c in constants[:3])
    rows, columns = _affine_coordinates(height, width, shift, rngs)
    moved = sampled(images, rows, columns, "mirror")
    if amplitude == 0:
        return moved
    down = smoothed(uniform(rngs, (height, width), -1, 1), sigma, 3.0) * np.float32(amplitude)
    right = smoothed(uniform(rngs, (height, width), -1, 1), sigma, 3.0) * np.float32(amplitude)
    rows, columns = pixel_grid(height, width)
    return sampled(moved, rows + down, columns + right, "reflect")


def _affine_coordinates(
    height: int, width: int, shift: float, rngs: Generators
) -> tuple[Array, Array]:
    """Source rows and columns (N, H, W) of the map that moves three central points."""
    third = min(height, width) // 3
    x, y = width // 2, height // 2
    before = np.array([[x + third, y + third], [x + third, y - third], [x - third, y - third]])
    moves = np.stack([rng.uniform(-shift, shift, (3, 2)) for rng in rngs])
    ones = np.ones((len(rngs), 3, 1))
    after = np.concatenate([before + moves, ones], axis=-1)
    # a point (x, y, 1) of the result comes from (x, y, 1) @ inverse
    inverse = np.linalg.solve(after, np.broadcast_to(before.astype(float), moves.shape))
    rows, columns = pixel_grid(height, width)
    a, b, c = (inverse[:, i, :, None, None].astype(np.float32) for i in range(3))
    right, down = (columns * a[:, i] + rows * b[:, i] + c[:, i] for i in range(2))
    return down, right
