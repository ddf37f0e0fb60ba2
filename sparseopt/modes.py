"""Measure a model without changing it: what analysis and robustness share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["device_of", "evaluating"]


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter or buffer of the model is."""
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Evaluation mode on `device`; every module's mode and the device are restored after."""
    modes = {module: module.training for module in model.modules()}
    before = device_of(model)
    try:
        model.to(device).eval()
        yield
    finally:
        model.to(before)
        for module, mode in modes.items():
            module.training = mode
