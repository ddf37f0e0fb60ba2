"""Corruptions by a video codec: an image as a short pan, damaged or squeezed, and one frame of it.

`bit_error` and `h265_abr` of ImageNet-3DCC. The original films a depth-based camera move; here the
clip is a planar pan over the image itself, an approximation. Needs ffmpeg with libx264 and libx265:
a program on the path, or the package imageio-ffmpeg, which is started for every image.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sparseopt.robustness._door import Array
from sparseopt.robustness._resample import Generators

FRAMES = 30
SMALLEST_SIDE = 32
_RATE = 25
_QUALITY = "12"  # a clip large enough for the mildest bit errors to hit it

CONSTANTS: dict[str, tuple[int, ...]] = {
    # ffmpeg's noise filter alters a byte where the running sum of bytes is a multiple of this
    "bit_error": (100_000, 50_000, 30_000, 20_000, 10_000),
    "h265_abr": (2, 4, 8, 16, 32),
}


def ffmpeg() -> str:
    """Path of an ffmpeg program; ImportError that says how to get one."""
    found = shutil.which("ffmpeg")
    if found:
        return found
    try:
        imageio_ffmpeg = importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise ImportError(
            "bit_error and h265_abr need ffmpeg: install the program, or pip install imageio-ffmpeg"
        ) from error
    path: str = imageio_ffmpeg.get_ffmpeg_exe()
    return path


def bit_error(images: Array, amount: int, rngs: Generators) -> Array:
    """Bytes of an H.264 clip altered; mild amounts may leave a small clip untouched."""

    def damage(program: str, source: Path, target: Path) -> None:
        options = ["-c", "copy", "-bsf:v", f"noise=amount={amount}", "-f", "h264"]
        _run(program, ["-i", str(source), *options, str(target)])

    return np.stack([_through(image, damage) for image in images])


def h265_abr(images: Array, divisor: int, rngs: Generators) -> Array:
    """Encoded again with H.265 at a fraction of the clip's bit rate."""

    def squeeze(program: str, source: Path, target: Path) -> None:
        rate = str(max(int(source.stat().st_size * 8 * _RATE / FRAMES / divisor), 1000))
        options = ["-c:v", "libx265", "-b:v", rate, "-maxrate", rate, "-bufsize", rate]
        quiet = ["-x265-params", "log-level=none:pools=1:frame-threads=1", "-f", "hevc"]
        _run(program, ["-i", str(source), *options, *quiet, str(target)])

    return np.stack([_through(image, squeeze) for image in images])


KERNELS = {"bit_error": bit_error, "h265_abr": h265_abr}


def _through(image: Array, change: Any) -> Array:
    """The middle frame of the image's clip after `change(program, source, target)`."""
    program = ffmpeg()
    height, width, channels = image.shape
    clip = _pan(np.repeat(image, 3 // channels, axis=-1).astype(np.uint8))
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "clean.h264"), Path(folder, "corrupted")
        _encode(program, clip, source)
        change(program, source, target)
        frame = _frame(program, target, clip.shape)
    middle = frame[_offset(FRAMES // 2) :, _offset(FRAMES // 2) :][:height, :width]
    return middle[..., :channels].astype(np.float32)


def _offset(frame: int) -> int:
    return frame // 2


def _pan(image: Array) -> Array:
    """Clip (T, H', W', 3) of a window moving diagonally half a pixel per frame; even sides."""
    reach = _offset(FRAMES)
    height, width = (side + reach + (side + reach) % 2 for side in image.shape[:2])
    pad = ((reach, height - image.shape[0]), (reach, width - image.shape[1]), (0, 0))
    wide = np.pad(image, pad, mode="edge")
    starts = [reach - _offset(i) for i in range(FRAMES)]
    return np.stack([wide[s : s + height, s : s + width] for s in starts])


def _encode(program: str, clip: Array, target: Path) -> None:
    size = f"{clip.shape[2]}x{clip.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(_RATE), "-i", "-"]
    options = ["-c:v", "libx264", "-crf", _QUALITY, "-pix_fmt", "yuv420p"]
    _run(program, [*source, *options, "-threads", "1", "-f", "h264", str(target)], clip.tobytes())


def _frame(program: str, path: Path, shape: tuple[int, ...]) -> Array:
    """The middle frame; damage may lose frames, then the last one before it."""
    raw = _run(program, ["-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=False)
    size = int(np.prod(shape[1:]))
    count = len(raw) // size
    if count == 0:
        raise RuntimeError("ffmpeg could not decode any frame of the corrupted clip")
    frames = np.frombuffer(raw[: count * size], np.uint8).reshape(count, *shape[1:])
    return frames[min(FRAMES // 2, count - 1)]


def _run(program: str, options: list[str], data: bytes | None = None, check: bool = True) -> bytes:
    command = [program, "-hide_banner", "-loglevel", "error", "-y", *options]
    done = subprocess.run(command, input=data, capture_output=True, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace')}")
    return done.stdout
