"""What comes in is checked here, once: images, names, severities, scales and image indices."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Images = Array | torch.Tensor

SEVERITIES = (1, 2, 3, 4, 5)


def nearest(name: object, known: Iterable[str]) -> str:
    """`'fogg' is not one of fog, …; nearest: fog`, for error messages."""
    names = list(known)
    close = difflib.get_close_matches(str(name).lower(), names, n=3, cutoff=0.5)
    hint = f"; nearest: {', '.join(close)}" if close else ""
    return f"{name!r} is not one of {', '.join(names)}{hint}"


def check_name(name: str, known: Iterable[str], argument: str = "name") -> None:
    """Raise ValueError with the nearest names unless `name` is known."""
    if name not in tuple(known):
        raise ValueError(f"{argument}={nearest(name, known)}")


def check_severity(severity: int, severities: Sequence[int] = SEVERITIES) -> int:
    """The severity as an int; ValueError outside `severities`, TypeError for other types."""
    if isinstance(severity, bool) or not isinstance(severity, int | np.integer):
        raise TypeError(f"severity={severity!r} must be an int, one of {tuple(severities)}")
    if severity not in severities:
        raise ValueError(f"severity={severity} must be one of {tuple(severities)}")
    return int(severity)


def check_seed(seed: int) -> int:
    """The seed as an int >= 0."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed={seed!r} must be an int >= 0")
    if seed < 0:
        raise ValueError(f"seed={seed} must be >= 0")
    return int(seed)


def check_length(length: int, argument: str) -> int:
    """A number of pixels or frames as an int of at least 1."""
    if isinstance(length, bool) or not isinstance(length, int | np.integer):
        raise TypeError(f"{argument}={length!r} must be an int >= 1")
    if length < 1:
        raise ValueError(f"{argument}={length} must be >= 1")
    return int(length)


def as_batch(images: Images, argument: str = "images") -> Array:
    """The images as a contiguous uint8 array (N, H, W, C); gray images get C = 1."""
    array = _as_numpy(images, argument)
    if array.dtype != np.uint8:
        raise TypeError(_wrong_dtype(array, argument))
    if array.ndim == 3 and array.shape[-1] == 3:
        raise ValueError(
            f"{argument} of shape {array.shape} looks like one colour image; "
            f"pass a batch (N, H, W, C): {argument}[None]"
        )
    if array.ndim not in (3, 4):
        raise ValueError(
            f"{argument} of shape {array.shape} must be (N, H, W, C) or, for gray, (N, H, W)"
        )
    batch = array[..., None] if array.ndim == 3 else array
    _check_channels(batch, argument)
    return np.ascontiguousarray(batch)


def like(result: Array, images: Images) -> Images:
    """The uint8 result (N, H, W, C) in the type and number of axes of the images given."""
    result = result[..., 0] if images.ndim == 3 else result
    if isinstance(images, torch.Tensor):
        return torch.from_numpy(np.ascontiguousarray(result)).to(images.device)
    return result


def check_side(batch: Array, side: int, name: str) -> None:
    """Raise ValueError for images with a side shorter than `side` pixels."""
    height, width = batch.shape[1:3]
    if min(height, width) < side:
        raise ValueError(
            f"images of {height}x{width} are too small for {name!r}: "
            f"both sides must be at least {side} pixels"
        )


def image_indices(index: int | Sequence[int] | Array, count: int) -> list[int]:
    """One index per image: `index, index + 1, …` for a number, or the given sequence."""
    if isinstance(index, torch.Tensor):
        index = index.tolist()
    if isinstance(index, int | np.integer):
        indices = list(range(int(index), int(index) + count))
    else:
        indices = [int(i) for i in index]
    if len(indices) != count:
        raise ValueError(f"index has {len(indices)} entries for {count} images; give one each")
    if any(i < 0 for i in indices):
        raise ValueError(f"index={index!r} must be >= 0: the place of the image in its data set")
    return indices


def _as_numpy(images: Images, argument: str) -> Array:
    if isinstance(images, torch.Tensor):
        return images.detach().cpu().numpy()
    if isinstance(images, np.ndarray):
        return images
    raise TypeError(
        f"{argument} must be a numpy array or a torch tensor, not {type(images).__name__}"
    )


def _wrong_dtype(array: Array, argument: str) -> str:
    advice = "convert with astype(np.uint8)"
    if np.issubdtype(array.dtype, np.floating) and array.size:
        unit = float(array.max()) <= 1.0
        advice = "values in [0, 1]: pass (255 * images).round() as uint8" if unit else advice
    return f"{argument} has dtype {array.dtype}; it must be uint8 in 0..255 ({advice})"


def _check_channels(batch: Array, argument: str) -> None:
    channels = batch.shape[-1]
    if channels in (1, 3):
        return
    advice = "give 3 (RGB) or 1 (gray) as the last axis"
    if batch.shape[1] in (1, 3):
        advice = f"channels come last here: {argument}.transpose(0, 2, 3, 1)"
    raise ValueError(f"{argument} of shape {batch.shape} has {channels} channels; {advice}")
