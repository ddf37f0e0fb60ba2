"""Train one recipe of Table 3 of arXiv 2410.03030, with any algorithm at any sparsity.

    python examples/recipes/run.py mlp-fashionmnist --algo rigl --sparsity 0.97
    python examples/recipes/run.py vgg16-cifar10 --algo set --sparsity 0.5 --data /data/cifar
    torchrun --nproc-per-node 4 examples/recipes/run.py resnet50-imagenet --data /data/imagenet
    python examples/recipes/run.py vgg16-cifar10 --plan               # layers and cost, and stop
    python examples/recipes/run.py vgg16-cifar10 --data fake --tiny   # made-up data, seconds

README.md beside this file lists the recipes. Everything is written to --out: checkpoint.pt after
every epoch, log.csv, tensorboard/ where TensorBoard is installed; at the end flops.json,
report.html and robustness-*.json. The same command with --resume goes on where a run stopped, with
the same result.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import corrupted
import fake
import inputs
import networks
import report
import torch
from logs import Log
from recipe import Recipe, load, names, override, parsed
from training import Training, World, restore, train, world

from sparseopt import SparseOptimizer, available, topologies


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the command; returns the last row of the log, the cost and the robustness reports."""
    options = parse(arguments)
    recipe = override(load(options.recipe), options.set)
    if options.plan:
        return plan(recipe, options)
    folder = options.out or Path("runs") / run_name(recipe, options)
    with world(options.device) as processes:
        run = prepared(recipe, options, folder, processes)
        settings = settings_of(run.recipe, options)
        if (folder / "checkpoint.pt").exists():
            restore(run, folder, settings)
        train(run, folder, settings, Log(folder) if processes.main else None)
    return finish(run, folder, options) if processes.main else {}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", help=f"{', '.join(names())}; or a JSON file")
    add("--algo", default="set", help=f"dense, {', '.join(available())}")
    add("--sparsity", type=float, default=0.5, help="fraction of the weights that are zero")
    add("--seed", type=int, default=0, help="of weights, data order and topology")
    add("--data", help="folder of the data set, in its published layout; or fake")
    add("--out", type=Path, help="folder of the run; default runs/RECIPE-ALGO-SPARSITY-SEED")
    add("--resume", action="store_true", help="go on from the checkpoint in --out, if there is one")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other values in the recipe")
    add("--option", nargs="+", default=[], metavar="NAME=VALUE", help="options of the algorithm")
    add("--topology", help="which weights are active at the start; csti reads the training data")
    add("--weights", help="pretrained backbone, a state dict of torchvision; or none")
    add("--storage", default="auto", choices=("auto", "masked", "compact"))
    add("--compute", default="dense", choices=("auto", "dense", "sparse"))
    add("--bf16", action="store_true", help="forward passes in bfloat16")
    add("--device", help="default: a GPU if there is one")
    add("--workers", type=int, default=0, help="processes that read data")
    add(
        "--robustness", default="generate", metavar="FOLDER",
        help="official corruption sets; none; generate: corrupt the test set (default)",
    )  # fmt: skip
    add("--corruption", nargs="+", help="only these corruptions")
    add("--severity", nargs="+", type=int, help="only these severities")
    add("--plan", action="store_true", help="print layers and cost of the whole run, and stop")
    add("--tiny", action="store_true", help="a small network of the same kind")
    options = parser.parse_args(arguments)
    if options.algo != "dense" and options.algo not in available():
        parser.error(f"--algo {options.algo} is not one of dense, {', '.join(available())}")
    return options


def run_name(recipe: Recipe, options: argparse.Namespace) -> str:
    share = "" if options.algo == "dense" else f"-{options.sparsity:g}"
    return f"{recipe.name}-{options.algo}{share}-{options.seed}"


def settings_of(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """What a checkpoint must agree with."""
    kept = ("algo", "sparsity", "seed", "option", "topology", "bf16", "tiny")
    values = dataclasses.asdict(recipe) | {name: getattr(options, name) for name in kept}
    return {name: value for name, value in values.items() if name not in ("source", "notes")}


# --- before training ------------------------------------------------------------------------------


def prepared(
    recipe: Recipe, options: argparse.Namespace, folder: Path, processes: World
) -> Training:
    """Data, network and optimizer; everything is checked before anything is trained."""
    check(recipe, options, folder)
    data = read(recipe, options, folder, processes)
    if len(data.classes) != recipe.classes and options.data != "fake":
        raise ValueError(
            f"--data {options.data} has {len(data.classes)} classes and the recipe "
            f"{recipe.classes}: complete it, or say --set classes={len(data.classes)}"
        )
    recipe = dataclasses.replace(recipe, classes=len(data.classes))
    corruptions(recipe, data, options)  # refuses what is missing right here
    torch.manual_seed(options.seed)
    model = networks.build(recipe, options.tiny)
    if options.weights not in (None, "none"):
        networks.load_backbone(model, options.weights)
    model.to(processes.device)
    per_epoch = -(-len(data.train) // recipe.batch_size)  # type: ignore[arg-type]
    optimizer = wrapped(recipe, options, model, recipe.epochs * per_epoch, data)
    folder.mkdir(parents=True, exist_ok=True)
    return Training(
        recipe, data, processes, model, optimizer, options.seed, options.bf16, options.workers
    )


def check(recipe: Recipe, options: argparse.Namespace, folder: Path) -> None:
    if (folder / "checkpoint.pt").exists() and not options.resume:
        raise FileExistsError(f"{folder} holds a run: pass --resume to go on, or another --out")
    if recipe.pretrained and options.weights is None and options.data != "fake":
        raise ValueError(
            f"{recipe.name} starts from a pretrained backbone: give torchvision's state dict with "
            "--weights, or --weights none for random weights"
        )


def read(
    recipe: Recipe, options: argparse.Namespace, folder: Path, processes: World
) -> inputs.Inputs:
    if options.data != "fake":
        return inputs.load(recipe, Path(options.data) if options.data else None)
    place = folder / "fake-data"
    if processes.main:
        fake.write(recipe.data, place)
    if processes.size > 1:
        torch.distributed.barrier()
    return inputs.load(recipe, place)


def wrapped(
    recipe: Recipe,
    options: argparse.Namespace,
    model: torch.nn.Module,
    steps: int,
    data: inputs.Inputs | None = None,
) -> torch.optim.Optimizer:
    """The recipe's optimizer, made sparse unless the run is dense."""
    rate, decay = recipe.learning_rate, recipe.weight_decay
    plain: torch.optim.Optimizer = (
        torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
        if recipe.optimizer == "adamw"
        else torch.optim.SGD(model.parameters(), rate, recipe.momentum, weight_decay=decay)
    )
    if options.algo == "dense":
        return plain
    chosen = recipe.algorithm_options(options.algo) | dict(map(pair, options.option))
    if options.topology is not None:
        chosen["topology"] = topology(options, data)
    sparse = SparseOptimizer(
        plain, options.algo, sparsity=options.sparsity, total_steps=steps,
        update_every=recipe.update_every, model=model, include=recipe.include,
        exclude=recipe.exclude, storage=options.storage, compute=options.compute,
        seed=options.seed, **chosen,
    )  # fmt: skip
    if recipe.initial_weights == "swi":
        topologies.swi_(sparse.layers, torch.Generator().manual_seed(options.seed))
    return sparse


def pair(setting: str) -> tuple[str, Any]:
    name, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--option {setting} must be NAME=VALUE")
    return name, parsed(text)


def topology(options: argparse.Namespace, data: inputs.Inputs | None) -> Any:
    """The name, or what CSTI finds in the training data."""
    if options.topology != "csti":
        return options.topology
    if data is None:
        raise ValueError("--topology csti reads the training data, which --plan does not")
    loader = torch.utils.data.DataLoader(data.train, 256, num_workers=options.workers)
    return topologies.csti(loader, fallback="bipartite_small_world")


def plan(recipe: Recipe, options: argparse.Namespace) -> dict[str, Any]:
    """Print the layers and the cost of the whole run, without data."""
    model = networks.build(recipe, options.tiny)
    steps = recipe.epochs * recipe.steps_per_epoch
    optimizer = wrapped(recipe, options, model, steps)
    if isinstance(optimizer, SparseOptimizer):
        print(optimizer.summary())
    samples = recipe.samples * recipe.epochs / steps
    found = report.cost(model, optimizer, recipe.shape, steps, samples, planned=True)
    print(f"{steps:,} steps\n{report.text(found)}")
    return {"flops": found}


# --- after training -------------------------------------------------------------------------------


def finish(run: Training, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Write and print the reports."""
    samples = len(run.inputs.train) * run.recipe.epochs / run.steps  # type: ignore[arg-type]
    found = report.cost(run.model, run.optimizer, run.recipe.shape, run.steps, samples)
    report.write_cost(found, folder / "flops.json")
    report.page(run.optimizer, run.model, run.recipe.shape, samples, folder / "report.html")
    print(f"{describe(run)}\n\n{report.text(found)}")
    reports = report.robust(
        run.model, corruptions(run.recipe, run.inputs, options), run.inputs.test, folder,
        batch_size=run.recipe.test_batch_size, workers=options.workers,
    )  # fmt: skip
    for one in reports.values():
        print(f"\n{one}")
    return {"row": run.rows[-1], "flops": found, "robustness": reports, "run": run}


def describe(run: Training) -> str:
    last = run.rows[-1]
    shown = ("accuracy", "pixel_accuracy", "mean_iou", "sparsity")
    parts = [f"{name} {100 * last[name]:.2f} %" for name in shown if name in last]
    return f"{run.recipe.name}, epoch {last['epoch']}: {', '.join(parts)}"


def corruptions(recipe: Recipe, data: inputs.Inputs, options: argparse.Namespace) -> list[Any]:
    """The corruption sets that the command asks for."""
    if options.robustness == "none":
        return []
    parts = (options.corruption, options.severity)
    if options.robustness == "generate":
        return [corrupted.generated(recipe, data, *parts)]
    return corrupted.official(recipe, data, Path(options.robustness), *parts)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        sys.exit(str(error))
