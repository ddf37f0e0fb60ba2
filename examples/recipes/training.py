"""Epochs of training, in one process or several, and checkpoints that a restart goes on from."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from inputs import Inputs
from recipe import Recipe
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, Subset
from tqdm import tqdm

from sparseopt import SparseOptimizer
from sparseopt.integrations import metrics
from sparseopt.robustness import confusion_matrix, mean_iou, pixel_accuracy

VOID = 255  # pixels of a mask that count nothing


@dataclass(frozen=True)
class World:
    """The processes of a run and the device of this one."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


@contextmanager
def world(device: str | None = None) -> Iterator[World]:
    """The processes that torchrun started, or this one alone."""
    size, local = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    gpu = torch.cuda.is_available()
    chosen = torch.device(device or (f"cuda:{local}" if gpu else "cpu"))
    if size == 1:
        yield World(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, chosen)
    finally:
        dist.destroy_process_group()


@dataclass
class Training:
    """Everything that one run trains with.

    Attributes:
        recipe, inputs, world: What is trained, on what, where.
        model: On its device.
        optimizer: Plain for a dense run.
        seed: Of weights, data order and topology.
        bf16: Whether forward passes run in bfloat16.
        workers: Processes that read data, for each process that trains.
        rows: What was logged, a row for each finished epoch.
    """

    recipe: Recipe
    inputs: Inputs
    world: World
    model: nn.Module
    optimizer: torch.optim.Optimizer
    seed: int = 0
    bf16: bool = False
    workers: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batch_size, rest = divmod(self.recipe.batch_size, self.world.size)
        if rest:
            raise ValueError(
                f"batch_size={self.recipe.batch_size} is over all processes and must be a "
                f"multiple of their number, {self.world.size}"
            )
        self.parallel = DistributedDataParallel(self.model) if self.world.size > 1 else self.model
        self.loader = self._loader()
        self.steps = self.recipe.epochs * len(self.loader)
        self.scheduler = LambdaLR(self.optimizer, self._factor)

    def _loader(self) -> DataLoader[Any]:
        """Batches in an order that follows from seed and epoch."""
        sampler = DistributedSampler(
            self.inputs.train, self.world.size, self.world.rank, seed=self.seed
        )
        return DataLoader(
            self.inputs.train, self.batch_size, sampler=sampler, num_workers=self.workers,
            pin_memory=self.world.device.type == "cuda",
        )  # fmt: skip

    def _factor(self, step: int) -> float:
        schedule = self.recipe.learning_rate_schedule
        return learning_rate_factor(schedule, step, len(self.loader), self.recipe.epochs)


def learning_rate_factor(schedule: str, step: int, per_epoch: int, epochs: int) -> float:
    """What the first learning rate is multiplied by at one optimizer step.

    >>> [learning_rate_factor("step", epoch, 1, 90) for epoch in (0, 29, 30, 60, 89)]
    [1.0, 1.0, 0.1, 0.01, 0.01]
    >>> round(learning_rate_factor("cosine", 50, 10, 10), 3)
    0.5
    """
    progress, epoch = min(1.0, step / (per_epoch * epochs)), step // per_epoch
    if schedule == "cosine":
        return 0.5 * (1.0 + float(np.cos(np.pi * progress)))
    if schedule == "polynomial":
        return float((1.0 - progress) ** 0.9)
    if schedule == "step":
        return round(0.1 ** (epoch // 30), 12)
    return 1.0 - 0.99 * min(1.0, epoch / (0.9 * epochs))  # linear, to 0.01


# --- an epoch -------------------------------------------------------------------------------------


def train(run: Training, folder: Path, settings: dict[str, Any], log: Any) -> None:
    """The epochs that are left, with a checkpoint and a row of the log after each."""
    for epoch in range(len(run.rows), run.recipe.epochs):
        start = time.perf_counter()
        seed_everything(run.seed, epoch, run.world.rank)
        row = {"epoch": epoch + 1, "step": (epoch + 1) * len(run.loader)}
        row |= {"learning_rate": run.optimizer.param_groups[0]["lr"]}  # at its start
        row |= {"loss": train_epoch(run, epoch)} | scores(test(run), run.inputs.task)
        if isinstance(run.optimizer, SparseOptimizer):
            row |= metrics(run.optimizer, prefix="")
        run.rows.append(row | {"seconds": round(time.perf_counter() - start, 2)})
        if run.world.main:
            log(run.rows)  # first: what a checkpoint holds has been logged
            save(run, folder, settings)


def seed_everything(seed: int, epoch: int, rank: int) -> None:
    """Random streams that follow from where the run is, so that a checkpoint needs none of them."""
    number = (seed * 1_000_003 + epoch) * 1_009 + rank
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def train_epoch(run: Training, epoch: int) -> float:
    """One pass over the training data; returns the mean loss."""
    run.loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    run.model.train()
    total, seen = torch.zeros((), device=run.world.device), 0
    title = f"epoch {epoch + 1}/{run.recipe.epochs}"
    quiet = None if run.world.main else True  # None: a bar on a terminal only
    for inputs, targets in tqdm(run.loader, title, unit="step", leave=False, disable=quiet):
        loss = step(run, inputs, targets)
        total += loss * len(inputs)
        seen += len(inputs)
    mean = total / max(seen, 1)
    if run.world.size > 1:
        dist.all_reduce(mean)
        mean /= run.world.size
    return float(mean)


def step(run: Training, inputs: Tensor, targets: Tensor) -> Tensor:
    """One optimizer step; returns the loss."""
    device = run.world.device
    inputs, targets = (one.to(device, non_blocking=True) for one in (inputs, targets))
    run.optimizer.zero_grad()
    with torch.autocast(device.type, torch.bfloat16) if run.bf16 else nullcontext():
        loss = cross_entropy(run.parallel(inputs), targets, ignore_index=VOID)
    loss.backward()
    run.optimizer.step()
    run.scheduler.step()
    return loss.detach()


# --- the test set ---------------------------------------------------------------------------------


@torch.no_grad()
def test(run: Training) -> Tensor:
    """Counts over the whole test set: right and all, or the confusion matrix of segmentation."""
    for buffer in run.model.buffers() if run.world.size > 1 else ():
        dist.broadcast(buffer, 0)  # batch norms have seen other batches in every process
    run.model.eval()
    own = Subset(run.inputs.test, range(run.world.rank, len(run.inputs.test), run.world.size))  # type: ignore[arg-type]
    counts = torch.zeros(21, 21) if run.inputs.task == "segmentation" else torch.zeros(2)
    counts = counts.long().to(run.world.device)
    for inputs, targets in DataLoader(own, run.recipe.test_batch_size, num_workers=run.workers):
        with torch.autocast(run.world.device.type, torch.bfloat16) if run.bf16 else nullcontext():
            outputs = run.model(inputs.to(run.world.device))
        predicted, targets = outputs.argmax(1), targets.to(run.world.device)
        if run.inputs.task == "segmentation":
            counts += confusion_matrix(predicted, targets, 21)
        else:
            right = (predicted == targets).sum()
            counts += torch.stack([right, torch.full_like(right, len(targets))])
    if run.world.size > 1:
        dist.all_reduce(counts)
    return counts.cpu()


def scores(counts: Tensor, task: str) -> dict[str, float]:
    """Accuracy, or pixel accuracy and mIoU, as fractions."""
    if task == "segmentation":
        return {"pixel_accuracy": pixel_accuracy(counts), "mean_iou": mean_iou(counts)}
    return {"accuracy": int(counts[0]) / int(counts[1])}


# --- checkpoints ----------------------------------------------------------------------------------


def save(run: Training, folder: Path, settings: dict[str, Any]) -> None:
    """Write the checkpoint beside the old one, then in its place: it is always whole."""
    content = {
        "settings": settings,
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scheduler": run.scheduler.state_dict(),
        "rows": run.rows,
    }
    part = folder / "checkpoint.pt.part"
    torch.save(content, part)
    os.replace(part, folder / "checkpoint.pt")


def restore(run: Training, folder: Path, settings: dict[str, Any]) -> None:
    """Take up the checkpoint of a folder.

    Raises:
        ValueError: It is of a run with other settings; nothing has been changed then.
    """
    path = folder / "checkpoint.pt"
    saved = torch.load(path, map_location=run.world.device, weights_only=True)
    other = sorted(key for key in settings if saved["settings"].get(key) != settings[key])
    if other:
        pairs = [f"{key}={saved['settings'].get(key)!r}, not {settings[key]!r}" for key in other]
        raise ValueError(f"{path} is of a run with {'; '.join(pairs)}: choose another --out")
    run.model.load_state_dict(saved["model"])
    run.optimizer.load_state_dict(saved["optimizer"])
    run.scheduler.load_state_dict(saved["scheduler"])
    run.rows[:] = saved["rows"]
