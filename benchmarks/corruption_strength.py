"""How strong the corruptions are beside published code: RMSE against the clean images.

    python benchmarks/corruption_strength.py    # about two minutes

Three comparisons, each a ratio ours / theirs for every corruption and severity: the 19 corruptions
at 32 px with CIFAR's constants and C-bar at 224 px with published figures that were taken on other
crops (tests/references_robustness.py), and the 19 at 224 px with imagecorruptions-imaug on the same
crops. Writes benchmarks/results/corruption_strength.json, from which docs/tables.py makes a table.

Needs `pip install sparseopt[robustness,examples,dev]`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from common import machine, save
from PIL import Image

from sparseopt.robustness import CORRUPTIONS, corrupt

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # its common is not ours

from references_robustness import C_BAR_RMSE, GRAY_LEVEL_RMSE_32, photo_crops, rmse

SEVERITIES = (1, 2, 3, 4, 5)
REPEATS = 4  # draws of a corruption whose strength depends on them, both libraries alike
DRAWN = ("snow", "frost", "fog", "spatter", "motion_blur")


def beside_figures(
    figures: Mapping[str, Sequence[float]], crops: np.ndarray, scale: str
) -> dict[str, list[float]]:
    """Our RMSE on these crops over the published one, a ratio per severity."""
    return {
        name: [
            round(rmse(corrupt(crops, name, severity, scale), crops) / figure, 4)
            for severity, figure in zip(SEVERITIES, row, strict=True)
        ]
        for name, row in figures.items()
    }


def beside_imaug(crops: np.ndarray) -> dict[str, list[float]]:
    """Our RMSE over that of imagecorruptions-imaug on the same crops, a ratio per severity."""
    from imagecorruptions import corruption_dict

    np.random.seed(0)  # of its draws, but for impulse noise and glass blur, which take no seed
    return {
        name: [round(ratio(name, corruption_dict[name], s, crops), 4) for s in SEVERITIES]
        for name in CORRUPTIONS
    }


def ratio(name: str, theirs: Callable[..., np.ndarray], severity: int, crops: np.ndarray) -> float:
    draws = range(REPEATS if name in DRAWN else 1)
    ours = [rmse(corrupt(crops, name, severity, seed=seed), crops) for seed in draws]
    other = [rmse(drawn_by(theirs, severity, crops), crops) for _ in draws]
    return float(np.mean(ours) / np.mean(other))


def drawn_by(theirs: Callable[..., np.ndarray], severity: int, crops: np.ndarray) -> np.ndarray:
    images = [np.asarray(theirs(Image.fromarray(crop), severity)) for crop in crops]
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


def main() -> None:
    torch.set_num_threads(1)
    content = {
        "machine": machine(),
        "cifar": {
            "crops": 480,
            "ratios": beside_figures(GRAY_LEVEL_RMSE_32, photo_crops(32, 480), "cifar"),
        },
        "imaug": {"crops": 6, "ratios": beside_imaug(photo_crops(224, 6))},
        "c_bar": {
            "crops": 12,
            "ratios": beside_figures(C_BAR_RMSE, photo_crops(224, 12), "imagenet"),
        },
    }
    print(f"written to {save('corruption_strength.json', content)}")


if __name__ == "__main__":
    main()
