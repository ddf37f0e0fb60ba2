"""Parameters and gradients without a model, and what an optimizer keeps of each weight."""

import torch
from common import rng
from torch import nn

from sparseopt import SparseOptimizer


def weights(shapes, seed=0, dtype=torch.float64):
    return [
        nn.Parameter(torch.randn(shape, generator=rng(seed + i), dtype=torch.float64).to(dtype))
        for i, shape in enumerate(shapes)
    ]


def give_gradients(parameters, seed):
    for i, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=rng(1000 * seed + i), dtype=torch.float64).to(p)


def take_all(name, weight):
    return True


def state_of(optimizer: SparseOptimizer):
    """Per layer: the optimizer state with one value per weight, in the layout of the weight."""
    saved = optimizer.state_dict()
    ids = [i for group in saved["param_groups"] for i in group["params"]]
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    for layer in optimizer.layers:
        position = next(i for i, p in enumerate(flat) if p is layer.weight)
        entries = saved["state"].get(ids[position], {})
        yield layer, {
            key: value for key, value in entries.items()
            if torch.is_tensor(value) and value.shape == layer.weight.shape
            and not key.startswith("sparse_")
        }  # fmt: skip
