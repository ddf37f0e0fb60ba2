"""Tables and sentences of single pages from data files; docs/tables.py puts them into the pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def results(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / file).read_text())
    return found


def source(file: str) -> str:
    machine = results(file)["machine"]
    command = machine["command"].replace("python ", "python benchmarks/", 1)
    threads = f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"
    return (
        f"`{command}`, commit {machine['commit']}, torch {machine['torch']}, "
        f"{machine['processor']}, {threads}, {machine['date']}."
    )


def corruption_speed() -> str:
    """Milliseconds per image, ours beside imagecorruptions-imaug, and where they were measured."""
    found = results("corruptions.json")
    lines = ["| size | sparseopt | imagecorruptions-imaug | faster |", "|---|---|---|---|"]
    for size, row in found["sizes"].items():
        ours, theirs = row["sum_ours_ms"], row["sum_theirs_ms"]
        lines.append(f"| {size} px | {ours:.1f} ms | {theirs:.1f} ms | {row['ratio']:.1f} × |")
    where = f"`{found['command']}`, {found['processor']}, numpy {found['versions']['numpy']}."
    return "\n".join([*lines, "", where])


def corruption_strength() -> str:
    """The 19 corruptions: how far their RMSE is from that of two others, over five severities."""
    found = results("corruption_strength.json")
    published, imaug = (found[key]["ratios"] for key in ("cifar", "imaug"))
    lines = ["| % | published code, 32 px | imagecorruptions-imaug, 224 px |", "|---|---|---|"]
    lines += [f"| {name} | {span(published[name])} | {span(imaug[name])} |" for name in published]
    return "\n".join(lines)


def c_bar_strength() -> str:
    ratios = results("corruption_strength.json")["c_bar"]["ratios"]
    lines = ["| % | published code, 224 px |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {span(row)} |" for name, row in ratios.items()])


def span(ratios: list[float]) -> str:
    """Smallest and largest deviation from 1 in whole percent."""
    low, high = (round(100 * (ratio - 1)) for ratio in (min(ratios), max(ratios)))
    shown = [f"{value:+d}" if value else "0" for value in (low, high)]
    return shown[0] if low == high else " to ".join(shown)


def cells_reproduced() -> str:
    """Tables 4-7: cells by verdict and table."""
    cells = results("flops_tables.json")["cells"]
    verdicts = ("printed digit", "within 2 %", "not reproduced")
    lines = ["| table | printed digit | within 2 % | not reproduced |", "|---|---|---|---|"]
    for table_number in sorted({cell["table"] for cell in cells}):
        counts = [
            sum(cell["table"] == table_number and cell["verdict"] == verdict for cell in cells)
            for verdict in verdicts
        ]
        lines.append(f"| {table_number} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def cells_near() -> str:
    """The sentence of the README."""
    cells = results("flops_tables.json")["cells"]
    near = sum(cell["verdict"] != "not reproduced" for cell in cells)
    return (
        "The paper that the library grew from "
        "([arXiv 2410.03030](https://arxiv.org/abs/2410.03030)): its Tables 4-7\n"
        f"[recounted](docs/tables-4-7.md) cell by cell, {near} of {len(cells)} within 2 %; "
        "[what reproduces](docs/reproduction.md), what does not, why."
    )


def demo_table() -> str:
    """What examples/demo.py prints at its end, but for the seconds, in cells of its own making."""
    sys.path.append(str(ROOT / "examples"))
    import demo

    runs = [demo.Run(**row) for row in results("examples.json")["demo"]]
    heads, *rows = (row[:-1] for row in demo.cells(runs))
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def recipe() -> str:
    """A run of a recipe: the command and what it printed."""
    run = results("examples.json")["recipe"]
    command = " \\\n      ".join(run["command"])
    return "\n".join(["```", f"$ python {command}", *run["printed"], "```"])


TABLES: dict[str, Callable[[], str]] = {
    "corruption-speed": corruption_speed,
    "corruption-strength": corruption_strength,
    "corruption-strength-c-bar": c_bar_strength,
    "cells-reproduced": cells_reproduced,
    "cells-near": cells_near,
    "corruption-strength-source": lambda: source("corruption_strength.json"),
    "demo": demo_table,
    "recipe": recipe,
    "examples-source": lambda: source("examples.json"),
}
