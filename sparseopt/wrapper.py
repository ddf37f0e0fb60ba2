"""A torch optimizer around another one: what schedulers, scalers and trainers expect of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer, optimizer

from .watched import untouched

__all__ = ["Wrapper", "check_inner", "is_observed", "step_of", "with_hooks", "zero_grad_of"]

# GradScaler sets these on the object it is given; the inner optimizer would never see them
AMP_NAMES = ("grad_scale", "found_inf")


class Wrapper(Optimizer):
    """Everything of the inner optimizer, under another ``step``.

    Parameter groups, state and defaults are the inner optimizer's own objects, so that nothing
    goes stale when a checkpoint or a trainer replaces them. Subclasses give ``step``, ``_saved``
    and ``_load``. Proxies (Lightning, Fabric) run these methods on themselves and find attributes
    through ``__getattr__``: what changes is kept in objects that are changed in place.
    """

    # A fused optimizer skips a step with infinite gradients by itself, unseen; without this flag
    # GradScaler unscales for us and does not call step(): a skipped step then counts nothing.
    _step_supports_amp_scaling = False

    def __init__(self, inner: Optimizer) -> None:
        self._inner, defaults = inner, dict(inner.defaults)
        Optimizer.__setstate__(self, {})  # the hook tables, without a second copy of the groups
        for name in inner.defaults.keys() - defaults.keys():
            del inner.defaults[name]  # not ours to add

    @property
    def inner(self) -> Optimizer:
        """The optimizer that was wrapped."""
        return self._inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The inner optimizer's own groups."""
        return self._inner.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self._inner.param_groups = groups

    @property
    def state(self) -> Any:
        """The inner optimizer's own state.

        Under compact storage the entries of sparse layers hold one-dimensional tensors, a value
        for each active weight; ``state_dict()`` has them in the weight's shape.
        """
        return self._inner.state

    @state.setter
    def state(self, state: Any) -> None:
        self._inner.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The inner optimizer's own defaults."""
        return self._inner.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self._inner.defaults = defaults

    def __getattr__(self, name: str) -> Any:
        # train(), eval(), consolidate_state_dict() and whatever else the inner optimizer offers
        if name.startswith("__") or name in AMP_NAMES or "_inner" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._inner, name)

    def __getstate__(self) -> dict[str, Any]:
        # a scheduler leaves its patched step in __dict__, bound to this very object; hooks on the
        # optimizer are dropped, as torch does
        return {
            name: value
            for name, value in self.__dict__.items()
            if name != "step" and not name.startswith("_optimizer_")
        }

    def _saved(self) -> dict[str, Any]:
        raise NotImplementedError

    def _load(self, state_dict: dict[str, Any]) -> None:
        raise NotImplementedError

    @torch.compiler.disable
    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state dict with masks and counters merged in.

        A plain inner optimizer can load it, any storage can, and ``torch.load(weights_only=True)``
        reads it. As with torch, its tensors are the live ones.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = self._saved()
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        return state_dict

    @torch.compiler.disable
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a checkpoint: inner state, masks, counters, seed and history.

        A checkpoint of the dense inner optimizer loads too; the topology then stays as it is.

        Args:
            state_dict: What :meth:`state_dict` returned, in any storage.

        Raises:
            TypeError: If it is no dict.
            ValueError: If it is no optimizer's state dict, or was written by another recipe, for
                another sparsity or for another model; nothing has been changed then.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(
                f"state_dict={state_dict!r} must be what optimizer.state_dict() returned"
            )
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            state_dict = state_dict if replaced is None else replaced
        self._load(state_dict)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)


def with_hooks(step: Callable[..., Any]) -> Callable[..., Any]:
    """``step`` as torch dresses it, with hooks and a range in profiles, while there are any."""
    dressed = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def stepping(self: Optimizer, *args: Any, **kwargs: Any) -> Any:
        # a subclass has a step of its own, which torch has dressed
        ours = type(self).step is stepping
        return (dressed if ours and is_observed(self) else step)(self, *args, **kwargs)

    stepping.hooked = True  # type: ignore[attr-defined]
    return stepping


def step_of(inner: Optimizer) -> Callable[..., Any]:
    """The optimizer's ``step``, without torch's dress of it while nobody looks."""
    step = type(inner).step
    dressed = getattr(step, "__code__", None) is DRESS and "step" not in inner.__dict__
    if not dressed or is_observed(inner) or torch.compiler.is_compiling():
        return inner.step
    return functools.partial(step.__wrapped__, inner)  # type: ignore[attr-defined]


@torch.compiler.disable
def zero_grad_of(inner: Optimizer, set_to_none: bool) -> None:
    """Call the optimizer's ``zero_grad``, without its range in profiles while nobody looks."""
    zero = inner.zero_grad
    if getattr(zero, "__func__", None) is not ZERO_GRAD or not set_to_none:
        zero(set_to_none)
        return
    with untouched():  # torch's own asks for no values
        if is_profiled():
            zero(set_to_none)
            return
        for group in inner.param_groups:
            for weight in group["params"]:
                weight.grad = None


ZERO_GRAD = Optimizer.zero_grad  # torch's own, whatever takes its place later
DRESS = Optimizer.profile_hook_step(Optimizer.step).__code__


def is_observed(inner: Optimizer) -> bool:
    """Whether there are hooks on its steps, or a profiler.

    To open a range in profiles that nobody looks at would take a twentieth of a small step.
    """
    hooks = (
        inner._optimizer_step_pre_hooks
        or inner._optimizer_step_post_hooks
        or optimizer._global_optimizer_pre_hooks
        or optimizer._global_optimizer_post_hooks
    )
    return bool(hooks) or is_profiled()


def is_profiled() -> bool:
    """Whether a profiler runs, in this thread or, for all threads, in another."""
    return torch.autograd._profiler_enabled() or torch.autograd.profiler._is_profiler_enabled


def check_inner(optimizer: Any) -> None:
    """Raise TypeError unless it is an optimizer that has not been made sparse."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"optimizer={optimizer!r} must be a torch.optim.Optimizer, already built: "
            "SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), ...)"
        )
    if type(optimizer).__name__ == "PostLocalSGDOptimizer":
        raise TypeError(
            "PostLocalSGDOptimizer lets the weights of the processes drift apart between its "
            "averages, and their topologies with them: use the optimizer inside it, and "
            "DistributedDataParallel without it"
        )
    inner: Any = optimizer
    while inner is not None:
        if isinstance(inner, Wrapper):
            raise TypeError(
                "the optimizer is sparse already: wrap it once, with the algorithm you want"
            )
        inner = getattr(inner, "optimizer", None)  # Accelerate and others wrap in turn
