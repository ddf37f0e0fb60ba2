"""The section on low sparsity of docs/tables-8-12.md, and its figures (the paper's 9 to 11)."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import low_sparsity
from robustness_numbers import (
    LABELS,
    Line,
    Read,
    chance,
    made,
    per_seed,
    seeds_of,
    spread,
    table,
    verdict,
    whole_seeds,
)  # fmt: skip
from runner import finished

from sparseopt.robustness import RobustnessReport

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
# Table 4, training FLOPs of VGG16 as a share of the dense 1.51e16
PAPER_TABLE_4 = {
    "set": {0.3: 1.06, 0.5: 0.76, 0.7: 0.46},
    "rigl": {0.3: 1.06, 0.5: 0.76, 0.7: 0.46},
    "mest_r": {0.3: 1.17, 0.5: 0.84, 0.7: 0.51},
    "mest_g": {0.3: 1.17, 0.5: 0.84, 0.7: 0.51},
    "granet_r": {0.3: 1.09, 0.5: 0.85, 0.7: 0.68},
    "granet_g": {0.3: 1.09, 0.5: 0.85, 0.7: 0.68},
}


def robustness(name: str) -> Read:
    return lambda line: float(line["result"][name]["robustness"])


def clean(line: Line) -> float:
    return float(line["result"]["cifar"]["clean"])


def low_sparsity_rows(lines: Sequence[Line]) -> list[list[str]]:
    """A row for each network: accuracy, robustness, and the cost of its training."""
    rows = []
    for method, sparsity in low_sparsity.CELLS:
        own = {"method": method, "sparsity": sparsity}
        share = per_seed(lines, lambda line: 100 * float(line["result"]["share"]), **own)
        paper = PAPER_TABLE_4.get(method, {}).get(sparsity)
        rows.append(
            [
                LABELS[method],
                f"{sparsity:g}",
                spread(per_seed(lines, clean, **own)),
                *against_dense(lines, "cifar", own),
                *against_dense(lines, "imagenet", own),
                f"{statistics.mean(share):.0f} %",
                f"{100 * paper / 1.51:.0f} %" if paper else "100 %",
            ]
        )
    return rows


def section_low_sparsity(lines: Sequence[Line]) -> str:
    heads = [
        "method", "S", "clean", "19 × 5, CIFAR's constants", "against dense",
        "19 × 5, ImageNet's constants", "against dense", "training FLOPs", "Table 4, VGG16",
    ]  # fmt: skip
    return "\n".join(
        [
            "## Low sparsity: a small VGG on Fashion-MNIST (Figures 9-11)\n",
            "Dense and the paper's six methods at the sparsities where it finds dynamic sparse "
            "training more robust than dense training. Fashion-MNIST padded to 32 × 32 pixels, "
            f"{low_sparsity.IMAGES:,} training images, {low_sparsity.EPOCHS} epochs, a VGG of five "
            f"convolutions; {low_sparsity.TESTED} test images under every corruption and severity, "
            f"all 10,000 clean. {seeds_of(lines).capitalize()}. The paper prints no numbers for "
            "this; its training FLOPs for VGG16, as shares of dense, stand beside ours.\n",
            *table(heads, low_sparsity_rows(lines)),
            *low_sparsity_claims(lines),
            "",
            "![Robustness against training FLOPs](figures/low-sparsity-flops.png)\n",
            "Each circle is a method at one sparsity, its area the number of parameters, its bar "
            "the standard deviation over seeds (Figure 9).\n",
            "![Relative gain, random growth](figures/low-sparsity-gains-random.png)\n",
            "![Relative gain, gradient growth](figures/low-sparsity-gains-gradient.png)\n",
            "Relative gain over dense at sparsity 0.5 by corruption and severity, CIFAR's "
            "constants, accuracies averaged over seeds (Figures 10 and 11).\n",
            made(lines, "low_sparsity", low_sparsity.DATA),
        ]
    )


def against_dense(lines: Sequence[Line], name: str, own: dict[str, Any]) -> tuple[str, str]:
    """Robustness, and what it gains over dense with the p of the paired test."""
    ours = per_seed(lines, robustness(name), **own)
    dense = per_seed(lines, robustness(name), method="dense")
    if own["method"] == "dense" or len(ours) < 2:
        return spread(ours), "–"
    gain = statistics.mean(ours) - statistics.mean(dense)
    return spread(ours), f"{gain:+.2f} (p = {chance(ours, dense):.2f})"


def low_sparsity_claims(lines: Sequence[Line]) -> list[str]:
    """What the paper claims of these networks, and what these runs say."""
    said = [
        "Claim: *a sparse network is at least as robust as the dense one*. Answers for the mean "
        "over the six methods, and how many of them are above dense on their own:",
        "",
    ]
    for name, words in (("cifar", "CIFAR's constants"), ("imagenet", "ImageNet's constants")):
        read = robustness(name)
        dense = per_seed(lines, read, method="dense")
        for sparsity in low_sparsity.SPARSITIES:
            sparse = per_seed(lines, read, sparsity=sparsity)
            single = [
                statistics.mean(per_seed(lines, read, method=method, sparsity=sparsity))
                for method in low_sparsity.METHODS
            ]
            above = sum(value > statistics.mean(dense) for value in single)
            said.append(
                f"- {words}, S = {sparsity:g}: {verdict(sparse, dense)}; {above} of {len(single)} "
                "methods above."
            )
    ours, others = harsh_gains(lines), other_gains(lines)
    said += [
        "",
        "Claim: *the advantage is more pronounced for severe high-frequency corruption* (A.4). "
        "Mean relative gain at S = 0.5 over the four noises at severity 5, against all other "
        f"cells: {statistics.mean(ours):+.2f} % against {statistics.mean(others):+.2f} %; "
        f"{verdict(ours, others)}.",
        "",
        "Claim: *the most expensive network is not the most robust one* (A.3.2). " + dearest(lines),
    ]
    return said


def gains(lines: Sequence[Line], chosen: Callable[[str, int], bool]) -> list[float]:
    """Per seed: relative gain in % over dense at S = 0.5, mean over methods and chosen cells."""
    found = []
    for seed in sorted({line["run"]["seed"] for line in lines}):
        own = [line for line in lines if line["run"]["seed"] == seed]
        dense = next(line for line in own if line["run"]["method"] == "dense")
        base = dense["result"]["cifar"]["cells"]
        found.append(
            statistics.mean(
                100 * (value - base[name][level]) / base[name][level]
                for line in own
                if line["run"]["sparsity"] == 0.5
                for name, row in line["result"]["cifar"]["cells"].items()
                for level, value in enumerate(row)
                if chosen(name, level + 1)
            )
        )
    return found


def harsh_gains(lines: Sequence[Line]) -> list[float]:
    return gains(lines, lambda name, severity: name in NOISE and severity == 5)


def other_gains(lines: Sequence[Line]) -> list[float]:
    return gains(lines, lambda name, severity: not (name in NOISE and severity == 5))


def dearest(lines: Sequence[Line]) -> str:
    """Where the dense network stands among all, on both sets."""
    said = []
    for name, words in (("cifar", "CIFAR's constants"), ("imagenet", "ImageNet's constants")):
        means = {
            cell: statistics.mean(
                per_seed(lines, robustness(name), method=cell[0], sparsity=cell[1])
            )
            for cell in low_sparsity.CELLS
        }
        ranked = sorted(means, key=lambda cell: -means[cell])
        place, (method, sparsity) = ranked.index(("dense", 0.0)) + 1, ranked[0]
        said.append(
            f"With {words} the dense network is number {place} of {len(ranked)}; the first is "
            f"{LABELS[method]}{f' at S = {sparsity:g}' if sparsity else ''}."
        )
    return " ".join(said)


# --- figures ------------------------------------------------------------------------------------


def mean_report(lines: Sequence[Line], **wanted: Any) -> RobustnessReport:
    """Accuracy of every cell, averaged over seeds."""
    rows = [
        line["result"]["cifar"]["cells"]
        for line in lines
        if all(line["run"][key] == value for key, value in wanted.items())
    ]
    accuracy = {
        name: {
            level + 1: statistics.mean(row[name][level] for row in rows) / 100 for level in range(5)
        }
        for name in rows[0]
    }
    return RobustnessReport("Fashion-MNIST, CIFAR's constants", accuracy)


def figure_gains(lines: Sequence[Line], methods: Sequence[str], path: Path) -> None:
    """Heat maps of the relative gain over dense, one below the other (Figures 10 and 11)."""
    from matplotlib import pyplot

    dense = mean_report(lines, method="dense")
    figure, axes = pyplot.subplots(len(methods), 1, figsize=(11, 9), layout="constrained")
    for axis, method in zip(axes, methods, strict=True):
        mean_report(lines, method=method, sparsity=0.5).plot(dense, axis)
        axis.set_title(f"{LABELS[method]}, sparsity 0.5", fontsize=10)
        if axis is not axes[-1]:
            axis.set_xticklabels([])
    maps = [axis.images[0] for axis in axes]
    largest = max(max(abs(limit) for limit in one.get_clim()) for one in maps)
    for one in maps:
        one.set_clim(-largest, largest)  # one scale for all
        for text in one.axes.texts:
            dark = abs(float(text.get_text())) > 0.6 * largest
            text.set_color("white" if dark else "black")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


COLORS = ("0.2", "tab:blue", "tab:orange", "tab:green", "tab:olive", "tab:red", "tab:purple")


def figure_flops(lines: Sequence[Line], path: Path) -> None:
    """Robustness against training FLOPs; the area is the number of parameters (Figure 9)."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, (name, words) in zip(
        axes, (("cifar", "CIFAR's constants"), ("imagenet", "ImageNet's constants")), strict=True
    ):
        for method, color in zip(LABELS, COLORS, strict=True):
            for sparsity in (0.0,) if method == "dense" else low_sparsity.SPARSITIES:
                draw(axis, lines, robustness(name), method, sparsity, color)
        dense = statistics.mean(per_seed(lines, robustness(name), method="dense"))
        axis.axhline(dense, color="0.6", linewidth=1, linestyle=":", zorder=0)
        axis.set_title(f"19 × 5, {words}", fontsize=10)
        axis.set_xlabel("training FLOPs")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("robustness accuracy, %")
    axes[1].legend(fontsize=8, frameon=False, markerscale=0.6, loc="center left",
                   bbox_to_anchor=(1, 0.5))  # fmt: skip
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def draw(
    axis: Any, lines: Sequence[Line], read: Read, method: str, sparsity: float, color: str
) -> None:
    own = {"method": method, "sparsity": sparsity}
    values = per_seed(lines, read, **own)
    flops = statistics.mean(
        per_seed(lines, lambda line: float(line["result"]["training_flops"]), **own)
    )
    size = statistics.mean(per_seed(lines, lambda line: float(line["result"]["parameters"]), **own))
    label = LABELS[method] if sparsity in (0.0, low_sparsity.SPARSITIES[0]) else None
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    axis.errorbar(flops, statistics.mean(values), deviation, color=color, linewidth=1, alpha=0.5)
    axis.scatter(flops, statistics.mean(values), s=size / 400, color=color, alpha=0.6, label=label)


def figures(folder: Path) -> None:
    lines = whole_seeds(finished(low_sparsity.DATA), len(low_sparsity.CELLS))
    if not lines:
        return
    figure_flops(lines, folder / "low-sparsity-flops.png")
    random, gradient = ("set", "mest_r", "granet_r"), ("rigl", "mest_g", "granet_g")
    figure_gains(lines, random, folder / "low-sparsity-gains-random.png")
    figure_gains(lines, gradient, folder / "low-sparsity-gains-gradient.png")
