"""Long lists of runs: every finished run is a line, a restart skips what is done.

Several processes may work on one list at the same time: a run is claimed by creating a file, which
only one of them can do. A claim left behind by a process that was killed is taken over when it is
older than any run takes.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def seed_by_seed(cells: Iterable[tuple[str, float]], seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Every (method, sparsity) once per seed: a list that stops early still compares them all."""
    cells = tuple(cells)
    return [
        {"method": method, "sparsity": sparsity, "seed": seed}
        for seed in seeds
        for method, sparsity in cells
    ]


def identity(run: dict[str, Any]) -> str:
    return json.dumps(run, sort_keys=True)


def finished(path: Path) -> list[dict[str, Any]]:
    """The results on record; a line cut off by a crash is left out."""
    if not path.exists():
        return []
    results = []
    for line in path.read_text().splitlines():
        try:
            results.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return results


def work_off(
    runs: Iterable[dict[str, Any]],
    do: Callable[[dict[str, Any]], dict[str, Any]],
    path: Path,
    patience: float = 3600.0,
) -> None:
    """Do every run that is neither on record nor claimed, and append its result.

    Args:
        runs: What to do, as plain dicts.
        do: Takes one of them and returns its measurements.
        path: The data file, one JSON object per line: ``{"run": ..., "result": ...}``.
        patience: Seconds after which a claim without a result is taken over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for run in runs:
        claim = path.parent / f".claim-{path.stem}-{zlib.crc32(identity(run).encode()):x}"
        if not claimed(claim, patience):
            continue
        try:
            # read under the claim: who held it before may just have finished this run
            if identity(run) not in {identity(line["run"]) for line in finished(path)}:
                append(path, json.dumps({"run": run, "result": do(run)}))
        finally:
            claim.unlink(missing_ok=True)


def append(path: Path, line: str) -> None:
    """One more line, on its own also after one that a crash cut off."""
    with path.open("a+b") as file:
        file.seek(max(file.tell() - 1, 0))
        begin = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(begin + line.encode() + b"\n")


def claimed(claim: Path, patience: float) -> bool:
    """Whether this process may do the run."""
    if claim.exists() and time.time() - claim.stat().st_mtime > patience:
        claim.unlink(missing_ok=True)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
