"""Means, spreads, tests and tables for the sections of docs/tables-8-12.md."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import ttest_rel

Line = dict[str, Any]
Read = Callable[[Line], float]

LABELS = {
    "dense": "dense", "set": "SET", "rigl": "RigL", "mest_r": "MEST_r", "mest_g": "MEST_g",
    "granet_r": "GraNet_r", "granet_g": "GraNet_g",
}  # fmt: skip


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation; a dash for nothing."""
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


def whole_seeds(lines: Sequence[Line], number: int) -> list[Line]:
    """The lines of those seeds that have all their runs, so many of them."""
    by_seed: dict[int, list[Line]] = {}
    for line in lines:
        by_seed.setdefault(line["run"]["seed"], []).append(line)
    return [
        line for seed in sorted(by_seed) for line in by_seed[seed] if len(by_seed[seed]) == number
    ]


def per_seed(lines: Sequence[Line], read: Read, **wanted: Any) -> list[float]:
    """One number per seed, in the order of the seeds; the mean where several runs fit."""
    found: dict[int, list[float]] = {}
    for line in lines:
        if all(line["run"].get(key) == value for key, value in wanted.items()):
            found.setdefault(line["run"]["seed"], []).append(read(line))
    return [statistics.mean(found[seed]) for seed in sorted(found)]


def chance(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """p of the paired t-test over seeds; 1 where all differences are the same zero."""
    if all(one == other for one, other in zip(ours, theirs, strict=True)):
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # three differences may be nearly equal
        return float(ttest_rel(ours, theirs).pvalue)


def verdict(ours: Sequence[float], theirs: Sequence[float], unit: str = "points") -> str:
    """Is the first at least the second, by how much, and is that more than chance?"""
    if len(ours) < 2 or len(ours) != len(theirs):
        return "too few seeds"
    gain = statistics.mean(ours) - statistics.mean(theirs)
    p = chance(ours, theirs)
    shown = "shown" if p < 0.05 else "within chance"
    return f"{'yes' if gain >= 0 else 'no'}, {gain:+.2f} {unit}, paired p = {p:.3f} ({shown})"


def made(lines: Sequence[Line], script: str, path: Path) -> str:
    """The last paragraph of a section: command, commits, hardware, data file."""
    results = [line["result"].get("machine", line["result"]) for line in lines]
    commits = list(dict.fromkeys(result["commit"] for result in results))
    commit = commits[0] if len(commits) == 1 else f"{commits[0]} to {commits[-1]}"
    torches = ", ".join(sorted({result["torch"] for result in results}))
    processors = ", ".join(sorted({result["processor"] for result in results}))
    return (
        f"Command: `python benchmarks/{script}.py`. Commit {commit}, torch {torches}, "
        f"{processors}, one thread. Data: `benchmarks/results/{path.name}`.\n"
    )


def seeds_of(lines: Sequence[Line]) -> str:
    number = len({line["run"]["seed"] for line in lines})
    return "one seed" if number == 1 else f"{number} seeds"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
