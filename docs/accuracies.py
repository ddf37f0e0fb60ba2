"""Tables of docs/choosing.md and README.md on accuracy; docs/tables.py puts them into the pages."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sparseopt import Algorithm, algorithms, available

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
NETWORKS = ("mlp", "cnn")


def accuracies(file: str, **wanted: Any) -> list[float]:
    """The accuracy of every seed, in percent."""
    lines = (RESULTS / file).read_text().splitlines()
    return [
        run["result"]["accuracy"]
        for run in map(json.loads, lines)
        if all(run["run"][key] == value for key, value in wanted.items())
    ]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}"


def accuracy() -> str:
    """Dense beside three methods at two sparsities."""

    def cell(recipe: str, sparsity: float) -> str:
        found = accuracies("accuracy.jsonl", network="mlp", recipe=recipe, sparsity=sparsity)
        return spread(found)

    rows = ["| | dense | `static` | `set` | `rigl` |", "|---|---|---|---|---|"]
    for sparsity in (0.9, 0.98):
        cells = [cell("dense", 0.0), *(cell(name, sparsity) for name in ("static", "set", "rigl"))]
        rows.append(f"| S = {sparsity} | {' | '.join(cells)} |")
    return "\n".join(rows)


def choosing() -> str:
    """What every recipe costs, and how far below dense it ends, in points of accuracy."""
    places = [(network, sparsity) for network in NETWORKS for sparsity in (0.5, 0.9, 0.98)]
    heads = [f"{network.upper()} {sparsity}" for network, sparsity in places]
    rows = [
        f"| recipe | starts at | mean density | dense gradients | {' | '.join(heads)} |",
        "|---" * (4 + len(places)) + "|",
    ]
    for recipe in available():
        made = algorithm_of(recipe, 0.9)
        cells = [f"{made.density(0.0):.2f}", f"{mean_density(made):.2f}", dense_gradients(made)]
        cells += [below_dense(recipe, *place) for place in places]
        rows.append(f"| [`{recipe}`](algorithms/{recipe}.md) | {' | '.join(cells)} |")
    return "\n".join(rows)


def algorithm_of(recipe: str, sparsity: float) -> Algorithm:
    make = algorithms.find(recipe)
    return make(0.5, n=2, m=4) if recipe == "nm" else make(sparsity)


def mean_density(made: Algorithm) -> float:
    return statistics.mean(made.density(step / 1000) for step in range(1000))


def dense_gradients(algorithm: Algorithm) -> str:
    if algorithm.observe is not None:
        return "every step"
    return "at updates" if getattr(algorithm.grow, "needs_gradient", False) else "-"


def below_dense(recipe: str, network: str, sparsity: float) -> str:
    points = points_above_dense(recipe, network, sparsity)
    return "-" if points is None else f"{points:+.1f}"


def points_above_dense(recipe: str, network: str, sparsity: float) -> float | None:
    """Mean accuracy less that of the dense network; None where it was not measured."""
    found = accuracies("accuracy.jsonl", network=network, recipe=recipe, sparsity=sparsity)
    dense = accuracies("accuracy.jsonl", network=network, recipe="dense")
    return statistics.mean(found) - statistics.mean(dense) if found else None


def by_sparsity() -> str:
    """Worst and best recipe against dense, apart for those that are denser while they train."""
    heads = [f"{kind}, {n.upper()}" for kind in ("constant density", "denser") for n in NETWORKS]
    rows = [f"| S | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for sparsity in (0.5, 0.9, 0.95, 0.98):
        cells = [
            worst_and_best(network, sparsity, denser)
            for denser in (False, True)
            for network in NETWORKS
        ]
        rows.append(f"| {sparsity} | {' | '.join(cells)} |")
    return "\n".join(rows)


def worst_and_best(network: str, sparsity: float, denser: bool) -> str:
    points = [
        points_above_dense(recipe, network, sparsity)
        for recipe in available()
        if is_denser(recipe) == denser
    ]
    found = sorted(value for value in points if value is not None)
    return f"{found[0]:+.1f} to {found[-1]:+.1f}"


def is_denser(recipe: str) -> bool:
    """Whether it holds more weights than asked for in training; the tenth of MEST is not meant."""
    made = algorithm_of(recipe, 0.9)
    return mean_density(made) > 1.2 * made.density(1.0)


def by_distribution() -> str:
    """Accuracy with the same number of weights, shared out in three ways."""
    names = ("uniform", "er", "erk")
    rows = [f"| | recipe | S | {' | '.join(names)} |", "|---" * 6 + "|"]
    for network in NETWORKS:
        for recipe in ("set", "rigl", "gmp", "chts"):
            for sparsity in (0.9, 0.98):
                wanted = {"network": network, "recipe": recipe, "sparsity": sparsity}
                cells = [
                    spread(accuracies("distributions.jsonl", distribution=name, **wanted))
                    for name in names
                ]
                line = [network.upper(), f"`{recipe}`", str(sparsity), *cells]
                rows.append(f"| {' | '.join(line)} |")
    return "\n".join(rows)


TABLES: dict[str, Callable[[], str]] = {
    "accuracy": accuracy,
    "choosing": choosing,
    "by-sparsity": by_sparsity,
    "by-distribution": by_distribution,
}
