"""How the inner optimizer sees a layer.

:class:`Masked` keeps weights, gradients and optimizer state as dense tensors whose inactive entries
are exactly zero; it works for every optimizer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .bias_correction import BORN, BiasCorrection, Moments, mark_grown
from .layers import Layer
from .update import Change

__all__ = ["NEUTRAL", "Masked"]

NEUTRAL: dict[str, float | str] = {
    # key of element-wise optimizer state -> the value of an entry that has seen no gradient:
    # a number, or the name of the parameter group's option that holds it
    "momentum_buffer": 0.0,  # SGD, RMSprop, Muon
    "exp_avg": 0.0,  # Adam and its relatives, Lion, LAMB
    "exp_avg_sq": 0.0,
    "max_exp_avg_sq": 0.0,
    "exp_inf": 0.0,  # Adamax
    "exp_avg_var": 0.0,  # AdaBelief
    "max_exp_avg_var": 0.0,
    "exp_avg_diff": 0.0,  # Adan
    "exp_avg_nest_sq": 0.0,
    "previous_grad": 0.0,
    "neg_pre_grad": 0.0,
    "exp_avg_fast": 0.0,  # AdEMAMix
    "exp_avg_slow": 0.0,
    "hessian": 0.0,  # Sophia
    "square_avg": 0.0,  # RMSprop, Adadelta
    "grad_avg": 0.0,  # RMSprop, centered
    "acc_delta": 0.0,  # Adadelta
    "sum": "initial_accumulator_value",  # Adagrad
    "ax": 0.0,  # ASGD: an average of weights
    "z": 0.0,  # schedule-free: the weights before averaging
    "prev": 0.0,  # Rprop
    "step_size": "lr",  # Rprop
}
"""Optimizer state cleared where weights are dropped or grown; add keys of your optimizer."""

MIXED = {
    # state that mixes entries (rows, columns, rotations): clearing an entry has no meaning
    "Adafactor": {"row_var", "col_var", "variance"},
    "SOAP": {"exp_avg", "exp_avg_sq", "GG", "Q"},
    "Shampoo": set[str](),
}


class Masked:
    """Dense tensors with zeros: the inner optimizer works on the model's own parameters."""

    name = "masked"

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.warned: set[str] = set()
        self.correction = BiasCorrection(inner)

    def step(self, closure: Callable[[], Any] | None) -> Any:
        """One step of the inner optimizer."""
        return self.inner.step() if closure is None else self.inner.step(closure)

    @torch.no_grad()
    def stretch(self, layer: Layer) -> None:
        """Before a step: give weights grown late a bias correction of their own."""
        state = self.inner.state.get(layer.weight, {})
        if BORN in layer.extras and "exp_avg" in state and layer.weight.grad is not None:
            born = layer.extras[BORN]
            moments = Moments(state, layer.weight, layer.weight.grad, born)
            self.correction.stretch(moments, self.inner.param_groups[layer.key[0]])

    @torch.no_grad()
    def relax(self) -> None:
        """After a step: undo what ``stretch`` did to the moments."""
        self.correction.relax()

    @torch.no_grad()
    def mask_weights(self, layer: Layer) -> None:
        """Make inactive weights exactly zero, whatever the inner optimizer wrote there.

        Optimizers that mix entries (Muon, Shampoo) write into them even where the gradient is zero.
        """
        if not layer.dense:
            layer.weight.masked_fill_(~layer.mask, 0.0)

    @torch.no_grad()
    def clean(self, layer: Layer) -> None:
        """Zero inactive weights, neutral state there: for what came from elsewhere."""
        self.mask_weights(layer)
        for value, neutral in self.elementwise_state(layer):
            value.masked_fill_(~layer.mask, neutral)

    @torch.no_grad()
    def carry_out(self, change: Change, grown_state: str) -> None:
        """Move the layer to its new topology: grown weights are zero, survivors untouched."""
        layer, fresh = change.layer, change.fresh
        gone = layer.mask & ~change.mask
        layer.set_mask(change.mask)
        layer.weight.masked_fill_(gone | fresh, 0.0)
        if layer.weight.grad is not None:
            layer.weight.grad.masked_fill_(~layer.mask, 0.0)
        if grown_state == "per_element_step":
            clock = self.inner.state.get(layer.weight, {}).get("step", 0)
            mark_grown(layer, fresh, float(clock))
        for value, neutral in self.elementwise_state(layer):
            fill = neutral
            if grown_state == "mean" and neutral == 0.0:
                fill = mean_of(value, layer.mask & ~fresh)
            value.masked_fill_(gone, neutral).masked_fill_(fresh, fill)

    def elementwise_state(self, layer: Layer) -> Iterator[tuple[Tensor, float]]:
        """Every state tensor with one value per weight, with its neutral value."""
        state = self.inner.state.get(layer.weight, {})
        group = self.inner.param_groups[layer.key[0]]
        mixed = MIXED.get(type(self.inner).__name__, set())
        for key, value in state.items():
            if not torch.is_tensor(value) or value.numel() <= 1 and layer.numel > 1:
                continue
            if key in NEUTRAL and key not in mixed and value.shape == layer.weight.shape:
                neutral = NEUTRAL[key]
                yield value, float(group.get(neutral, 0.0) if isinstance(neutral, str) else neutral)
            elif key not in mixed and value.is_floating_point():
                self._warn(key)

    def _warn(self, key: str) -> None:
        if key in self.warned:
            return
        self.warned.add(key)
        warnings.warn(
            f"state {key!r} of {type(self.inner).__name__} is not known to hold one value per "
            "weight: it is left alone when weights are dropped and grown. If it does, add it: "
            f"sparseopt.storage.NEUTRAL[{key!r}] = 0.0",
            stacklevel=2,
        )


def mean_of(value: Tensor, where: Tensor) -> float:
    """Mean over the entries ``where``; 0 if there are none."""
    number = int(torch.count_nonzero(where))
    return float(value.masked_fill(~where, 0.0).sum()) / number if number else 0.0
