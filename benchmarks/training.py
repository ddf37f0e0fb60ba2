"""What the training scripts share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from common import machine
from torch import Tensor, nn

from sparseopt import SparseOptimizer
from sparseopt.schedules import Cosine, Polynomial

Batches = Callable[[], Iterable[tuple[Tensor, Tensor]]]
Loss = Callable[[Tensor, Tensor], Tensor]


def sparse(
    optimizer: torch.optim.Optimizer,
    method: str,
    model: nn.Module,
    drop: Polynomial | Cosine | None = None,
    **settings: Any,
) -> torch.optim.Optimizer:
    """The optimizer with a method around it, or as it is for "dense".

    Args:
        drop: P and its decay; default 0.1, polynomial (Table 3). MEST has its memory bound instead.
        settings: of the SparseOptimizer.
    """
    if method == "dense":
        return optimizer
    if not method.startswith("mest"):
        settings["drop_fraction"] = drop or Polynomial(0.1)
    if method == "rigl":
        settings["stop"] = 1.0
    return SparseOptimizer(optimizer, method, model=model, **settings)


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    batches: Batches,
    epochs: int,
    loss: Loss = nn.functional.cross_entropy,
) -> nn.Module:
    """Plain training, the learning rate following the schedule from step to step."""
    device = next(model.parameters()).device
    model.train()
    for _ in range(epochs):
        for inputs, targets in batches():
            optimizer.zero_grad()
            loss(model(inputs.to(device)), targets.to(device)).backward()
            optimizer.step()
            schedule.step()
    return model


def shuffled(inputs: Tensor, targets: Tensor, size: int) -> Batches:
    """Batches of tensors in memory, in a new order every epoch; whole batches only."""
    whole = len(inputs) // size * size

    def epoch() -> Iterable[tuple[Tensor, Tensor]]:
        for index in torch.randperm(len(inputs))[:whole].split(size):
            yield inputs[index], targets[index]

    return epoch


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the weights of all linear layers: dense in the paper's convolutional networks."""
    named = model.named_modules()
    return [f"{name}.weight" for name, module in named if isinstance(module, nn.Linear)]


def density(optimizer: torch.optim.Optimizer) -> float:
    """The share of active weights; 1 for a dense run."""
    return round(float(getattr(optimizer, "density", 1.0)), 6)


def made_with() -> dict[str, str]:
    """What the last line of a section says of a run: commit, torch and processor."""
    here = machine()
    return {key: here[key] for key in ("commit", "torch", "processor")}
