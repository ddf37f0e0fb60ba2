"""Where sparse products pay: a density threshold, or a short measurement."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import Layer
from ..storage.packed import Packed, scatter
from ..watched import untouched
from .linear import Product, Watcher
from .structure import Structure

__all__ = ["HIGHEST_DENSITY", "MEASURED", "Choose", "chooser"]

HIGHEST_DENSITY = 0.3
"""``compute="sparse"`` takes Linear layers up to this density."""

MEASURED: dict[tuple[Any, ...], tuple[float, float]] = {}
"""What ``compute="auto"`` measured: (shape, density, rows, type, threads, training) to the seconds
of (sparse, dense). Entries that are there are not measured again; change or clear them freely."""

GAIN = 0.9  # sparse products are taken where they need less than this share of the dense time
ROUNDS = 5

Choose = Callable[[Layer, int], bool]
"""``(layer, rows) -> bool``: whether to multiply ``rows`` samples by active values only."""


def chooser(compute: str | Choose) -> Choose | None:
    """What ``compute=`` asks for; None where the answer is to be measured.

    Raises:
        ValueError: For an unknown name.
        TypeError: For something else than a name or a callable.
    """
    if callable(compute):
        return compute
    if not isinstance(compute, str):
        raise TypeError(
            f"compute={compute!r} must be 'dense', 'sparse', 'auto', or a callable "
            "(layer, rows) -> bool"
        )
    if compute not in ("dense", "sparse", "auto"):
        raise ValueError(f"compute={compute!r} is not one of 'dense', 'sparse', 'auto'")
    if compute == "auto":
        return None
    return below_threshold if compute == "sparse" else never


def below_threshold(layer: Layer, rows: int) -> bool:
    return layer.density <= HIGHEST_DENSITY


def never(layer: Layer, rows: int) -> bool:
    return False


def pays(
    layer: Layer,
    structure: Structure,
    module: nn.Linear,
    values: Tensor,
    lower: torch.dtype | None = None,
) -> bool:
    """Whether sparse products were measured to be faster, for such a layer and so many rows."""
    about = 1 << (rows_of(values) - 1).bit_length()  # one serves up to twice as many rows
    dtype, threads = lower or values.dtype, torch.get_num_threads()
    with untouched():
        training = torch.is_grad_enabled() and layer.weight.requires_grad
    case = (structure.shape, structure.density, about, dtype, threads, training)
    seconds = MEASURED.get(case)
    if seconds is None:
        seconds = MEASURED[case] = measure(structure, module, values, training, dtype)
    sparse, dense = seconds
    return sparse < GAIN * dense


def rows_of(values: Tensor) -> int:
    """How many vectors of features these are."""
    return values.numel() // values.shape[-1]


def measure(
    structure: Structure, module: nn.Linear, values: Tensor, training: bool, dtype: torch.dtype
) -> tuple[float, float]:
    """Seconds of the sparse product, and of the dense one in the precision that it would have.

    In training with the backward pass, and with what compact storage does in a step for a weight
    that was multiplied densely. The least of five: a busy machine only ever adds to it.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    mine = torch.autograd.graph.saved_tensors_hooks(same, same)  # checkpoints count what is saved
    with torch.set_grad_enabled(training), mine:
        weight = module.weight.detach().clone().requires_grad_(training)
        inputs = values.detach().requires_grad_(training)
        for _ in range(ROUNDS + 1):  # the first round warms up
            seconds[0].append(timed(lambda: sparse_product(inputs, weight, structure), weight))
            dense = timed(lambda: dense_product(inputs, weight, dtype), weight, structure.packed)
            seconds[1].append(dense)
    return min(seconds[0][1:]), min(seconds[1][1:])


def same(values: Tensor) -> Tensor:
    return values


def sparse_product(inputs: Tensor, weight: Tensor, structure: Structure) -> Tensor:
    structure.turned_at = None  # in training, values are new in every step
    return Product.apply(inputs, weight, None, structure, Watcher(), True)


def dense_product(inputs: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return nn.functional.linear(inputs.to(dtype), weight.to(dtype))


def timed(product: Callable[[], Tensor], weight: Tensor, written: Packed | None = None) -> float:
    weight.grad = None
    begin = time.perf_counter()
    outputs = product()
    if outputs.requires_grad:
        outputs.backward(torch.ones_like(outputs))
        if written is not None:
            take_and_write(weight, written)
    return time.perf_counter() - begin


@torch.no_grad()
def take_and_write(weight: Tensor, packed: Packed) -> None:
    """Gather the active entries of the gradient, and write those of the weight."""
    if weight.grad is not None:
        weight.grad.view(-1).index_select(0, packed.index)
    scatter(weight.detach(), packed.index, packed.values.detach())
