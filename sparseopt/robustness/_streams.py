"""Random numbers of one image, and batches worked in pieces that fit a core's cache."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from sparseopt.robustness._door import Array

VALUES_AT_ONCE = 1 << 18  # about 1 MB of float32


def generator(seed: int, name: str, severity: int, *place: int) -> np.random.Generator:
    """The random numbers of one image (or frame) under one corruption."""
    key = [seed, zlib.crc32(name.encode()), severity, *place]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))


def in_pieces(
    batch: Array,
    kernel: Callable[[Array, Sequence[np.random.Generator]], Array],
    generators: Sequence[np.random.Generator],
) -> Array:
    """Apply a kernel on float32 images in 0..255 to pieces of a uint8 batch."""
    out = np.empty_like(batch)
    size = max(1, VALUES_AT_ONCE // max(1, int(np.prod(batch.shape[1:]))))
    for start in range(0, len(batch), size):
        piece = slice(start, start + size)
        result = kernel(batch[piece].astype(np.float32), generators[piece])
        out[piece] = truncated(result)
    return out


def truncated(values: Array) -> Array:
    """Clipped to 0..255 and cut to whole grey levels, as the published sets are."""
    # 1e-3 keeps a value that should be a whole number from falling below it by rounding
    raised = values + np.float32(1e-3)
    return np.clip(raised, 0, 255, out=raised).astype(np.uint8)
