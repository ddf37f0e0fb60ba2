"""Tables of what sparse compute gains, from data files; docs/tables.py puts them into the pages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from measured import results, source

AIMS = {
    8: {0.9: 3.0, 0.95: 5.5, 0.97: 8.0},
    32: {0.9: 2.0, 0.95: 3.5, 0.97: 5.0},
    128: {0.9: 1.8, 0.95: 3.2, 0.97: 4.5},
}
"""Times as fast as dense, by batch size and sparsity."""


def beside_sparselab() -> str:
    """Speed-up of whole steps with RigL over dense, ours / sparselab; the faster one is bold."""
    rows = results("compute.json")["rows"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    lines = ["| optimizer | S |" + "".join(f" batch {batch} |" for batch in batches)]
    lines.append("|---" * (2 + len(batches)) + "|")
    for one in dict.fromkeys((row["optimizer"], row["sparsity"]) for row in rows):
        of = {row["batch"]: row["speedup"] for row in rows
              if (row["optimizer"], row["sparsity"]) == one}  # fmt: skip
        pairs = [(of[batch][name]["ratio"] for name in WITH_RIGL) for batch in batches]
        cells = [" / ".join(larger_in_bold(*pair)) for pair in pairs]
        lines.append(f"| {one[0]} | {one[1]} | {' | '.join(cells)} |")
    return "\n".join(lines)


WITH_RIGL = ("sparse", "sparselab_rigl")


def larger_in_bold(ours: float, theirs: float) -> list[str]:
    shown = [f"{ours:.2f}", f"{theirs:.2f}"]
    first = 0 if ours >= theirs else 1
    shown[first] = f"**{shown[first]}**"
    return shown


def compute(file: str, optimizer: str) -> Callable[[], str]:
    """Speed-up of whole steps over the default dense optimizer: ours and the others, a column."""

    def table_of() -> str:
        heads = ["batch", "S", "dense step, ms", "updates, ms", '`compute="auto"`', "sparselab"]
        heads += ['`"auto"`, no updates', "sparselab, no updates", "dense, fused optimizer"]
        lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for row in results(file)["rows"]:
            if row["optimizer"] == optimizer:
                lines.append(f"| {' | '.join(compute_row(row))} |")
        return "\n".join(lines)

    return table_of


def compute_row(row: dict[str, Any]) -> list[str]:
    dense, speedup = row["milliseconds"]["dense"], row["speedup"]
    with_rigl = larger_in_bold(*(speedup[name]["ratio"] for name in WITH_RIGL))
    still = larger_in_bold(dense / row["step_without_updates"], speedup["sparselab"]["ratio"])
    updates = " / ".join(f"{row['update_milliseconds'][name]:.0f}" for name in WITH_RIGL)
    fused = f"{speedup['fused']['ratio']:.2f}"
    of = [str(row["batch"]), str(row["sparsity"]), f"{dense:.1f}", updates]
    return [*of, *with_rigl, *still, fused]


def reached() -> dict[tuple[int, float], float]:
    """Times as fast as dense with SGD, updates included, by batch size and sparsity."""
    return {
        (row["batch"], row["sparsity"]): row["speedup"]["sparse"]["ratio"]
        for row in results("compute.json")["rows"]
        if row["optimizer"] == "SGD momentum"
    }


def compute_first() -> str:
    """The sentence of the README's first screen."""
    of = reached()
    few, many = of[(8, 0.95)], of[(128, 0.95)]
    return (
        f"  At 95 % sparsity whole training steps of an MLP run {few:.1f} times as fast as dense "
        f"ones at batch 8 and\n  {many:.1f} times at batch 128, updates included."
    )


def aims() -> str:
    """What was aimed at, and what was reached with updates."""
    lines = ["| batch | " + " | ".join(f"S = {s}: aim | reached" for s in AIMS[8]) + " |"]
    lines.append("|---" * 7 + "|")
    of = reached()
    for batch, wanted in AIMS.items():
        cells = [f"{aim:.1f} | {of[batch, s]:.1f}" for s, aim in wanted.items()]
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory() -> str:
    """MiB that a training step needs beyond what is held before it."""
    rows = results("compute-memory.json")["rows"]
    names = {"dense": "dense AdamW", "fused": "fused", "sparse": "sparseopt"}
    names |= {"update": "sparseopt, a step with a RigL update", "sparselab": "sparselab"}
    lines = [f"| MiB | {' | '.join(names.values())} |", "|---" * (1 + len(names)) + "|"]
    for row in rows:
        cells = [f"{row['megabytes'][name]:.1f}" for name in names]
        lines.append(f"| S = {row['sparsity']}, batch {row['batch']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def called() -> str:
    """The sentence on a feed-forward part that is no sequence."""
    file = "compute-called.json"
    longer: dict[float, list[int]] = {}
    for row in results(file)["rows"]:
        ratio = row["step_without_updates"] / row["milliseconds"]["sequence"]
        longer.setdefault(row["sparsity"], []).append(round(100 * (ratio - 1)))
    shown = " and ".join(f"{min(of)} to {max(of)} % at S = {s}" for s, of in longer.items())
    return (
        "The feed-forward part is an `nn.Sequential`. Where a `forward` calls its layers itself, "
        f"our steps take longer:\nby {shown} ({source(file).rstrip('.')})."
    )


def convolutions() -> str:
    """The sentence on convolutions as products of unfolded inputs."""
    rows = results("compute-convolutions.json")["rows"]

    def ratios(kernel: int) -> str:
        found = [r["speedup"]["ratio"] for r in rows if r["convolution"][-1] == kernel]
        return f"{min(found):.1f} to {max(found):.1f}"

    sparsities = [row["sparsity"] for row in rows]
    return (
        f"As CSR products of unfolded inputs, forward only, 1×1 convolutions would run {ratios(1)} "
        f"times as fast as\ndense ones at S = {min(sparsities)} to {max(sparsities)}, and 3×3 ones "
        f"{ratios(3)} times\n"
        f"({source('compute-convolutions.json').rstrip('.')})."
    )


TABLES: dict[str, Callable[[], str]] = {
    "beside-sparselab": beside_sparselab,
    "compute-source": lambda: source("compute.json"),
    "compute-sgd": compute("compute.json", "SGD momentum"),
    "compute-adamw": compute("compute.json", "AdamW"),
    "compute-first": compute_first,
    "compute-aims": aims,
    "compute-block": compute("compute-block.json", "SGD momentum"),
    "compute-called": called,
    "compute-block-source": lambda: source("compute-block.json"),
    "compute-two": compute("compute-two.json", "SGD momentum"),
    "compute-two-source": lambda: source("compute-two.json"),
    "compute-memory": memory,
    "compute-memory-source": lambda: source("compute-memory.json"),
    "compute-convolutions": convolutions,
}
