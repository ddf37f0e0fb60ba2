"""Peak memory of a step and of a topology update, beyond what is held before it. Linux only.

    python benchmarks/memory.py          # half a minute

The network of speed.py (25.2 M weights, 96 MiB in float32), AdamW, RigL, S = 0.9. Each row comes
from a process of its own, in which freed memory goes back to the system at once: the mark of its
highest resident memory is reset, the work done, the mark read again. ``held`` is what the optimizer
and its masks and indices hold between steps, ``gradients`` what is held from backward to
``zero_grad()`` besides. Writes benchmarks/results/memory.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from common import machine, save
from speed import OPTIMIZERS, network

from sparseopt import SparseOptimizer

STORAGES = ("dense", "masked", "compact")
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def resident(key: str) -> float:
    """Megabytes: VmRSS now, VmHWM at most since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak_of(work: object) -> float:
    """Megabytes above the present that ``work()`` needs at its peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    work()  # type: ignore[operator]
    return resident("VmHWM") - before


def measure(storage: str) -> dict[str, float]:
    torch.set_num_threads(1)
    model = network()
    make = OPTIMIZERS["AdamW foreach"]
    start = resident("VmRSS")
    optimizer = make(model.parameters())
    if storage != "dense":
        optimizer = SparseOptimizer(
            optimizer, "rigl", sparsity=0.9, model=model, storage=storage,
            update_every=10**9, distribution="uniform",
        )  # fmt: skip
    slopes = [torch.randn_like(p) for p in model.parameters()]

    def backward() -> None:
        optimizer.zero_grad()
        pairs = zip(model.parameters(), slopes, strict=True)
        torch.stack([(p * slope).sum() for p, slope in pairs]).sum().backward()

    backward()
    optimizer.step()
    optimizer.zero_grad()
    result = {"held": resident("VmRSS") - start - sum(s.numel() for s in slopes) * 4 / 2**20}
    result["backward"] = peak_of(backward)
    result["step"] = peak_of(optimizer.step)
    with_gradients = resident("VmRSS")
    optimizer.zero_grad()
    result["gradients"] = with_gradients - resident("VmRSS")
    if storage != "dense":
        optimizer.update_topology()  # at the end of the next step
        result["backward before an update"] = peak_of(backward)
        result["step with an update"] = peak_of(optimizer.step)
    return {name: round(value, 1) for name, value in result.items()}


def main() -> None:
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    rows = {}
    for storage in STORAGES:
        output = subprocess.run(
            [sys.executable, __file__, storage],
            capture_output=True, text=True, check=True, env=os.environ | RETURN_MEMORY,
        )  # fmt: skip
        rows[storage] = json.loads(output.stdout)
    save("memory.json", {"machine": machine(), "megabytes": rows})
    print(rows)


if __name__ == "__main__":
    main()
