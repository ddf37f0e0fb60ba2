"""The sixteen perturbations of corrupted UCF101, on clips (T, H, W, C).

Source: appendix A.2 of Wu et al. (2024) and the published constants of the perturbation benchmark
for action recognition. The paper evaluates levels 1 to 4; a fifth exists and is accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparseopt.robustness import _blur, _digital, _noise
from sparseopt.robustness._constants import IMAGENET, TINY
from sparseopt.robustness._door import (
    Array,
    Images,
    as_batch,
    check_length,
    check_name,
    check_seed,
    check_severity,
    check_side,
    image_indices,
    like,
)
from sparseopt.robustness._resample import pixel_grid, sampled
from sparseopt.robustness._streams import generator, in_pieces, truncated

VIDEO_SEVERITIES = (1, 2, 3, 4)
"""The levels of the paper's appendix."""

_FRAMEWISE: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "motion_blur": (_blur.motion_blur, IMAGENET["motion_blur"]),
    "compression": (_digital.jpeg_compression, IMAGENET["jpeg_compression"]),
    "defocus_blur": (_blur.defocus_blur, IMAGENET["defocus_blur"]),
    "gaussian_noise": (_noise.gaussian_noise, IMAGENET["gaussian_noise"]),
    "shot_noise": (_noise.shot_noise, TINY["shot_noise"]),
    "impulse_noise": (_noise.impulse_noise, IMAGENET["impulse_noise"]),
    "zoom_blur": (_blur.zoom_blur, IMAGENET["zoom_blur"]),
    "speckle_noise": (_noise.speckle_noise, TINY["speckle_noise"]),
}
_STATIC_ANGLES = (7.5, 15, 30, 45, 90)
_KEPT = (0.4, 0.2, 0.1, 0.05)


def corrupt_video(
    clip: Images, name: str, severity: int, seed: int = 0, index: int = 0, size: int | None = None
) -> Images:
    """A clip under one of the 16 perturbations of corrupted UCF101.

    Noise, blur, compression and `rotate` draw anew for every frame; `static_rotate` and
    `translate` once per clip. `sampling`, `reverse_sampling`, `jumble`, `box_jumble` and `freeze`
    reorder or drop frames: apply them to the full video before frames are sampled. `jumble` grows
    milder with severity, as published; `freeze` loses the frames before the first kept one.

    Args:
        clip: uint8 (T, H, W, C) with C 3 or 1, or (T, H, W); numpy or torch.
        name: one of `VIDEO`.
        severity: 1..5; the paper uses 1..4.
        seed: another draw of all random numbers.
        index: place of the clip in its data set; each gets its own random numbers.
        size: `translate` only: cut a window of this side, from a larger frame; by default the
            frame keeps its size and zeros come in.

    Returns:
        uint8 frames; fewer of them for `sampling`, `reverse_sampling` and `freeze`.

    Raises:
        TypeError, ValueError: as `corrupt`; also for a clip without frames, and for a `size` below
            1 or with another perturbation than `translate`.

    Example:
        >>> import numpy as np
        >>> clip = np.arange(8, dtype=np.uint8).reshape(8, 1, 1, 1) * np.ones((4, 4, 3), np.uint8)
        >>> corrupt_video(clip, "reverse_sampling", 1)[:, 0, 0, 0].tolist()
        [6, 4, 2, 0]
    """
    check_name(name, VIDEO)
    severity, seed = check_severity(severity), check_seed(seed)
    frames = as_batch(clip, "clip")
    if len(frames) == 0:
        raise ValueError("clip has no frames; give (T, H, W, C) with T >= 1")
    check_side(frames, 4, name)
    if size is not None and name != "translate":
        raise ValueError(f"size={size!r} is for 'translate'; cut the clip before {name!r}")
    (place,) = image_indices(index, 1)
    if name in _FRAMEWISE:
        return like(_framewise(frames, name, severity, seed, place), clip)
    rng = generator(seed, f"video/{name}", severity, place)
    if name in TEMPORAL:
        return like(frames[TEMPORAL[name](len(frames), severity, rng)], clip)
    if name == "translate":
        side = None if size is None else check_length(size, "size")
        return like(_translated(frames, severity, rng, side), clip)
    return like(_rotated(frames, _angles(name, len(frames), severity, rng)), clip)


def _framewise(frames: Array, name: str, severity: int, seed: int, index: int) -> Array:
    kernel, table = _FRAMEWISE[name]
    rngs = [generator(seed, f"video/{name}", severity, index, t) for t in range(len(frames))]
    return in_pieces(frames, lambda piece, own: kernel(piece, table[severity - 1], own), rngs)


def _angles(name: str, count: int, severity: int, rng: np.random.Generator) -> Array:
    """Degrees per frame, counter-clockwise."""
    if name == "static_rotate":
        return np.full(count, _STATIC_ANGLES[severity - 1])
    reach = 6 * severity + 1
    return rng.integers(-reach, reach + 1, count).astype(float)


def _rotated(frames: Array, angles: Array) -> Array:
    """Every frame turned about its centre, black outside."""
    height, width = frames.shape[1:3]
    rows, columns = pixel_grid(height, width)
    y, x = rows - (height - 1) / 2, columns - (width - 1) / 2
    radians = np.deg2rad(angles)[:, None, None].astype(np.float32)
    sine, cosine = np.sin(radians), np.cos(radians)
    source_y = cosine * y + sine * x + (height - 1) / 2
    source_x = cosine * x - sine * y + (width - 1) / 2
    return truncated(sampled(frames.astype(np.float32), source_y, source_x, "zeros"))


def _translated(frames: Array, severity: int, rng: np.random.Generator, size: int | None) -> Array:
    """Windows at an offset below 8 x severity pixels, zeros where the frame ends."""
    top, left = rng.integers(0, 8 * severity, 2)
    height, width = (size, size) if size else frames.shape[1:3]
    seen = frames[:, top : top + height, left : left + width]
    down, right = height - seen.shape[1], width - seen.shape[2]
    return np.pad(seen, ((0, 0), (0, down), (0, right), (0, 0)))


Order = Callable[[int, int, np.random.Generator], Array]


def _sampling(count: int, severity: int, rng: np.random.Generator) -> Array:
    """Every 2nd, 4th, 8th, 16th, 32nd frame."""
    return np.arange(0, count, 2**severity)


def _reverse_sampling(count: int, severity: int, rng: np.random.Generator) -> Array:
    return _sampling(count, severity, rng)[::-1]


def _jumble(count: int, severity: int, rng: np.random.Generator) -> Array:
    """Frames shuffled inside segments of 32, 16, 8, 4, 2."""
    length = 2 ** (6 - severity)
    segments = [np.arange(i, min(i + length, count)) for i in range(0, count, length)]
    return np.concatenate([rng.permutation(segment) for segment in segments])


def _box_jumble(count: int, severity: int, rng: np.random.Generator) -> Array:
    """Segments of 4, 9, 16, 25, 36 frames in another order."""
    length = (severity + 1) ** 2
    segments = [np.arange(i, min(i + length, count)) for i in range(0, count, length)]
    return np.concatenate([segments[i] for i in rng.permutation(len(segments))])


def _freeze(count: int, severity: int, rng: np.random.Generator) -> Array:
    """A few random frames, each held until the next; what lies before the first is lost."""
    kept = 1 if severity == 5 else int(_KEPT[severity - 1] * count)
    kept = min(count, max(kept, 2 if severity == 4 else 1))
    chosen = np.sort(rng.choice(count, kept, replace=False))
    return np.repeat(chosen, np.diff(np.append(chosen, count)))


TEMPORAL: dict[str, Order] = {
    "sampling": _sampling,
    "reverse_sampling": _reverse_sampling,
    "jumble": _jumble,
    "box_jumble": _box_jumble,
    "freeze": _freeze,
}
"""Perturbations that act on the full video: (frames, severity, rng) to frame numbers."""

VIDEO: tuple[str, ...] = (
    "motion_blur",
    "compression",
    "defocus_blur",
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "zoom_blur",
    "rotate",
    "static_rotate",
    "speckle_noise",
    "sampling",
    "reverse_sampling",
    "jumble",
    "box_jumble",
    "freeze",
    "translate",
)
"""The 16 perturbations of corrupted UCF101, in the paper's order."""
