"""Tables and sentences about corruptions and examples; docs/tables.py puts them into the pages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def results(file: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / file).read_text())
    return found


def source(file: str) -> str:
    machine = results(file)["machine"]
    return (
        f"`{machine['command']}`, commit {machine['commit']}, torch {machine['torch']}, "
        f"{machine['processor']}, {machine['threads']} thread, {machine['date']}."
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


TABLES: dict[str, Callable[[], str]] = {
    "corruption-speed": corruption_speed,
    "corruption-strength": corruption_strength,
    "corruption-strength-c-bar": c_bar_strength,
    "corruption-strength-source": lambda: source("corruption_strength.json"),
}
