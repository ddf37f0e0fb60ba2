"""How fast `sparseopt.robustness.corrupt` is beside imagecorruptions-imaug, per image, on one core.

All 19 corruptions at all 5 severities with ImageNet's constants, on the same colour crops of
photographs; both are warmed up, run in turn in one process pinned to one core, and the best of
`--repeats` is kept. The rival is called image by image, the way it works; ours gets batches.

    python benchmarks/corruptions.py            # 28, 32 and 224 px: about 2 minutes
    python benchmarks/corruptions.py --smoke    # one tiny round: seconds, for tests

Needs `pip install sparseopt[robustness,examples]`. Writes benchmarks/results/corruptions.json:
milliseconds per image for each corruption, summed over severities, and the ratio of the sums.
Goal: at least 5 times faster at 28-32 px and 3 times at 224 px.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

for _library in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
    os.environ[f"{_library}_NUM_THREADS"] = "1"  # must be set before the libraries are loaded

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from sparseopt.robustness import CORRUPTIONS, corrupt  # noqa: E402

DATA = Path(__file__).parent / "results" / "corruptions.json"
GOALS = {28: 5.0, 32: 5.0, 224: 3.0}
PACKAGES = ("numpy", "torch", "opencv-python", "Pillow", "imagecorruptions-imaug", "numba")


def one_core() -> None:
    """Pin this process to one core and every library to one thread."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def photo_crops(size: int, count: int) -> np.ndarray:
    """Random square crops of the photographs that scikit-learn ships."""
    from sklearn.datasets import load_sample_images

    rng, photos, crops = np.random.default_rng(0), load_sample_images().images, []
    for i in range(count):
        photo = photos[i % len(photos)]
        side = int(rng.integers(min(photo.shape[:2]) // 2, min(photo.shape[:2]) + 1))
        top, left = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + side, left : left + side])
        crops.append(np.asarray(crop.resize((size, size), Image.Resampling.BOX)))
    return np.stack(crops)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """The best of several timings, after one run that does not count."""
    work()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def measure(size: int, ours_count: int, theirs_count: int, repeats: int) -> dict[str, Any]:
    """Milliseconds per image over five severities, for every corruption and both libraries."""
    from imagecorruptions import corruption_dict

    images = photo_crops(size, ours_count)
    pictures = [Image.fromarray(image) for image in images[:theirs_count]]
    rows: dict[str, dict[str, float]] = {}
    for name in CORRUPTIONS:
        ours = theirs = 0.0
        for severity in range(1, 6):
            ours += seconds(lambda n=name, s=severity: corrupt(images, n, s), repeats)
            rival = corruption_dict[name]
            # its own corrupt() ends in np.uint8; Pillow images would be left undecoded otherwise
            theirs += seconds(
                lambda f=rival, s=severity: [np.uint8(f(p, s)) for p in pictures], repeats
            )
        rows[name] = {
            "ours_ms": 1e3 * ours / len(images),
            "theirs_ms": 1e3 * theirs / len(pictures),
        }
        print(
            f"{size:>4} {name:<20} {rows[name]['ours_ms']:8.3f} {rows[name]['theirs_ms']:9.3f} ms"
        )
    sums = {key: sum(row[key] for row in rows.values()) for key in ("ours_ms", "theirs_ms")}
    ratio = sums["theirs_ms"] / sums["ours_ms"]
    ours_ms, theirs_ms = sums["ours_ms"], sums["theirs_ms"]
    print(f"{size:>4} all 95: {ours_ms:.1f} ms against {theirs_ms:.1f} ms: {ratio:.1f} times")
    return {
        "images_ours": len(images),
        "images_theirs": len(pictures),
        "sum_ours_ms": round(sums["ours_ms"], 3),
        "sum_theirs_ms": round(sums["theirs_ms"], 3),
        "ratio": round(ratio, 2),
        "goal": GOALS.get(size),
        "corruptions": {n: {k: round(v, 4) for k, v in row.items()} for n, row in rows.items()},
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=DATA, help="the file of the results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="one tiny round at 32 px")
    arguments = parser.parse_args()
    one_core()
    plan = {32: (8, 1)} if arguments.smoke else {28: (128, 8), 32: (128, 8), 224: (8, 2)}
    repeats = 1 if arguments.smoke else arguments.repeats
    data = {
        "command": "python benchmarks/corruptions.py" + (" --smoke" if arguments.smoke else ""),
        "processor": processor(),
        "threads": 1,
        "repeats": repeats,
        "versions": {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}},
        "sizes": {str(size): measure(size, *counts, repeats) for size, counts in plan.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(data, indent=2) + "\n")
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    main()
