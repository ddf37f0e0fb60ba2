"""The other parts of the page: what the run is, what there is now, what it was told."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
import torch

import sparseopt

from ..flops import LiveCost
from ..gathered import gathered
from ..history import Record
from ..layers import Layer
from ..optimizer import SparseOptimizer
from ..positions import count
from .charts import layers_over_time, percent, thinned
from .elements import Node, figure, note, section, table, tag
from .over_time import MOST_COLUMNS, no_update
from .pictures import as_image, layer_picture, scale, shape_of

__all__ = ["Seen", "cost", "filters", "layers", "look", "settings", "top", "updates"]

MOST_UPDATES = 200


@dataclass(frozen=True)
class Seen:
    """What the page says of one layer.

    Attributes:
        layer: The layer of the optimizer.
        number: Its row in the table, from 1.
        start: Density at the start; None where that is not on record.
        ever: Share of its weights that were ever active.
        empty: How many of its filters have no active weight.
        finite: Whether all of its weights are numbers.
        picture: Where its weights lie; None where it was left out.
    """

    layer: Layer
    number: int
    start: float | None
    ever: float
    empty: int
    finite: bool
    picture: Element | None


def look(opt: SparseOptimizer, pictures: int) -> list[Seen]:
    """Look at every layer once, whole; pictures of at most that many, evenly chosen."""
    first = opt._run.densities[0][1]
    filled = [layer.name for layer in opt.layers if layer.numel]
    pictured = set(thinned(filled, pictures)) if pictures else set()
    return [
        _seen(number, layer, first.get(layer.name), layer.name in pictured)
        for number, layer in enumerate(opt.layers, 1)
    ]


def _seen(number: int, layer: Layer, start: float | None, pictured: bool) -> Seen:
    whole = gathered(layer)
    filled = whole.mask.flatten(1).any(1)
    return Seen(
        layer=layer,
        number=number,
        start=start,
        ever=count(whole.extras["ever_active"]) / layer.numel if layer.numel else 1.0,
        empty=len(filled) - count(filled),
        finite=bool(whole.weight.detach().isfinite().all()),
        picture=layer_picture(number, whole) if pictured else None,
    )


def top(opt: SparseOptimizer, title: str, written: str, live: LiveCost | None) -> list[Node]:
    """What run this is, in numbers."""
    active, of = sum(layer.nnz for layer in opt.layers), sum(layer.numel for layer in opt.layers)
    steps = f"{opt.steps:,}" + (f" of {opt.total_steps:,}" if opt.total_steps else "")
    tiles = [
        ("sparsity now", percent(opt.sparsity), f"target {percent(opt.algorithm.sparsity)}"),
        ("active weights", f"{active:,}", f"of {of:,} in {several(len(opt.layers), 'layer')}"),
        ("optimizer steps", steps, "" if opt.total_steps else "total_steps not given"),
        ("topology updates", f"{opt.updates:,}", skipped_in_words(opt.history)),
        ("exploration rate", percent(explored(opt)), "of the weights were ever active"),
    ]
    if live is None:
        tiles.append(("training FLOPs", "not counted", "needs inputs="))
    else:
        share = f"{percent(live.so_far.share)} of dense" if opt.steps else "no step yet"
        tiles.append(("training FLOPs", f"{live.so_far.training:.4g}", share))
    boxes = [
        tag("div", tag("span", name), tag("b", value), tag("span", more), class_="tile")
        for name, value, more in tiles
    ]
    return [tag("h1", title), tag("p", written, class_="soft"), tag("div", *boxes, class_="tiles")]


def several(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def explored(opt: SparseOptimizer) -> float:
    """The share of weights that were ever active, as of the last update."""
    return opt.history[-1].exploration_rate if opt.history else opt.density


def skipped_in_words(history: Sequence[Record]) -> str:
    skipped = sum(record.skipped for record in history)
    return f"{skipped:,} skipped: values were not finite" if skipped else "none skipped"


# --- what there is now ----------------------------------------------------------------------------


def layers(opt: SparseOptimizer, seen: Sequence[Seen]) -> Element:
    """Every layer in a row, and its density over time."""
    head = ("layer", "no.", "shape", "weights", "active", "density", "at the start", "ever active",
            "empty filters")  # fmt: skip
    rows = [
        (one.layer.name, f"{one.number}", shape_of(one.layer), f"{one.layer.numel:,}",
         f"{one.layer.nnz:,}", percent(one.layer.density),
         "not recorded" if one.start is None else percent(one.start), percent(one.ever),
         f"{one.empty:,} of {one.layer.shape[0]:,}")
        for one in seen
    ]  # fmt: skip
    active, of = sum(one.layer.nnz for one in seen), sum(one.layer.numel for one in seen)
    total = ("total", "", "", f"{of:,}", f"{active:,}", percent(opt.density), "", "", "")
    broken = [one.layer.name for one in seen if not one.finite]
    return section(
        "Layers",
        note(f"Weights that are not finite in: {', '.join(broken)}.") if broken else None,
        _layers_over_time(opt),
        table(head, [*rows, total]),
        tag("p", "A filter is a row of the weight (its first axis); empty: without any active "
            "weight. What is not in this table is dense.", class_="soft"),
    )  # fmt: skip


def _layers_over_time(opt: SparseOptimizer) -> Element:
    record, names = opt._run.densities, [layer.name for layer in opt.layers]
    if len(record) == 1:
        return note("The density of every layer is what it was at the start.")
    end = max(opt.steps, 1)
    places = [end * (column + 0.5) / MOST_COLUMNS for column in range(MOST_COLUMNS)]
    held = [[step for step, _ in record if step <= place] for place in places]
    columns = [record[max(len(one), 1) - 1][1] for one in held]
    shares = torch.tensor([[column.get(name, 0.0) for column in columns] for name in names])
    highest = max(float(shares.max()), 1e-9)
    alt = f"Density of {len(names)} layers over {opt.steps:,} steps; the table has the numbers"
    chart = layers_over_time(alt, as_image(shares, highest), len(names), end)
    keys = tag("p", scale(highest), class_="keys")
    return tag("div", figure("Density of every layer (numbers as in the table)", chart, keys),
               class_="grid")  # fmt: skip


def filters(seen: Sequence[Seen]) -> Element:
    """Pictures of where the active weights lie."""
    pictures = [one.picture for one in seen if one.picture is not None]
    left = len(seen) - len(pictures)
    what = (
        "Top: where the active weights lie, a row per output and a column per input; colour is "
        "the share that is active. Below: what every filter has."
    )
    few = f"{len(pictures)} of {len(seen)} layers, evenly chosen; pictures={len(seen)} shows all."
    return section(
        "Filters",
        tag("p", what, class_="soft") if pictures else None,
        note(few) if left and pictures else None,
        note("No pictures were asked for.") if not pictures else None,
        tag("div", *pictures, class_="grid") if pictures else None,
    )


def cost(opt: SparseOptimizer, live: LiveCost | None) -> Element:
    """FLOPs now, so far and projected."""
    if live is None:
        return section("Cost", note(
            "FLOPs were not counted: that takes a batch of inputs, as in "
            "sparseopt.report(opt, path, inputs=x)."
        ))  # fmt: skip
    rows = [
        ("one sample, now", f"{live.inference:,.0f}", f"{live.cost.flops:,}",
         percent(live.share), "")
    ]  # fmt: skip
    runs = [(f"training, {live.so_far.steps:,} steps so far", live.so_far)]
    if live.projected is not None:
        runs.append((f"training, all {live.projected.steps:,} steps (projected)", live.projected))
    for name, run in runs:
        share = percent(run.share) if run.steps else "no step yet"
        rows.append((name, f"{run.training:.4g}", f"{run.dense:.4g}", share, f"{run.growth:.4g}"))
    left_out = ", ".join(f"{name} ({calls})" for name, calls in live.cost.unsupported.items())
    return section(
        "Cost",
        table(("FLOPs", "sparse", "dense", "share", "more for growth"), rows),
        note("total_steps is not known, so nothing is projected.")
        if live.projected is None else None,
        note(f"Operators without a count: {left_out}.") if left_out else None,
        tag("p", "Counts of arithmetic, two per multiply-add, at the densities on record; masks "
            "under dense compute do not save time.", class_="soft"),
    )  # fmt: skip


# --- what it was told -----------------------------------------------------------------------------


def settings(opt: SparseOptimizer) -> Element:
    """Recipe, optimizer and versions."""
    fields = [
        (field.name, said(getattr(opt.algorithm, field.name)))
        for field in dataclasses.fields(opt.algorithm)
    ]
    compute = "dense" if opt._engine is None else said(opt._engine.compute)
    run = [
        ("recipe", opt.algorithm.name),
        ("total_steps", "not given" if opt.total_steps is None else f"{opt.total_steps}"),
        ("update_every", f"{opt.update_every}"),
        ("seed", f"{opt._run.seed}"),
        ("torch.initial_seed()", f"{torch.initial_seed()} in this process"),
        ("storage", opt._storage.name),
        ("compute", compute),
        ("layers chosen by", opt._selection.by),
        ("inner optimizer", type(opt.inner).__name__),
        *_groups(opt),
        ("devices", ", ".join(sorted({f"{layer.weight.device}" for layer in opt.layers}))),
        ("types", ", ".join(sorted({f"{layer.weight.dtype}" for layer in opt.layers}))),
        ("versions", f"sparseopt {sparseopt.__version__}, torch {torch.__version__}, "
         f"numpy {np.__version__}, Python {platform.python_version()}"),
    ]  # fmt: skip
    named = tag("h3", f"The recipe: {opt.algorithm.name}")
    return section("Settings", table((), run, 2), named, table((), fields, 2))


def _groups(opt: SparseOptimizer) -> list[tuple[str, str]]:
    """Hyperparameters of every parameter group, as far as they are plain values."""
    return [
        (f"group {number}", ", ".join(
            [several(len(group["params"]), "parameter")]
            + [f"{key}={said(value)}" for key, value in group.items()
               if key not in ("params", "param_names")]))
        for number, group in enumerate(opt.param_groups)
    ]  # fmt: skip


def said(value: Any) -> str:
    """A setting in words: names of functions, not their addresses.

    >>> from sparseopt.schedules import Constant
    >>> said(Constant(1.0 - 0.9)), said(sum), said({"0.weight": torch.ones(2, 2)})
    ('Constant(value=0.1)', 'sum', 'given for 1 layer')
    """
    if isinstance(value, Mapping):
        return f"given for {several(len(value), 'layer')}"
    if isinstance(value, torch.Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor {tuple(value.shape)}"
    if isinstance(value, type) or not callable(value):
        return f"{value:g}" if isinstance(value, float) else f"{value}"
    if not dataclasses.is_dataclass(value):
        return getattr(value, "__name__", type(value).__name__)
    parts = [f"{f.name}={said(getattr(value, f.name))}" for f in dataclasses.fields(value)]
    return f"{type(value).__name__}({', '.join(parts)})"


def updates(opt: SparseOptimizer) -> Element:
    """Every topology update in a row."""
    if not opt.history:
        return section("Updates", note(no_update(opt)))
    shown = thinned(opt.history, MOST_UPDATES)
    head = ("step", "dropped", "grown", "regrown", "active", "density", "exploration rate")
    rows = [
        (f"{r.step:,}", *(("skipped",) * 3 if r.skipped else
                          (f"{r.dropped:,}", f"{r.grown:,}", f"{r.regrown:,}")),
         f"{r.nnz:,}", percent(r.density), percent(r.exploration_rate))
        for r in shown
    ]  # fmt: skip
    few = len(shown) < len(opt.history)
    words = f"{len(shown)} of {len(opt.history):,}, evenly chosen" if few else f"all {len(shown)}"
    return section("Updates", tag("details", tag("summary", f"Show {words}"),
                                  table(head, rows, 0)))  # fmt: skip
