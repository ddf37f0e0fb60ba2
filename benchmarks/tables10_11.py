"""Tables 10 and 11: ImageNet-R and ImageNet-V2, by their loaders and the evaluation.

    python benchmarks/tables10_11.py            # pipeline check on clothes, 12 runs of 20 seconds
    python benchmarks/tables10_11.py --smoke    # dense and RigL in a few steps
    python benchmarks/tables10_11.py --data FOLDER --device cuda \\
        --checkpoint dense=dense.pth rigl=rigl.pth mest_g=mest.pth granet_g=granet.pth

Full reproduction: FOLDER with imagenet-r (2 GB) and the three folders of ImageNet-V2 (4 GB), and
state dicts of torchvision's ResNet50 trained on ImageNet as in Table 3: 90 epochs, batch 256,
learning rate 0.1 by 10 every 30 epochs, weight decay 1e-4, ERK at sparsity 0.1, an update every
2,000 steps; by our estimate a day on four A100 each. The evaluation takes minutes on one GPU, 2
hours of 16 CPU cores.

The stand-in checks the pipeline and nothing else. Small networks with 1,000 outputs, of which ten
stand for the clothes of Fashion-MNIST, are trained on photographs of clothes and tested on folders
in both published layouts: renditions made by filters (edges, woodcut, sketch, mosaic, relief,
outline), and three selections of test pictures by how sure a linear classifier is of their class,
where ImageNet-V2 has how often people chose it. Writes benchmarks/results/tables10_11.jsonl.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import fashion
import numpy as np
import torch
from common import RESULTS
from PIL import Image
from runner import seed_by_seed, work_off
from stand_ins import Array, kept
from torch import Tensor, nn
from torchvision.transforms import v2
from training import fit, made_with, shuffled, sparse

from sparseopt.robustness import ImageNetR, ImageNetV2, evaluate

DATA = RESULTS / "tables10_11.jsonl"
SEEDS = (0, 1, 2)
CELLS = (("dense", 0.0), ("rigl", 0.1), ("mest_g", 0.1), ("granet_g", 0.1))
BATCH, EVERY = 100, 10
WNIDS = ("n01443537", "n01484850", "n01494475", "n01498041", "n01514859", "n01518878",
         "n01531178", "n01534433", "n01614925", "n01616318")  # fmt: skip
OUTPUTS = (1, 2, 4, 6, 8, 9, 11, 13, 22, 23)  # places of these among the 1,000

# --- folders ------------------------------------------------------------------------------------


def gradient(pixels: Array) -> Array:
    rows, columns = np.gradient(pixels.astype(float))
    return np.hypot(rows, columns)


def gray(values: Array) -> Array:
    return np.clip(values, 0, 255).astype(np.uint8)


def mosaic(pixels: Array) -> Array:
    blocks = pixels.reshape(7, 4, 7, 4).mean(axis=(1, 3))
    return gray(np.kron(blocks, np.ones((4, 4))))


RENDITIONS: dict[str, Callable[[Array], Array]] = {
    "edges": lambda pixels: gray(3 * gradient(pixels)),
    "woodcut": lambda pixels: gray(255.0 * (pixels > 90)),
    "sketch": lambda pixels: gray(255 - 3 * gradient(pixels)),
    "mosaic": mosaic,
    "relief": lambda pixels: gray(128 + np.gradient(pixels.astype(float))[0]),
    "outline": lambda pixels: gray(pixels + 2 * gradient(pixels)),
}


def write_folders(root: Path, each: int) -> None:
    """imagenet-r and the three of ImageNet-V2, `each` pictures of every class in each of them."""
    pixels, labels = (part.numpy() for part in fashion.datasets.load()[2:])
    sure = certainty()
    random = np.random.default_rng(0)
    for kind in range(10):
        own = np.flatnonzero(labels == kind)
        ranked = own[np.argsort(-sure[own])]
        likely = ranked[: max(each, int((sure[own] >= 0.7).sum()))]
        for number, index in enumerate(random.choice(own, each, replace=False)):
            name = list(RENDITIONS)[number % len(RENDITIONS)]
            picture = RENDITIONS[name](pixels[index])
            save(root / "imagenet-r" / WNIDS[kind] / f"{name}_{number}.jpg", picture)
        for variant, chosen in {
            "top-images": ranked[:each],
            "threshold0.7": random.choice(likely, each, replace=False),
            "matched-frequency": random.choice(own, each, replace=False),
        }.items():
            folder = root / f"imagenetv2-{variant}-format-val" / str(OUTPUTS[kind])
            for index in chosen:
                save(folder / f"{index}.jpeg", pixels[index])


def save(path: Path, pixels: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)


def certainty() -> Array:
    """What a linear classifier gives to the right class of every test picture."""
    images = fashion.images()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    adam = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.ConstantLR(adam, factor=1.0)
    fit(model, adam, schedule, shuffled(images["train"], images["train_labels"], 500), 2)
    with torch.no_grad():
        scores = model(images["test"]).softmax(dim=1)
    return scores.gather(1, images["test_labels"][:, None]).squeeze(1).numpy()


# --- networks -----------------------------------------------------------------------------------


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 49, 1000),
    )  # fmt: skip


def trained(run: dict[str, Any], images: int, epochs: int) -> nn.Module:
    torch.manual_seed(run["seed"])
    data, model = fashion.images(), network()
    inputs = data["train"][:images]
    labels = torch.tensor(OUTPUTS)[data["train_labels"][:images]]
    total = epochs * (images // BATCH)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, fused=True)
    optimizer = sparse(
        sgd, run["method"], model, sparsity=run["sparsity"], total_steps=total, seed=run["seed"],
        update_every=EVERY, distribution="erk",
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    return fit(model, optimizer, schedule, shuffled(inputs, labels, BATCH), epochs)


def small(picture: Image.Image) -> Tensor:
    """A picture of clothes as the small networks take it."""
    return fashion.normalized(torch.from_numpy(np.array(picture.convert("L")))[None])[0]


LARGE = v2.Compose(
    [
        v2.Resize(256), v2.CenterCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
)  # fmt: skip


def evaluated(
    model: nn.Module, root: Path, transform: Callable[[Any], Any], workers: int = 0
) -> dict[str, float]:
    """Accuracy in percent on ImageNet-R, and on the three sets of ImageNet-V2 and their mean."""
    renditions, new_tests = (
        evaluate(model, images, workers=workers, progress=False)
        for images in (ImageNetR(root, transform), ImageNetV2(root, transform=transform))
    )
    found = {
        "imagenet-r": renditions.mean, **new_tests.per_corruption, "average": new_tests.mean,
    }  # fmt: skip
    return {name: round(100 * value, 3) for name, value in found.items()}


@cache
def stand_in(each: int = 60) -> Path:
    return kept(f"renditions-{each}", lambda root: write_folders(root, each))


def measure(
    run: dict[str, Any], images: int = 20_000, epochs: int = 4, each: int = 60
) -> dict[str, Any]:
    begin = time.perf_counter()
    model = trained(run, images, epochs)
    data = fashion.images()
    with torch.no_grad():
        scores = model.eval()(data["test"][:2000])[:, list(OUTPUTS)]
    clean = scores.argmax(dim=1).eq(data["test_labels"][:2000]).double().mean()
    return {
        "clean": round(100 * float(clean), 3), **evaluated(model, stand_in(each), small),
        "seconds": round(time.perf_counter() - begin, 1),
        **made_with(),
    }  # fmt: skip


def measure_checkpoint(run: dict[str, Any], root: Path, device: str) -> dict[str, Any]:
    """torchvision's ResNet50 with weights from a file, on the real sets."""
    from torchvision.models import resnet50

    model = resnet50()
    model.load_state_dict(torch.load(run["checkpoint"], map_location="cpu", weights_only=True))
    return evaluated(model.to(device), root, LARGE, workers=16)


def runs(seeds: tuple[int, ...] = SEEDS) -> list[dict[str, Any]]:
    return seed_by_seed(CELLS, seeds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with imagenet-r and ImageNet-V2")
    parser.add_argument("--checkpoint", nargs="+", metavar="NAME=FILE", default=[])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--smoke", action="store_true", help="a few steps of the stand-in")
    arguments = parser.parse_args()
    if (arguments.data is None) != (not arguments.checkpoint):
        parser.error("--data and --checkpoint belong together: networks trained on ImageNet")
    if arguments.data:
        pairs = [entry.partition("=") for entry in arguments.checkpoint]
        listed = [{"method": name, "checkpoint": file} for name, _, file in pairs]
        work_off(
            listed,
            lambda run: measure_checkpoint(run, arguments.data, arguments.device),
            RESULTS / "tables10_11-imagenet.jsonl",
        )
        return
    torch.set_num_threads(1)
    if arguments.smoke:
        path = RESULTS / "tables10_11-smoke.jsonl"
        work_off(runs((0,))[:2], lambda run: measure(run, 2000, 1, 6), path)
    else:
        work_off(runs(), measure, DATA)


if __name__ == "__main__":
    main()
