"""How the run went: charts of density, churn, exploration, drop fraction and cost."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from ..flops import LiveCost, inference_flops
from ..flops.live import due_steps
from ..history import Record
from ..optimizer import SparseOptimizer
from .charts import Series, lines, percent, thinned
from .elements import figure, note, section, tag

__all__ = ["MOST_COLUMNS", "no_update", "over_time"]

MOST_COLUMNS = 120  # of what changes over time


def over_time(opt: SparseOptimizer, live: LiveCost | None) -> Element:
    """Density, churn, exploration, drop fraction and cost, over optimizer steps."""
    begun, found = opt._run.densities[0]
    late = note(f"The record starts at step {begun:,}.") if begun else None
    lost = sorted(found.keys() - opt.masks.keys())
    words = f"The record names layers that this optimizer does not have: {', '.join(lost)}."
    charts = [_density(opt), _churn(opt), _exploration(opt), _drop_fraction(opt)]
    if live is not None:
        charts.append(_flops(opt, live))
    more = note(words) if lost else None
    return section("Over time", late, more, tag("div", *charts, class_="grid"))


def overall(opt: SparseOptimizer) -> list[tuple[float, float]]:
    """(step, density of all layers that there were)."""
    sizes = {layer.name: layer.numel for layer in opt.layers}
    points: list[tuple[float, float]] = []
    for step, found in opt._run.densities:
        known = {name: sizes[name] for name in found if name in sizes}
        active = sum(size * found[name] for name, size in known.items())
        if active:
            points.append((step, active / sum(known.values())))
    return points


def _density(opt: SparseOptimizer) -> Element:
    points, target = overall(opt), 1.0 - opt.algorithm.sparsity
    end = max(opt.steps, 1)
    series = [
        Series("density", points, stepped=True),
        Series("target", [(0, target), (end, target)], dashed=True),
    ]
    alt = f"Density over {opt.steps:,} steps, {percent(opt.density)} now"
    several = len(opt._pools) > 1
    more = note("Groups with a sparsity of their own have another target.") if several else None
    return figure("Density", lines(alt, series, end), more)


def before(record: Record) -> int:
    """Active weights before an update."""
    return record.nnz + record.dropped - record.grown


def _churn(opt: SparseOptimizer) -> Element:
    made = [record for record in opt.history if not record.skipped]
    if not made:
        return figure("Churn", note(no_update(opt)))
    left = [(r.step, (r.dropped - r.regrown) / max(before(r), 1)) for r in made]
    new = [(r.step, (r.grown - r.regrown) / max(r.nnz, 1)) for r in made]
    series = [
        Series("new among the active", new, marked=True),
        Series("gone of those before", left, marked=True),
    ]
    alt = f"Churn of {len(made):,} updates; at the last one {percent(new[-1][1])} were new"
    return figure("Churn at each update", lines(alt, series, opt.steps))


def no_update(opt: SparseOptimizer) -> str:
    due = [
        step
        for pool in opt._pools
        for step in due_steps(pool, opt.steps, opt.total_steps or opt.steps + opt.update_every,
                              opt.total_steps, opt.update_every)[:1]
    ]  # fmt: skip
    then = f"the next is due at step {min(due):,}" if due else "none is due"
    return f"No topology update so far; {then}."


def _exploration(opt: SparseOptimizer) -> Element:
    if not opt.history:
        return figure("Exploration", note(no_update(opt)))
    updates = [(record.step, record.exploration_rate) for record in opt.history]
    points = [*overall(opt)[:1], *updates]
    alt = f"Share of weights that were ever active: {percent(points[-1][1])} at the last update"
    series = [Series("ever active, of all weights", points, stepped=True)]
    return figure("Exploration (in-time over-parametrisation)", lines(alt, series, opt.steps))


def _drop_fraction(opt: SparseOptimizer) -> Element:
    algorithm, every, last = opt.algorithm, opt.update_every, opt.total_steps or opt.steps
    made = [(r.step, r.dropped / max(before(r), 1)) for r in opt.history if not r.skipped]
    planned = []
    for step in due_steps(opt._pools[0], 0, last, opt.total_steps, every):
        levels = algorithm.levels(step, opt.total_steps, every)
        pruned = 0.0 if levels.pruned is None else 1.0 - levels.pruned / levels.density
        planned.append((step, max(levels.fraction, pruned)))
    if not planned and not made:
        return figure("Drop fraction", note(no_update(opt)))
    series = [Series("dropped", made, marked=True), Series("to be exchanged", planned, dashed=True)]
    extent = f"{percent(planned[0][1])} to {percent(planned[-1][1])}" if planned else "nothing"
    alt = f"Planned drop fraction: {extent}; dropped at {len(made):,} updates"
    falls = algorithm.ramps or algorithm.density.events(opt.total_steps or 0)
    more = note("Pruning to a falling density adds to what is exchanged.") if falls else None
    end = max(last, made[-1][0] if made else 0)
    return figure("Drop fraction", lines(alt, series, end), more)


def _flops(opt: SparseOptimizer, live: LiveCost) -> Element:
    dense = live.cost.flops
    if not dense:
        return figure("FLOPs", note("None of the model's operators has a count."))
    points = [
        (step, inference_flops(live.cost, densities) / dense)
        for step, densities in thinned(opt._run.densities, MOST_COLUMNS)
    ]
    alt = f"FLOPs of one sample against dense: {percent(live.share)} now"
    series = [Series("forward pass, of dense", points, stepped=True)]
    return figure("FLOPs", lines(alt, series, max(opt.steps, 1)))
