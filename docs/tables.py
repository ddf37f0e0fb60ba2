"""Writes the tables in README.md, docs/ and examples/ that come from the registry and data files.

    python docs/tables.py            # rewrite them
    python docs/tables.py --check    # fail if one is out of date (a test does the same)

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accuracies
import computing
import measured

from sparseopt.algorithms.registry import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
THIRD_PARTY = ROOT / "tests" / "third_party"
PLACE = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
STORAGES = ("masked", "compact", "auto")


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
        "| weights | optimizer | storage | step | total | update | of SET |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {row['parameters']:,} | {row['optimizer']} | {row['storage']} | "
        f"{row['step']['ratio']:.2f} | {row['total']['ratio']:.2f} | {row['update']:.1f} | "
        f"{row['update_of_set']:.1f} |"
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


def fastest_peer() -> str:
    """Ours beside the fastest of the others; the faster one is bold."""
    found = speed_rows("peers.json")
    lines = [
        "| optimizer | S | `step()`: sparseopt | fastest other | iteration: sparseopt "
        "| fastest other |",
        "|---" * 6 + "|",
    ]
    for one in dict.fromkeys((row["optimizer"], row["sparsity"]) for row in found):
        rows = [row for row in found if (row["optimizer"], row["sparsity"]) == one]
        cells = [*map(str, one), *faster(rows, "step"), *faster(rows, "iteration")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def faster(rows: list[dict[str, Any]], key: str) -> tuple[str, str]:
    """Our ratio and the smallest of the others' with its name, the smaller one bold."""
    ratios = {row["peer"]: row[key]["ratio"] for row in rows if key in row}
    ours = ratios.pop("sparseopt")
    name = min(ratios, key=ratios.__getitem__)
    ours_shown, other = f"{ours:.2f}", f"{ratios[name]:.2f}"
    if ours <= ratios[name]:
        return f"**{ours_shown}**", f"{other} {name}"
    return ours_shown, f"**{other}** {name}"


def memory() -> str:
    """MiB held and needed at the peak, a row for each storage."""
    rows = json.loads((RESULTS / "memory.json").read_text())["megabytes"]
    heads = ("held", "gradients", "backward", "step")
    heads += ("backward before an update", "step with an update")
    lines = [f"| MiB | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {' | '.join(str(row.get(head, '-')) for head in heads)} |")
    return "\n".join(lines)


SHARED = ("same training", "every recipe", "compact storage", "accumulation", "clipping", "resume")


def stacks_run() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / "stacks.json").read_text())
    return found


def stacks() -> str:
    """What was run of every stack: common features as columns, its own as a list."""
    of_stack: dict[str, dict[str, list[str]]] = {}
    for one in stacks_run()["tests"]:
        of_stack.setdefault(one["stack"], {}).setdefault(one["feature"], []).append(one["test"])
    order = sorted(of_stack, key=lambda name: ("refused" in of_stack[name], name.casefold()))
    rows = [f"| stack | {' | '.join(SHARED)} | also | example | tests |"]
    rows.append("|---" * (4 + len(SHARED)) + "|")
    return "\n".join(rows + [stack_row(name, dict(of_stack[name])) for name in order])


def stack_row(name: str, tests: dict[str, list[str]]) -> str:
    files = sorted({Path(test.partition("::")[0]).name for one in tests.values() for test in one})
    scripts = [f"with_{test.partition('::test_')[2]}.py" for test in tests.pop("example", [])]
    cells = ["yes" if feature in tests else "" for feature in SHARED]
    own = "; ".join(sorted(tests.keys() - {*SHARED}, key=str.casefold))
    links = [", ".join(f"`{one}`" for one in these) for these in (scripts, files)]
    return f"| {' | '.join([name, *cells, own, *links])} |"


def stacks_source() -> str:
    versions = dict(stacks_run()["versions"])
    python = versions.pop("python")
    shown = ", ".join(f"{package} {number}" for package, number in versions.items() if number)
    return f"Versions: {shown}, Python {python}; on CPU, with gloo between two processes."


def diff(path: Path) -> Callable[[], str]:
    """A change that tests/test_third_party.py makes, as it is."""
    return lambda: f"```diff\n{path.read_text()}```"


TABLES: dict[str, Callable[[], str]] = {
    "recipes": table,
    "recipes-beside": lambda: table(""),
    "speed": speed,
    "storage-step": storage("step"),
    "storage-total": storage("total"),
    "storage-update": storage("update"),
    "storage-update-set": storage("update_of_set"),
    "storage-amortised": storage("amortised"),
    "storage-state": storage("state_bytes_per_weight"),
    "storage-sizes": sizes,
    "memory": memory,
    "storage-source": lambda: measured.source("speed.json"),
    "peers-step": peers("step"),
    "peers-iteration": peers("iteration"),
    "peers-source": lambda: measured.source("peers.json"),
    "fastest-peer": fastest_peer,
}
TABLES |= {"stacks": stacks, "stacks-source": stacks_source}
TABLES |= {f"diff-{path.stem}": diff(path) for path in THIRD_PARTY.glob("*.diff")}
TABLES |= accuracies.TABLES | computing.TABLES | measured.TABLES


def renewed(text: str) -> str:
    """The text with every table as it should be now."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found['name']]()}\n{found[3]}", text)


def pages() -> list[Path]:
    folders = (ROOT / "docs", ROOT / "examples")
    candidates = [ROOT / "README.md", *sorted(p for f in folders for p in f.rglob("*.md"))]
    return [path for path in candidates if PLACE.search(path.read_text())]


def main() -> None:
    stale = [path for path in pages() if renewed(path.read_text()) != path.read_text()]
    if "--check" in sys.argv and stale:
        sys.exit(f"out of date: {', '.join(path.name for path in stale)}; run docs/tables.py")
    for path in stale:
        path.write_text(renewed(path.read_text()))


if __name__ == "__main__":
    main()
