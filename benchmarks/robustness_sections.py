"""Sections of docs/tables-8-12.md on Tables 9 to 12 and corrupted video.

Each takes the lines of its data file and returns Markdown; nothing is typed but words and the
numbers that the paper prints. `robustness_page.py` puts the page together.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import corrupted_video
import low_sparsity
import low_sparsity_page
import table9
import table12
import tables10_11
from robustness_numbers import (
    LABELS,
    Line,
    Read,
    made,
    per_seed,
    seeds_of,
    spread,
    table,
    verdict,
    whole_seeds,
)  # fmt: skip
from runner import finished

PAPER_TABLE_9 = {("dense", False): "51.68", ("set", False): "52.60", ("dense", True): "54.75",
                 ("set", True): "54.93"}  # fmt: skip
PAPER_TABLES_10_11 = {
    "imagenet-r": {"dense": 37.84, "rigl": 40.04, "mest_g": 38.33, "granet_g": 38.46},
    "top-images": {"dense": 77.80, "rigl": 77.88, "mest_g": 78.33, "granet_g": 78.21},
    "threshold0.7": {"dense": 72.95, "rigl": 72.81, "mest_g": 73.23, "granet_g": 73.58},
    "matched-frequency": {"dense": 64.62, "rigl": 64.23, "mest_g": 64.14, "granet_g": 64.60},
    "average": {"dense": 71.79, "rigl": 71.64, "mest_g": 71.90, "granet_g": 72.13},
}
PAPER_TABLE_12 = {
    "clean pixel accuracy": {"dense 0": 85.65, "set 0.2": 85.63, "set 0.1": 85.66},
    "clean mIoU": {"dense 0": 46.34, "set 0.2": 46.69, "set 0.1": 47.10},
    "robustness pixel accuracy": {"dense 0": 76.80, "set 0.2": 77.30, "set 0.1": 77.39},
    "robustness mIoU": {"dense 0": 22.60, "set 0.2": 22.73, "set 0.1": 23.09},
}


def section_table9(lines: Sequence[Line]) -> str:
    def read(line: Line) -> float:
        return float(line["result"]["robustness"])

    def plain(line: Line) -> float:
        return float(line["result"]["clean"])

    rows, found = [], {}
    for mixup in (False, True):
        for method in ("dense", "set"):
            own = {"method": method, "mixup": mixup}
            found[method, mixup] = per_seed(lines, read, **own)
            rows.append(
                ["✓" if mixup else "×", LABELS[method], spread(per_seed(lines, plain, **own)),
                 spread(found[method, mixup]), PAPER_TABLE_9[method, mixup]]
            )  # fmt: skip
    heads = ["Mixup", "training", "clean", "robustness", "the paper, CIFAR-100-C"]
    return "\n".join(
        [
            "## Table 9: Mixup\n",
            "Stand-in: the small VGG and the settings of the section above, SET at sparsity 0.5, "
            f"19 × 5 corruptions with CIFAR's constants, {seeds_of(lines)}. The paper: ResNet34 on "
            "CIFAR-100, SET's sparsity not printed.\n",
            *table(heads, rows),
            "- Mixup makes dense training more robust: "
            f"{verdict(found['dense', True], found['dense', False])}.",
            f"- Mixup makes SET more robust: {verdict(found['set', True], found['set', False])}.",
            "- SET is at least as robust as dense, without Mixup: "
            f"{verdict(found['set', False], found['dense', False])}.",
            "- SET is at least as robust as dense, with Mixup: "
            f"{verdict(found['set', True], found['dense', True])}.\n",
            made(lines, "table9", table9.DATA),
        ]
    )


def section_tables10_11(lines: Sequence[Line]) -> str:
    methods = [method for method, _ in tables10_11.CELLS]
    rows = []
    for name, paper in PAPER_TABLES_10_11.items():
        ours = [spread(per_seed(lines, accuracy_on(name), method=method)) for method in methods]
        rows.append([name, *ours, " / ".join(f"{paper[method]:.2f}" for method in methods)])
    heads = ["set", *(LABELS[method] for method in methods), "the paper, in this order"]
    return "\n".join(
        [
            "## Tables 10 and 11: ImageNet-R and ImageNet-V2\n",
            "**A check of the pipeline, not a reproduction.** Small networks with 1,000 outputs, "
            "trained on clothes, at the paper's sparsity of 0.1; tested on folders in the two "
            "published layouts that hold filtered renditions, and selections by difficulty, of "
            f"Fashion-MNIST's test set. {seeds_of(lines).capitalize()}. What it shows: labels, "
            "folders, class indices and averages come out right; that accuracy falls from "
            "top-images to matched-frequency is how they were selected. With real folders and "
            "checkpoints: `python benchmarks/tables10_11.py --data ... --checkpoint ...`.\n",
            *table(heads, rows),
            made(lines, "tables10_11", tables10_11.DATA),
        ]
    )


def accuracy_on(name: str) -> Read:
    return lambda line: float(line["result"][name])


def section_table12(lines: Sequence[Line]) -> str:
    reads = {
        f"{when} {words}": segmentation(metric, key)
        for when, key in (("clean", "clean"), ("robustness", "robustness"))
        for words, metric in (("pixel accuracy", "pixel_accuracy"), ("mIoU", "mean_iou"))
    }
    rows, claims = [], []
    for name, read in reads.items():
        found = {
            cell: per_seed(lines, read, method=cell[0], sparsity=cell[1]) for cell in table12.CELLS
        }
        paper = [f"{value:.2f}" for value in PAPER_TABLE_12[name].values()]
        rows.append([name, *map(spread, found.values()), " / ".join(paper)])
        dense = found["dense", 0.0]
        said = [
            f"{LABELS[method]} ({sparsity:g}) {verdict(found[method, sparsity], dense)}"
            for method, sparsity in table12.CELLS[1:]
        ]
        claims.append(f"- {name}, at least that of dense: {'; '.join(said)}.")
    heads = ["metric", *(f"{LABELS[method]}{f' (S = {sparsity:g})' if sparsity else ''}"
                         for method, sparsity in table12.CELLS),
             "the paper: dense / SET 0.2 / SET 0.1"]  # fmt: skip
    return "\n".join(
        [
            "## Table 12: segmentation with a pruned backbone\n",
            "Stand-in: FCN-32s on VGG16 of an eighth of the width, its backbone trained to "
            "classify clothes, pruned by magnitude and fine-tuned sparsely on scenes of 96 × 96 "
            "pixels in VOC's layout, clothes on photographs; 19 × 5 corruptions, ImageNet's "
            f"constants; {seeds_of(lines)}. The paper: FCN-VGG16 on Pascal VOC 2012.\n",
            *table(heads, rows),
            *claims,
            "",
            made(lines, "table12", table12.DATA),
        ]
    )


def segmentation(metric: str, key: str) -> Read:
    return lambda line: float(line["result"][metric][key])


def section_video(lines: Sequence[Line]) -> str:
    methods = ("dense", "set", "rigl")
    kinds = list(lines[0]["result"]["cells"]) if lines else []
    reads: dict[str, Read] = {
        "clean": lambda line: float(line["result"]["clean"]),
        "robustness, mean of 16": lambda line: float(line["result"]["robustness"]),
        **{kind: perturbed(kind) for kind in kinds},
    }
    found = {
        name: [per_seed(lines, read, method=method) for method in methods]
        for name, read in reads.items()
    }
    rows = [[name, *map(spread, values)] for name, values in found.items()]
    dense, *sparse = found["robustness, mean of 16"]
    said = [
        f"{LABELS[method]} {verdict(values, dense)}"
        for method, values in zip(methods[1:], sparse, strict=True)
    ]
    return "\n".join(
        [
            "## Corrupted video\n",
            "Stand-in for corrupted UCF101: clips of clothes that move over photographs, twelve "
            "classes of three pieces of clothing and four directions (chance is 8.3 %), a 3D "
            "ResNet of three bottlenecks, SET and RigL at sparsity 0.5; the 16 perturbations at "
            f"severities 1 to 4, {seeds_of(lines)}. The pixels are real, the "
            "motion is not. The appendix prints no numbers for video.\n",
            *table(["perturbation", *(LABELS[method] for method in methods)], rows),
            f"At least as robust as dense: {'; '.join(said)}.\n",
            "Reversed clips show the opposite direction, which is another class: there, low "
            "accuracy is right.\n",
            made(lines, "corrupted_video", corrupted_video.DATA),
        ]
    )


def perturbed(kind: str) -> Read:
    return lambda line: float(statistics.mean(line["result"]["cells"][kind]))


def sections() -> list[str]:
    """All sections whose data files have at least one whole seed."""
    listed = (
        (low_sparsity_page.section_low_sparsity, low_sparsity.DATA, low_sparsity.runs((0,))),
        (section_table9, table9.DATA, table9.runs(seeds=(0,))),
        (section_tables10_11, tables10_11.DATA, tables10_11.runs((0,))),
        (section_table12, table12.DATA, table12.runs((0,))),
        (section_video, corrupted_video.DATA, corrupted_video.runs(seeds=(0,))),
    )
    whole = [(section, whole_seeds(finished(path), len(runs))) for section, path, runs in listed]
    return [section(lines) for section, lines in whole if lines]
