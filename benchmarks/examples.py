"""What examples/demo.py and examples/recipes/run.py print, for the pages that show it.

    python benchmarks/examples.py    # about three minutes, and Fashion-MNIST (examples/data.py)

The demo with its defaults, and the command of examples/recipes/README.md. Writes
benchmarks/results/examples.json, from which docs/tables.py makes what the pages show.

Needs `pip install sparseopt[all]`.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, save

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))

import demo

ROOT = Path(__file__).resolve().parents[1]
RECIPE = (  # a line each on the page
    "examples/recipes/run.py mlp-fashionmnist --algo rigl --sparsity 0.97 --set epochs=2",
    "--corruption gaussian_noise motion_blur fog contrast --severity 1 3 5",
)
ROW = ("algorithm", "sparsity", "accuracy", "seconds", "active", "weights", "cost")


def demo_runs(folder: str) -> list[dict[str, Any]]:
    """What the demo's table is made of, run by run."""
    runs = demo.main(["--out", f"{folder}/demo.png"])
    return [{name: getattr(run, name) for name in ROW} for run in runs]


def recipe_printed(folder: str) -> list[str]:
    """The lines that the recipe's command prints; it leaves its files in the folder."""
    script, *arguments = shlex.split(" ".join(RECIPE))
    made = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True,
        check=True,
    )  # fmt: skip
    return made.stdout.strip().splitlines()


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        content = {
            "machine": machine(),
            "demo": demo_runs(folder),
            "recipe": {"command": RECIPE, "printed": recipe_printed(folder)},
        }
    print(f"written to {save('examples.json', content)}")


if __name__ == "__main__":
    main()
