"""Writes the tables in README.md and docs/ that come from the registry and from data files.

    python docs/tables.py            # rewrite them
    python docs/tables.py --check    # fail if one is out of date (a test does the same)

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparseopt.algorithms.registry import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THIRD_PARTY = ROOT / "tests" / "third_party"
PLACE = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
STORAGES = ("masked", "compact", "auto")


def accuracy() -> str:
    """Dense beside three methods at two sparsities, from accuracy.jsonl."""
    lines = (RESULTS / "accuracy.jsonl").read_text().splitlines()
    runs = [json.loads(line) for line in lines]

    def cell(recipe: str, sparsity: float) -> str:
        values = [
            run["result"]["accuracy"]
            for run in runs
            if (run["run"]["network"], run["run"]["recipe"]) == ("mlp", recipe)
            and run["run"]["sparsity"] == sparsity
        ]
        return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"

    rows = ["| | dense | `static` | `set` | `rigl` |", "|---|---|---|---|---|"]
    for sparsity in (0.9, 0.98):
        cells = [cell("dense", 0.0), *(cell(name, sparsity) for name in ("static", "set", "rigl"))]
        rows.append(f"| S = {sparsity} | {' | '.join(cells)} |")
    return "\n".join(rows)


def speed_rows(file: str = "speed.json") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((RESULTS / file).read_text())["rows"]
    return rows


def speed() -> str:
    """The step of storage="auto" and its state, at three sparsities."""
    shown = (0.5, 0.9, 0.97)
    rows = ["| ratio to dense |" + "".join(f" S = {s}: step | state |" for s in shown)]
    rows.append("|---|" + "---|---|" * len(shown))
    for optimizer in dict.fromkeys(row["optimizer"] for row in speed_rows()):
        cells = []
        for sparsity in shown:
            one = find(optimizer, sparsity, "auto")
            dense = 4.0 if optimizer.startswith("SGD") else 8.0
            state = one["state_bytes_per_weight"] / dense
            cells += [f"{one['step']['ratio']:.2f}", f"{state:.2f}"]
        rows.append(f"| {optimizer} | {' | '.join(cells)} |")
    return "\n".join(rows)


def find(optimizer: str, sparsity: float, storage: str) -> dict[str, Any]:
    return next(
        row
        for row in speed_rows()
        if (row["optimizer"], row["sparsity"], row["storage"]) == (optimizer, sparsity, storage)
    )


def storage(key: str) -> Callable[[], str]:
    """One quantity of every storage at every sparsity that was measured."""

    def table_of() -> str:
        sparsities = sorted({row["sparsity"] for row in speed_rows()})
        rows = ["| optimizer | storage |" + "".join(f" {s} |" for s in sparsities)]
        rows.append("|---|---|" + "---|" * len(sparsities))
        for optimizer in dict.fromkeys(row["optimizer"] for row in speed_rows()):
            for name in STORAGES:
                cells = [shown(find(optimizer, s, name), key) for s in sparsities]
                rows.append(f"| {optimizer} | {name} | {' | '.join(cells)} |")
        return "\n".join(rows)

    return table_of


def shown(row: dict[str, Any], key: str) -> str:
    value = row[key]
    if isinstance(value, dict):
        return f"{value['ratio']:.2f} ({value['low']:.2f}-{value['high']:.2f})"
    return f"{value:.2f}"


def sizes() -> str:
    rows = [
        "| weights | optimizer | storage | step | total | update |",
        "|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {row['parameters']:,} | {row['optimizer']} | {row['storage']} | "
        f"{row['step']['ratio']:.2f} | {row['total']['ratio']:.2f} | {row['update']:.1f} |"
        for row in speed_rows("speed-sizes.json")
    ]
    return "\n".join(rows)


def peers(key: str) -> Callable[[], str]:
    """Ours beside public libraries, one column each."""

    def table_of() -> str:
        rows = speed_rows("peers.json")
        names = list(dict.fromkeys(row["peer"] for row in rows))
        lines = ["| optimizer | S |" + "".join(f" {name} |" for name in names)]
        lines.append("|---|---|" + "---|" * len(names))
        for one in dict.fromkeys((row["optimizer"], row["sparsity"]) for row in rows):
            of = {row["peer"]: row for row in rows if (row["optimizer"], row["sparsity"]) == one}
            cells = [f"{of[n][key]['ratio']:.2f}" if key in of.get(n, {}) else "-" for n in names]
            lines.append(f"| {one[0]} | {one[1]} | {' | '.join(cells)} |")
        return "\n".join(lines)

    return table_of


def memory() -> str:
    """Megabytes held and needed at the peak, a row for each storage."""
    rows = json.loads((RESULTS / "memory.json").read_text())["megabytes"]
    heads = ("held", "step", "backward before an update", "step with an update")
    lines = [f"| MB | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(str(row.get(head, '-')) for head in heads)} |")
    return "\n".join(lines)


def source(file: str = "speed.json") -> str:
    machine = json.loads((RESULTS / file).read_text())["machine"]
    return (
        f"`{machine['command']}`, commit {machine['commit']}, torch {machine['torch']}, "
        f"{machine['processor']}, {machine['threads']} thread, {machine['date']}."
    )


def diff(path: Path) -> Callable[[], str]:
    """A change that tests/test_third_party.py makes, as it is."""
    return lambda: f"```diff\n{path.read_text()}```"


TABLES: dict[str, Callable[[], str]] = {
    "recipes": table,
    "recipes-beside": lambda: table(""),
    "accuracy": accuracy,
    "speed": speed,
    "storage-step": storage("step"),
    "storage-total": storage("total"),
    "storage-update": storage("update"),
    "storage-amortised": storage("amortised"),
    "storage-state": storage("state_bytes_per_weight"),
    "storage-sizes": sizes,
    "memory": memory,
    "storage-source": source,
    "peers-step": peers("step"),
    "peers-iteration": peers("iteration"),
    "peers-source": lambda: source("peers.json"),
}
TABLES |= {f"diff-{path.stem}": diff(path) for path in THIRD_PARTY.glob("*.diff")}


def renewed(text: str) -> str:
    """The text with every table as it should be now."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n{found[3]}", text)


def pages() -> list[Path]:
    candidates = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [path for path in candidates if PLACE.search(path.read_text())]


def main() -> None:
    stale = [path for path in pages() if renewed(path.read_text()) != path.read_text()]
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run docs/tables.py")
    for path in stale:
        path.write_text(renewed(path.read_text()))


if __name__ == "__main__":
    main()
