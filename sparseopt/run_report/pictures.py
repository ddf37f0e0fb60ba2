"""Small images inside the page: shares as strength of one colour, in a PNG written here.

The colour is there by day and by night; what lies behind it is the page.
"""

from __future__ import annotations

import base64
import struct
import zlib
from xml.etree.ElementTree import Element

import numpy as np
import torch
from torch import Tensor

from ..analysis.filters import filters
from ..layers import Layer
from .charts import dots, percent
from .elements import figure, tag

__all__ = ["as_image", "layer_picture", "scale"]

ROWS, COLUMNS, MOST_FILTERS = 48, 96, 256
COLOUR = bytes((62, 137, 214))


def as_image(shares: Tensor, highest: float = 1.0) -> str:
    """A matrix of values as a ``data:`` address: a pixel each, colour by the square root.

    The root keeps layers of one percent apart from empty ones.

    Args:
        shares: (rows, columns), from 0 to ``highest``.
        highest: The value of the full colour, above 0.
    """
    strength = (shares.double() / highest).clamp(0.0, 1.0).nan_to_num().sqrt()
    pixels = (255 * strength).round().to(torch.uint8).cpu().numpy()
    encoded = base64.b64encode(png(pixels)).decode("ascii")
    return f"data:image/png;base64,{encoded}"


def png(pixels: np.ndarray) -> bytes:
    """Opacities (rows, columns), uint8, as a PNG of one colour (PNG specification, section 11)."""
    height, width = pixels.shape
    unfiltered = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),  # 3: by palette
        (b"PLTE", COLOUR * 256),
        (b"tRNS", bytes(range(256))),
        (b"IDAT", zlib.compress(unfiltered.tobytes(), 9)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, *zip(*parts, strict=True)))


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def scale(highest: float) -> Element:
    """The key to the colours: from nothing to the highest value, evenly."""
    strip = as_image(torch.linspace(0.0, highest, 64)[None], highest)
    alt = f"colour scale from 0 % to {percent(highest)}"
    return tag("span", "0 %", tag("img", src=strip, alt=alt, class_="strip"), percent(highest))


def layer_picture(number: int, layer: Layer) -> Element:
    """Where a layer's active weights lie, and what each of its filters has (Figures 16 and 17).

    Args:
        number: The layer's row in the table.
        layer: Whole, not a shard.
    """
    active = filters(layer.mask.to(torch.float32))
    kernel = layer.numel // active.kernel_nonzero.numel()
    image = as_image(blocks(active.kernel_nonzero.float() / kernel))
    magnitude = filters(layer.weight.float()).filter_magnitude
    rows, columns = layer.shape[:2]
    alt = f"{layer.name}: its active weights, {rows} outputs down, {columns} inputs across"
    return figure(
        f"{number}. {layer.name}",
        tag("p", f"{shape_of(layer)}, density {percent(layer.density)}", class_="axis"),
        tag("img", src=image, alt=alt, class_="map"),
        per_filter(layer.name, "active weights per filter", active.filter_nonzero),
        per_filter(layer.name, "sum of |w| per filter", magnitude),
    )


def per_filter(name: str, what: str, values: Tensor) -> Element:
    """A dot per filter; means of neighbours where there are more than could be told apart."""
    flat, count = values.double().cpu(), len(values)
    below = "filter"
    if count > MOST_FILTERS:
        flat = torch.nn.functional.adaptive_avg_pool1d(flat[None], MOST_FILTERS)[0]
        below = f"filter (means of neighbours, {count:,} in all)"
    finite = flat[flat.isfinite()]
    extent = f"from {finite.min():.4g} to {finite.max():.4g}" if len(finite) else "none finite"
    return dots(f"{name}: {what}, {extent}", flat.tolist(), what, below, count)


def shape_of(layer: Layer) -> str:
    return " × ".join(map(str, layer.shape))


def blocks(values: Tensor) -> Tensor:
    """Means of blocks, so that at most ``ROWS`` x ``COLUMNS`` are left."""
    size = (min(ROWS, values.shape[0]), min(COLUMNS, values.shape[1]))
    return torch.nn.functional.adaptive_avg_pool2d(values.cpu()[None], size)[0]
