"""What the benchmarks share: interleaved timing, a record of the machine, data files."""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(
    runs: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2, device: str = "cpu"
) -> dict[str, list[float]]:
    """Seconds of each run, A B C A B C ..., so that a busy moment hits all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm_up + rounds):
        for name, run in runs.items():
            synchronize(device)
            begin = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - begin)
    return {name: times[warm_up:] for name, times in seconds.items()}


def reuse_memory() -> None:
    """Start this script again with an allocator that keeps freed memory.

    glibc gives the large temporaries of a dense optimizer back to the system or not, as chance has
    it; getting them anew can double a dense step, which would flatter whatever is compared to it.
    """
    wanted = {"MALLOC_TRIM_THRESHOLD_": str(1 << 33), "MALLOC_MMAP_THRESHOLD_": str(1 << 32)}
    wanted["MALLOC_TOP_PAD_"] = str(1 << 28)
    if not wanted.keys() & os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | wanted)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratio(seconds: list[float], base: list[float]) -> dict[str, float]:
    """Median of the ratios within each round, with its quartiles: the noise is shown."""
    ratios = sorted(one / other for one, other in zip(seconds, base, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"ratio": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def machine(device: str = "cpu") -> dict[str, Any]:
    """Where and how the numbers were made."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    return {
        "command": "python " + shlex.join([sys.argv[0].split("/")[-1], *sys.argv[1:]]),
        "commit": commit.stdout.strip(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": (names or [platform.processor()])[0],
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "date": time.strftime("%Y-%m-%d"),
    }


def save(name: str, content: Mapping[str, Any]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(json.dumps(content, indent=1) + "\n")
    return path
