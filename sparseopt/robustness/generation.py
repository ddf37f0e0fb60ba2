"""Write a corruption set from clean images, in the layouts of the official downloads."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sparseopt.robustness._constants import SCALES
from sparseopt.robustness._door import (
    SEVERITIES,
    Array,
    Images,
    check_length,
    check_name,
    check_seed,
)
from sparseopt.robustness._extras import need, progress_bar
from sparseopt.robustness.c_bar import STRENGTHS
from sparseopt.robustness.corruptions import CORRUPTIONS, GENERATED, check_all, corrupt, recipe
from sparseopt.robustness.folders import ENDINGS, class_folders, read_image
from sparseopt.robustness.sets import (
    chosen_corruptions,
    chosen_severities,
    class_indices,
    existing,
)

JPEG_QUALITY = 85  # of Tiny-ImageNet-C and ImageNet-C
_CHUNK = 256


def generate(
    source: tuple[Images, Any] | str | Path,
    root: str | Path,
    *,
    scale: str = "cifar",
    corruption: str | Sequence[str] | None = None,
    severity: int | Sequence[int] | None = None,
    size: int | None = None,
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """A corruption set on disk, that `CIFARC` or `ImageNetC` reads.

    From arrays: `<corruption>.npy`, five severities one after another, and `labels.npy`, as
    CIFAR-10-C. From a folder of `<class>/<image>`: `<corruption>/<severity>/<class>/<name>.JPEG`,
    quality 85, as ImageNet-C. A run that was interrupted goes on where it stopped; finished files
    are kept. The files do not depend on `workers` or on interruptions.

    Args:
        source: (images uint8 (N, H, W, C) or (N, H, W), N labels), or a folder.
        root: folder to write to; made if missing.
        scale: constants, see `corrupt`: "cifar", "tiny" or "imagenet".
        corruption: one name or several, any that `corrupt` takes; the 19 by default. Folders of
            C-bar are named by strength, as published.
        severity: one or several of 1..5; arrays always get all five.
        size: folders only: shorter side to size * 256 / 224 and centre crop, as ImageNet-C (224).
        seed: see `corrupt`.
        workers: processes; 0 works in this one.
        progress: show a bar where tqdm is installed.

    Returns:
        The folder written to.

    Raises:
        TypeError, ValueError: bad images or labels, a corruption that has no constants at this
            scale, an option that the source does not take, or a folder that holds a set made with
            other settings; nothing has been written then.
        FileNotFoundError: the source is a folder without images.

    Example:
        >>> import numpy as np, tempfile
        >>> from sparseopt.robustness import CIFARC
        >>> images, labels = np.zeros((3, 32, 32, 3), np.uint8), [0, 1, 2]
        >>> folder = generate((images, labels), tempfile.mkdtemp(), corruption=["fog", "snow"])
        >>> len(CIFARC(folder, ["fog", "snow"]))
        30
    """
    check_name(scale, SCALES, "scale")
    names = chosen_corruptions(corruption, CORRUPTIONS, GENERATED)
    for name in names:
        recipe(name, scale)  # refuses what has no constants at this scale
    job = {"scale": scale, "seed": check_seed(seed)}
    folder = Path(root)
    with _pool(workers) as run:
        if isinstance(source, str | Path):
            levels = chosen_severities(severity)
            size = None if size is None else check_length(size, "size")
            _generate_folders(Path(source), folder, names, levels, size, job, run, progress)
        else:
            if severity is not None and chosen_severities(severity) != SEVERITIES:
                raise ValueError(f"severity={severity!r}: arrays hold all five; leave it out")
            if size is not None:
                raise ValueError(
                    f"size={size!r}: arrays keep the size of their images; leave it out"
                )
            if not isinstance(source, tuple | list) or len(source) != 2:
                raise TypeError("source must be (images, labels), or a folder of clean images")
            _generate_arrays(*source, folder, names, job, run, progress)
    return folder


Run = Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], Iterator[Any]]


@contextmanager
def _pool(workers: int) -> Iterator[Run]:
    """A function that maps over argument tuples, in this process or in several, in order."""
    if workers < 0:
        raise ValueError(f"workers={workers} must be >= 0")
    if workers == 0:
        yield lambda work, tasks: (work(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield lambda work, tasks: pool.map(work, *zip(*tasks, strict=True), chunksize=1)


def _generate_arrays(
    images: Images,
    labels: Any,
    root: Path,
    names: Sequence[str],
    job: dict[str, Any],
    run: Run,
    progress: bool,
) -> None:
    check_all(images, names, SEVERITIES, job["scale"])
    indices = class_indices(labels, len(images)).numpy()
    array = images if isinstance(images, np.ndarray) else np.asarray(images.cpu())
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    _same_settings(root, {**job, "images": digest})
    _replace(root / "labels.npy", lambda path: _save(path, np.tile(indices, 5)))
    bar = progress_bar(5 * len(array) * len(names), "corrupting", progress)
    for name in names:
        target = root / f"{name}.npy"
        if target.exists():
            bar.update(5 * len(array))
        else:
            bar.set_description(name)
            _replace(target, partial(_write_one, array, name, job, run, bar))
    bar.close()


def _write_one(
    images: Array, name: str, job: dict[str, Any], run: Run, bar: Any, path: Path
) -> None:
    """One corruption's file, chunk by chunk."""
    shape = (5 * len(images), *images.shape[1:])
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    places = [(s, i) for s in SEVERITIES for i in range(0, len(images), _CHUNK)]
    tasks = [(images[i : i + _CHUNK], name, s, job["scale"], job["seed"], i) for s, i in places]
    for (level, start), chunk in zip(places, run(corrupt, tasks), strict=True):
        first = (level - 1) * len(images) + start
        out[first : first + len(chunk)] = chunk
        bar.update(len(chunk))
    out.flush()


def _save(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        np.save(file, array)


def _replace(target: Path, write: Callable[[Path], None]) -> None:
    """Write beside the target and move into place, so that a file is whole or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_name(target.name + ".part")
    write(unfinished)
    os.replace(unfinished, target)


def _same_settings(root: Path, settings: dict[str, Any]) -> None:
    """Record the settings of a new set; refuse to add to one made with others."""
    path = root / "generated.json"
    if not path.exists():
        _replace(path, lambda part: _write_text(part, json.dumps(settings, indent=2) + "\n"))
        return
    found = json.loads(path.read_text())
    differing = sorted(key for key in settings if found.get(key) != settings[key])
    if differing:
        raise ValueError(
            f"{root} holds a set with other {', '.join(differing)}: {found}, asked for "
            f"{settings}; choose another folder or delete this one"
        )


def _write_text(path: Path, text: str) -> None:
    path.write_text(text)


def _generate_folders(
    source: Path,
    root: Path,
    names: Sequence[str],
    levels: Sequence[int],
    size: int | None,
    job: dict[str, Any],
    run: Run,
    progress: bool,
) -> None:
    existing(source, "a folder of clean images, <class>/<image>")
    files = [
        path
        for name in class_folders(source)
        for path in sorted((source / name).iterdir())
        if path.suffix.lower() in ENDINGS
    ]
    if not files:
        raise FileNotFoundError(f"{source} holds no images; expected <class>/<image>.JPEG")
    _check_names(files)
    _same_settings(root, {**job, "size": size, "images": len(files)})
    cells = [(name, level) for name in names for level in levels]
    tasks = [(path, i, root, cells, size, job) for i, path in enumerate(files)]
    bar = progress_bar(len(files), f"corrupting {len(cells)} times", progress)
    for _ in run(_write_image, tasks):
        bar.update()
    bar.close()


def _check_names(files: Sequence[Path]) -> None:
    """Raise ValueError for images that would be written to one file: all become .JPEG."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in files:
        other = seen.setdefault((path.parent, path.stem), path)
        if other is not path:
            raise ValueError(f"{other} and {path.name} differ in their ending only; rename one")


def _write_image(
    path: Path,
    index: int,
    root: Path,
    cells: Sequence[tuple[str, int]],
    size: int | None,
    job: dict[str, Any],
) -> None:
    """One clean image under every corruption and severity; files that exist are kept."""
    places = {cell: _place(root, cell, job["scale"], path) for cell in cells}
    missing = {cell: place for cell, place in places.items() if not place.exists()}
    if not missing:
        return
    pillow = need("PIL.Image", "writing images")
    clean = _cropped(read_image(path), size, pillow)
    for (name, level), place in missing.items():
        image = corrupt(clean[None], name, level, job["scale"], job["seed"], index)[0]
        _replace(place, _jpeg_writer(pillow.fromarray(np.asarray(image))))


def _place(root: Path, cell: tuple[str, int], scale: str, path: Path) -> Path:
    name, level = cell
    strengths = STRENGTHS.get(scale, {}).get(name)
    folder = f"{strengths[level - 1]:.2f}" if strengths else str(level)
    return root / name / folder / path.parent.name / f"{path.stem}.JPEG"


def _jpeg_writer(image: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, "JPEG", quality=JPEG_QUALITY, optimize=True)


def _cropped(image: Array, size: int | None, pillow: Any) -> Array:
    """Shorter side to size * 256 / 224 (bilinear), then the size x size centre."""
    if size is None:
        return image
    height, width = image.shape[:2]
    factor = round(size * 256 / 224) / min(height, width)
    width, height = max(round(width * factor), size), max(round(height * factor), size)
    resized = np.asarray(pillow.fromarray(image).resize((width, height), pillow.BILINEAR))
    top, left = (height - size) // 2, (width - size) // 2
    return resized[top : top + size, left : left + size]
