"""Which optimizer state holds one value per weight, and what value a new weight starts from."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..shards import whole

__all__ = ["ELEMENTWISE", "NEUTRAL", "StateTable", "forget_state", "state_of"]

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
    "slow_params": 0.0,  # Lookahead: older weights
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

ELEMENTWISE: set[Any] = {
    # optimizers whose rule treats every entry by itself (or by sums over all entries, to which
    # inactive ones add nothing): they may work on the active values alone
    "torch.optim.SGD",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.RMSprop",
    "torch.optim.Adagrad",
    "torch.optim.Adadelta",
    "torch.optim.Adamax",
    "torch.optim.NAdam",
    "torch.optim.RAdam",
    "torch.optim.ASGD",
    "torch.optim.Rprop",
    "pytorch_optimizer.Lion",
}
"""Optimizers that may be given the active values only; add the class, or the name, of yours."""

BEFORE, AFTER = "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"  # where torch has them

MIXING_OPTIONS = ("use_gc", "caution", "cautious")
"""Options of parameter groups that make an element-wise rule look at the whole tensor."""


def is_elementwise(inner: Optimizer) -> bool:
    """Whether the optimizer's rule is known to be element-wise; subclasses are not trusted."""
    kind = type(inner)
    package = "torch.optim" if of_torch(inner) else kind.__module__.partition(".")[0]
    known = {kind, kind.__name__, f"{package}.{kind.__name__}"} & ELEMENTWISE
    mixing = any(group.get(name) for group in inner.param_groups for name in MIXING_OPTIONS)
    return bool(known) and not mixing


def of_torch(inner: Optimizer) -> bool:
    return type(inner).__module__.startswith("torch.optim.")


def keeps_zeros(inner: Optimizer) -> bool:
    """Whether zero weights with zero gradients provably stay zero (eps=0 makes 0 / 0)."""
    if not (is_elementwise(inner) and of_torch(inner)) or runs_more(inner):
        return False
    return all(group.get("eps", 1.0) > 0 for group in inner.param_groups)


def runs_more(inner: Optimizer) -> bool:
    """Whether something of the user's runs inside the step: a hook, or a step put in its place."""
    patched = inner.__dict__.get("step")
    by_scheduler = getattr(patched, "_wrapped_by_lr_sched", False)
    hooks = getattr(inner, AFTER, None)
    return bool(hooks) or (patched is not None and not by_scheduler)


def run_hooks(inner: Optimizer, which: str, closure: Any = None) -> None:
    """Call the hooks that the user gave to the inner optimizer, as its ``step`` calls them."""
    given = (inner,) if closure is None else (inner, closure)
    for hook in list(getattr(inner, which, {}).values()):
        hook(inner, given, {})


@contextmanager
def without_hooks(inner: Optimizer, which: Sequence[str]) -> Iterator[None]:
    """For as long as the inner optimizer steps without them."""
    taken = {name: inner.__dict__[name] for name in which if inner.__dict__.get(name)}
    inner.__dict__.update({name: OrderedDict() for name in taken})
    try:
        yield
    finally:
        inner.__dict__.update(taken)


def state_of(inner: Optimizer) -> Any:
    """Where the optimizer keeps its state: ZeroRedundancyOptimizer's is one optimizer further in.

    There each process has the state of its own share of the parameters alone.
    """
    optimizer: Any = inner
    nested = type(inner).__name__ == "ZeroRedundancyOptimizer"
    return optimizer.optim.state if nested else optimizer.state


def forget_state(inner: Optimizer) -> None:
    """Let every parameter start again, as before its first step."""
    if not isinstance(inner, torch.optim.Adagrad):
        state_of(inner).clear()
        return
    # Adagrad of older torch makes its state when it is built, and misses it afterwards
    for entry in filter(None, state_of(inner).values()):
        entry["step"].zero_()
        entry["sum"].fill_(inner.defaults["initial_accumulator_value"])


class StateTable:
    """Looks up element-wise state; warns once for each key that it does not know."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.warned: set[str] = set()

    def elementwise(
        self, weight: Tensor, group: dict[str, Any], shape: torch.Size
    ) -> Iterator[tuple[str, Tensor, float]]:
        """State tensors of this shape with one value per weight: key, tensor, neutral value."""
        mixed = MIXED.get(type(self.inner).__name__, set())
        for key, value in state_of(self.inner).get(weight, {}).items():
            if not torch.is_tensor(value) or (value.numel() <= 1 and shape.numel() > 1):
                continue
            if key in NEUTRAL and key not in mixed and value.shape == shape:
                neutral = NEUTRAL[key]
                yield (
                    key,
                    value,
                    float(group.get(neutral, 0.0) if isinstance(neutral, str) else neutral),
                )
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


def mean_of(value: Tensor, number: int) -> float:
    """Mean over so many entries, where all others are zero; 0 if there are none."""
    return float(whole(value.sum())) / number if number else 0.0
