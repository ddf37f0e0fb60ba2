"""``grown_state="per_element_step"``: Adam's bias correction with a clock for each weight.

Adam divides its moments by ``1 - beta ** t`` with one ``t`` per tensor. A weight grown late has
zero moments and no correction left: its first updates are up to 6.6 times the learning rate. Here
the moments of young weights are stretched before the inner step, so that after it, and after Adam's
own division, the update is that of a weight whose clock started when it was grown (its first update
is the learning rate); then they are relaxed to their true values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from .layers import Layer

__all__ = ["BiasCorrection", "Moments", "check_supported"]

BORN = "born"  # in Layer.extras: the inner optimizer's step count when the weight was grown


@dataclass
class Moments:
    """One layer as the inner optimizer sees it: all tensors of one layout."""

    state: dict[str, Any]
    weight: Tensor
    grad: Tensor
    born: Tensor


def check_supported(inner: Optimizer) -> None:
    """Raise ValueError unless the optimizer is Adam or AdamW without amsgrad."""
    amsgrad = any(group.get("amsgrad") for group in inner.param_groups)
    if not isinstance(inner, (Adam, AdamW)) or amsgrad:
        raise ValueError(
            "grown_state='per_element_step' needs torch.optim.Adam or AdamW without amsgrad, not "
            f"{type(inner).__name__}{' with amsgrad' if amsgrad else ''}; use 'zero' or 'mean'"
        )


@dataclass
class Stretched:
    """One stretched moment, and what it takes to relax it or to undo the stretch."""

    state: dict[str, Any]
    clock: float
    moment: Tensor
    factor: Tensor
    original: Tensor

    def relax(self) -> None:
        if float(self.state["step"]) < self.clock:  # the inner step failed before this tensor
            self.moment.copy_(self.original)
        else:
            self.moment.div_(self.factor)


class BiasCorrection:
    """Stretches the moments of young weights before a step and relaxes them after it."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.stretched: list[Stretched] = []

    def stretch(self, one: Moments, group: dict[str, Any]) -> None:
        """Make Adam's division by one clock per tensor come out as one clock per weight."""
        gradient = effective_gradient(one, group, isinstance(self.inner, AdamW))
        for key, beta, value in (
            ("exp_avg", float(group["betas"][0]), gradient),
            ("exp_avg_sq", float(group["betas"][1]), gradient.square()),
        ):
            if beta > 0.0:
                self._stretch(one, key, value, beta)

    def _stretch(self, one: Moments, key: str, value: Tensor, beta: float) -> None:
        moment, clock, born = one.state[key], float(one.state["step"]) + 1, one.born
        age = (clock - born).clamp(min=1).to(torch.float64)
        factor = ((1.0 - beta**clock) / (1.0 - beta**age)).to(moment.dtype)
        after = torch.lerp(value, moment, beta)
        wanted = (after * factor - (1.0 - beta) * value) / beta
        factor = torch.where(born > 0, factor, torch.ones_like(factor))
        self.stretched.append(Stretched(one.state, clock, moment, factor, moment.clone()))
        moment.copy_(torch.where(born > 0, wanted, moment))

    def relax(self) -> None:
        """Give the moments their true values back, after the inner step or its failure."""
        for one in self.stretched:
            one.relax()
        self.stretched.clear()


def effective_gradient(one: Moments, group: dict[str, Any], decoupled: bool) -> Tensor:
    """What Adam averages: the gradient, negated to maximize, with L2 decay where it has any."""
    gradient = -one.grad if group.get("maximize") else one.grad
    if group["weight_decay"] and not (decoupled or group.get("decoupled_weight_decay")):
        return gradient.add(one.weight, alpha=group["weight_decay"])
    return gradient


def never_grown(layer: Layer) -> Tensor:
    return torch.zeros_like(layer.mask, dtype=torch.int32)


def mark_grown(layer: Layer, fresh: Tensor, clock: float) -> None:
    """Remember when weights were grown, by the inner optimizer's own step count."""
    born = layer.extras.get(BORN)
    if born is None:
        born = layer.extras[BORN] = never_grown(layer)
    born.masked_fill_(fresh, int(clock))
