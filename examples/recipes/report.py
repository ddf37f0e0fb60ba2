"""What a finished run reports: its cost in FLOPs, its accuracy on corrupted inputs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparseopt
from sparseopt import SparseOptimizer, flops, robustness


def cost(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shape: tuple[int, ...],
    steps: int,
    batch_size: float,
    *,
    planned: bool = False,
) -> flops.RunCost:
    """What a run costs, beside the same run dense.

    Args:
        model, optimizer: Those of the run.
        shape: Of one input.
        steps: Optimizer steps of the run, for a dense one.
        batch_size: Mean number of samples of a step.
        planned: The whole run as its schedules have it, instead of the steps that were taken.
    """
    one = torch.zeros(1, *shape, device=next(model.parameters()).device)
    if isinstance(optimizer, SparseOptimizer):
        live = optimizer.flops(one, model=model, batch_size=batch_size)
        found = live.projected if planned else live.so_far
        assert found is not None  # the length of the run is known
        return found
    return flops.run_cost(flops.count(model, one), [(0, {})], steps, batch_size)


def write_cost(run: flops.RunCost, path: Path) -> None:
    """The cost as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(run) | {"share": run.share}, indent=2) + "\n")


def text(run: flops.RunCost) -> str:
    """The cost in four lines."""
    return (
        f"training FLOPs    {run.training:.4g}, {100 * run.share:.1f} % of dense\n"
        f"for growth        {run.growth:.4g} more\n"
        f"inference FLOPs   {run.inference:.4g} per sample\n"
        f"parameters        {run.parameters:,}"
    )


def page(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    shape: tuple[int, ...],
    batch_size: float,
    path: Path,
) -> None:
    """The page about a sparse run; a dense one has none."""
    if isinstance(optimizer, SparseOptimizer):
        one = torch.zeros(1, *shape, device=next(model.parameters()).device)
        sparseopt.report(optimizer, path, inputs=one, model=model, batch_size=batch_size)


def robust(
    model: nn.Module,
    sets: Iterable[robustness.CorruptionSet],
    clean: Any,
    folder: Path,
    *,
    batch_size: int,
    workers: int,
) -> dict[str, Any]:
    """A report for every corruption set, also written as robustness-NAME.json."""
    reports = {}
    for one in sets:
        found = robustness.evaluate(
            model, one, clean=clean, batch_size=batch_size, workers=workers,
            progress=sys.stderr.isatty(),
        )  # fmt: skip
        name = one.name.split(" (")[0].replace(" ", "-")
        found.to_json(folder / f"robustness-{name}.json")
        reports[one.name] = found
    return reports
