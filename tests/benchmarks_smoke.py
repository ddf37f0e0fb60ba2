"""Runs every robustness benchmark in the smallest sizes, and prints what they measured as JSON.

A program of its own: benchmarks/ and tests/ both have a module called common.

    python tests/benchmarks_smoke.py FOLDER     # FOLDER is for what they keep
"""

from __future__ import annotations

import dataclasses
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from made_up import write_cifar100, write_clothes

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "benchmarks")


def smoke_low_sparsity() -> Any:
    import low_sparsity

    low_sparsity.EVERY = 2
    run = {"method": "granet_g", "sparsity": 0.7, "seed": 0}
    return low_sparsity.measure(run, images=500, epochs=2, tested=10)


def smoke_table9(folder: Path) -> Any:
    import table9
    from models import resnet34

    run = {"method": "set", "mixup": True, "sparsity": 0.5, "seed": 0}
    write_cifar100(folder / "cifar", 200)
    real = table9.cifar100(folder / "cifar", "cpu", epochs=2, workers=0)
    tiny = dataclasses.replace(real, network=partial(resnet34, 100, 1 / 32), every=1)
    return [
        table9.measure(run, dataclasses.replace(table9.stand_in(500, 1, 10), every=2)),
        table9.measure(run, tiny),
    ]


def smoke_tables10_11() -> Any:
    import tables10_11

    tables10_11.EVERY = 2
    run = {"method": "mest_g", "sparsity": 0.1, "seed": 0}
    return tables10_11.measure(run, images=1000, epochs=2, each=6)


def smoke_table12(folder: Path) -> Any:
    import table12
    from models import fcn_vgg16

    run = {"method": "set", "sparsity": 0.2, "seed": 0}
    task = table12.stand_in(smoke=True)
    weights = fcn_vgg16(width=1 / 16).features.state_dict()
    torch.save({f"features.{name}": value for name, value in weights.items()}, folder / "vgg.pth")
    real = dataclasses.replace(task, side=None, crop=48, backbone=folder / "vgg.pth")
    return [table12.measure(run, task), table12.measure(run, real)]


def smoke_video() -> Any:
    import corrupted_video

    run = {"method": "rigl", "sparsity": 0.5, "seed": 0}
    task = corrupted_video.stand_in(smoke=True)
    i3d = partial(corrupted_video.NETWORKS["i3d"], width=1 / 32)
    real = dataclasses.replace(task, network=i3d, small=False, mirror=True, epochs=1, every=1)
    return [corrupted_video.measure(run, task), corrupted_video.measure(run, real)]


def raced() -> list[str]:
    """What a data set holds that another process finished while this one was making it."""
    import stand_ins

    def make(root: Path) -> None:
        (root / "first").touch()
        if not stand_ins.fashion.datasets.cache_folder().joinpath("raced").exists():
            stand_ins.kept("raced", lambda other: [(other / name).touch() for name in parts])
        (root / "second").touch()

    parts = ("first", "second")
    return sorted(path.name for path in stand_ins.kept("raced", make).iterdir())


def gains() -> Any:
    """Gains of made-up accuracies: equal but for one noise at severity 5, 44 against 40 %."""
    import low_sparsity_page

    def line(method: str, sparsity: float, noise: float) -> dict[str, Any]:
        cells = {"fog": [80.0, 70.0, 60.0, 50.0, 20.0], "shot_noise": [50.0] * 4 + [noise]}
        run = {"method": method, "sparsity": sparsity, "seed": 0}
        return {"run": run, "result": {"cifar": {"cells": cells}}}

    lines = [line("dense", 0.0, 40.0), line("set", 0.5, 44.0)]
    return {
        "harsh": low_sparsity_page.harsh_gains(lines),
        "other": low_sparsity_page.other_gains(lines),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    write_clothes(folder, {"train": 1200, "t10k": 200})
    torch.set_num_threads(1)
    warnings.simplefilter("error", UserWarning)
    found = {
        "low_sparsity": smoke_low_sparsity(),
        "table9": smoke_table9(folder),
        "tables10_11": smoke_tables10_11(),
        "table12": smoke_table12(folder),
        "corrupted_video": smoke_video(),
        "gains": gains(),
        "raced": raced(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
