"""Weather: snow, frost, fog, spatter, brightness. Images float32 (N, H, W, C) in 0..255."""

from __future__ import annotations

import warnings
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._extras import need
from sparseopt.robustness._resample import (
    Generators,
    gaussian_blurred,
    gray,
    motion_blurred,
    normal,
    opencv,
    over_channels,
    plasma,
    tint,
    zoomed,
)

PALE_TURQUOISE, BROWN = (175, 238, 238), (63, 42, 20)


def brightness(images: Array, amount: float, rngs: Generators) -> Array:
    """HSV value raised by `amount` of the full range; hue and saturation stay."""
    value = over_channels(np.maximum, images)
    brighter = np.minimum(value + np.float32(255 * amount), np.float32(255))
    factor = brighter / np.maximum(value, 1)
    out = np.empty_like(images)
    for channel in range(images.shape[-1]):
        # black has no hue and no saturation: it becomes gray
        out[..., channel] = np.where(value > 0, images[..., channel] * factor, brighter)
    return out


def fog(images: Array, constants: tuple[float, float], rngs: Generators) -> Array:
    """A fractal map added with the given strength, then scaled back to the image's maximum."""
    strength, decay = constants
    height, width = images.shape[1:3]
    side = 1 << (max(height, width, 2) - 1).bit_length()
    haze = plasma(side, decay, rngs)[:, :height, :width, None]
    top = images.max(axis=(1, 2, 3), keepdims=True)
    foggy = images + np.float32(255 * strength) * haze
    return foggy * (top / (top + np.float32(255 * strength)))


def snow(images: Array, constants: tuple[float, ...], rngs: Generators) -> Array:
    """A whitened image under two layers of motion-blurred flakes, one turned by 180 degrees."""
    mean, spread, zoom, threshold, radius, sigma, keep = constants
    layer = mean + spread * normal(rngs, images.shape[1:3])
    layer = zoomed(layer.astype(np.float32)[..., None], zoom)
    layer[layer < threshold] = 0
    layer = np.floor(np.clip(layer, 0, 1) * 255)  # the released code goes through 8 bits
    layer = motion_blurred(layer, radius, sigma, [rng.uniform(-135, -45) for rng in rngs])
    white = np.maximum(images, gray(images) * 1.5 + 127.5)
    return keep * images + np.float32(1 - keep) * white + layer + layer[:, ::-1, ::-1]


def frost(images: Array, constants: tuple[float, float, float], rngs: Generators) -> Array:
    """The image under a random crop of one of five photographs of frost."""
    keep, weight, scale = constants
    height, width, channels = images.shape[1:]
    crops = [_frost_crop(rng, scale, height, width) for rng in rngs]
    ice = np.stack(crops).astype(np.float32)
    ice = ice if channels == 3 else gray(ice)
    return np.float32(keep) * images + np.float32(weight) * ice


def _frost_crop(rng: np.random.Generator, scale: float, height: int, width: int) -> Array:
    texture = frost_texture(int(rng.integers(5)), scale, height, width)
    top = rng.integers(texture.shape[0] - height + 1)
    left = rng.integers(texture.shape[1] - width + 1)
    return texture[top : top + height, left : left + width]


@lru_cache(maxsize=64)
def frost_texture(number: int, scale: float, height: int, width: int) -> Array:
    """Texture 0..4 as uint8 RGB, shrunk by `scale`, at least height x width."""
    texture = _frost_photograph(number)
    cover = max(scale, (height + 1) / texture.shape[0], (width + 1) / texture.shape[1])
    if cover == 1:
        return texture
    return opencv().resize(texture, (0, 0), fx=cover, fy=cover)


@lru_cache(maxsize=5)
def _frost_photograph(number: int) -> Array:
    name = ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg")[number]
    # found without importing the package, which would load numba
    package = find_spec("imagecorruptions")
    folders = (package.submodule_search_locations if package else None) or []
    for path in (Path(folder, "frost", name) for folder in folders):
        if path.exists():
            with path.open("rb") as file:
                return np.asarray(need("PIL.Image", "frost").open(file).convert("RGB"))
    return _procedural_frost(number)


def _procedural_frost(number: int) -> Array:
    """A stand-in texture of bright needles; figures differ from those with the photographs."""
    warnings.warn(
        "the photographs of frost are missing, a procedural texture is used and the figures "
        "differ from published ones: pip install sparseopt[robustness]",
        stacklevel=2,
    )
    rng = np.random.default_rng(number)
    haze = plasma(1024, 1.7, [rng])[0, :600, :900, None]
    needles = motion_blurred((normal([rng], (600, 900)) > 2.3)[..., None] * 255.0, 20, 9, [30.0])
    shade = 90 * haze + 3 * needles[0] + np.array([60, 75, 90])
    return np.clip(shade, 0, 255).astype(np.uint8)


def spatter(images: Array, constants: tuple[float, ...], rngs: Generators) -> Array:
    """Drops of water (severities 1 to 3) or mud (4 and 5) on the lens."""
    mean, spread, sigma, threshold, intensity, is_mud = constants
    layer = mean + spread * normal(rngs, images.shape[1:3])
    layer = gaussian_blurred(layer.astype(np.float32)[..., None], sigma)
    layer[layer < threshold] = 0
    if is_mud:
        return _mud(images, layer, threshold, intensity)
    drops = np.stack([_drops(one[..., 0]) for one in layer])[..., None]
    return images + np.float32(intensity) * drops * tint(PALE_TURQUOISE, images.shape[-1])


def _mud(images: Array, layer: Array, threshold: float, sigma: float) -> Array:
    mud = gaussian_blurred((layer > threshold).astype(np.float32), sigma)
    mud[mud < 0.8] = 0
    return images * (1 - mud) + mud * tint(BROWN, images.shape[-1])


def _drops(layer: Array) -> Array:
    """Opacity (H, W) in [0, 1] of drops: rims from the distance to the edges of the layer."""
    cv2 = opencv()
    liquid = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    rims = cv2.distanceTransform(255 - cv2.Canny(liquid, 50, 150), cv2.DIST_L2, 5)
    rims = cv2.blur(np.minimum(rims, 20), (3, 3)).astype(np.uint8)
    relief = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]], dtype=np.float32)
    rims = cv2.filter2D(cv2.equalizeHist(rims), cv2.CV_8U, relief)
    opacity = liquid * cv2.blur(rims, (3, 3)).astype(np.float32)
    return opacity / max(float(opacity.max()), 1.0)
