"""What was collected of the dense gradients of one step, and what the optimizer would see of it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .layers import Layer
from .shards import is_sharded, local, sum_over, version
from .storage.active_gradient import holds_factors, known_values, times, writes_of
from .storage.zeroing import is_here, same_where, zero_inactive

if TYPE_CHECKING:
    from .gradients import Hooks

__all__ = ["Window", "dense_gradients", "in_a_process_group"]


@dataclass
class Window:
    """The dense gradient summed over the micro-batches of one step.

    ``grad`` and ``version`` tell whether the parameter's gradient was only added to since, or
    zeroed or replaced: then the sum starts again. ``writes`` tells the same of a gradient that
    holds its active entries alone; there it counts what autograd does not.
    """

    dense: Tensor
    grad: weakref.ref[Tensor]
    version: int
    writes: int = -1

    def added_to(self, grad: Tensor) -> bool:
        """Whether this gradient is the one known, with one micro-batch added.

        Shards of one FSDP2 group share their count of writes: it says too much there.
        """
        writes = version(grad) - self.version
        return self.grad() is grad and (writes > 0 if is_sharded(grad) else writes == 1)

    def is_of(self, grad: Tensor, added: bool) -> bool:
        """Whether this gradient is the one known, with nothing added."""
        same = not added if is_sharded(grad) else version(grad) == self.version
        return self.grad() is grad and same

    def follow(self, layer: Layer, grad: Tensor) -> None:
        """Scale the sum as the gradient was scaled, or zeroed, since the last micro-batch.

        Both know the active entries.
        """
        then, now = active_part(layer, self.dense), active_part(layer, grad)
        square = then.square().sum()
        self.dense.mul_(torch.where(square > 0, (then * now).sum() / square, 1.0))
        self.grad, self.version, self.writes = weakref.ref(grad), version(grad), -1


def dense_gradients(layers: Sequence[Layer], hooks: Hooks) -> list[Tensor | None]:
    """The dense gradients of the step about to be taken, in the units that the optimizer sees."""
    cut: dict[Any, dict[int, tuple[Layer, Tensor]]] = {}  # by the processes they are cut over
    for layer in layers:
        weight: Any = layer.weight
        if is_sharded(weight) and weight.grad is not None and id(layer) in hooks.windows:
            cut.setdefault(weight.device_mesh, {})[id(layer)] = layer, weight.grad
    scales: dict[int, Tensor | None] = {}
    for together in cut.values():
        scales |= scales_of_shards(together, hooks)
    return [dense_gradient(layer, hooks, scales) for layer in layers]


def dense_gradient(layer: Layer, hooks: Hooks, scales: dict[int, Tensor | None]) -> Tensor | None:
    """What was collected, unscaled and clipped as the gradient was since.

    Both scale all entries alike, so the active ones, of which both versions are known, give the
    scale for the others.
    """
    grad = layer.weight.grad
    if grad is None:
        return None
    window = hooks.windows.get(id(layer))
    if window is None:  # set by hand (torch.func, autograd.grad): nothing has masked it yet
        return grad.detach().clone()
    scale = scales[id(layer)] if is_sharded(grad) else scale_of(layer, window, grad)
    if scale is None:
        return window.dense
    now = active_part(layer, grad.detach())
    if holds_factors(window.dense) and is_multiple(now, active_part(layer, window.dense), scale):
        return times(window.dense, scale)
    dense = (window.dense * scale).to(grad.dtype)  # model.double() may have come in between
    if not (hooks.warned or is_sharded(grad)) and in_a_process_group():
        hooks.warned = was_rewritten(layer, grad, dense)
    if layer.index is None:
        return zero_inactive(dense, ~layer.mask).add_(now)
    return dense.reshape(-1).index_copy_(0, layer.index, now).view(layer.shape)


def scale_of(layer: Layer, window: Window, grad: Tensor) -> Tensor | None:
    """By how much the active entries were scaled; None: not at all."""
    if window.grad() is grad and window.writes == writes_of(grad) >= 0:
        return None
    here = is_here(grad)
    if here and layer.index is None and same_where(window.dense, grad.detach(), layer.mask):
        return None
    then, now = active_part(layer, window.dense), active_part(layer, grad.detach())
    if here and torch.equal(then, now):
        return None
    return ratio(length(then), length(now))


def length(values: Tensor) -> Tensor:
    """Euclidean norm, which squares in half precision would overflow."""
    return torch.linalg.vector_norm(values, dtype=torch.promote_types(values.dtype, torch.float32))


def scales_of_shards(
    together: dict[int, tuple[Layer, Tensor]], hooks: Hooks
) -> dict[int, Tensor | None]:
    """The same of layers cut over the same processes, by one exchange of three numbers for each."""
    numbers = []
    for key, (layer, grad) in together.items():
        then = local(active_part(layer, hooks.windows[key].dense)).double()
        now = local(active_part(layer, grad.detach())).double()
        numbers.append(torch.stack([then.ne(now).sum(), then.square().sum(), now.square().sum()]))
    found = sum_over(torch.stack(numbers), grad)
    return {
        key: ratio(before.sqrt(), after.sqrt()) if changed else None
        for key, (changed, before, after) in zip(together, found, strict=True)
    }


def is_multiple(now: Tensor, then: Tensor, scale: Tensor) -> bool:
    """Whether all entries were scaled alike, but for rounding."""
    rounding = 1e3 * torch.finfo(now.dtype).eps
    return bool((now - scale * then).abs().le(rounding * now.abs()).all())


def ratio(before: Tensor, after: Tensor) -> Tensor:
    changed = (before > 0) & (before != after)  # not if both are infinite
    return torch.where(changed, after / before, torch.ones_like(before))


def active_part(layer: Layer, values: Tensor) -> Tensor:
    """The active entries, alone where the storage knows their positions, or among zeros."""
    if layer.index is not None:
        ready = known_values(values, layer.index)
        if ready is not None:
            return ready
        return values.reshape(-1).index_select(0, layer.index)
    return zero_inactive(values.clone(), layer.mask)


def was_rewritten(layer: Layer, grad: Tensor, dense: Tensor) -> bool:
    """Warn if the gradient was changed after the backward pass by more than a factor.

    Processes that average gradients by hand would grow each by its own inactive entries.
    """
    change = (grad - dense).masked_fill(~layer.mask, 0.0).abs().max()
    largest = grad.masked_fill(~layer.mask, 0.0).abs().max()
    if not bool(change > 0.01 * largest):
        return False
    warnings.warn(
        f"the gradient of {layer.name!r} was changed between backward() and step() by more than "
        "a factor; growth goes by the dense gradient as backward() left it. If processes average "
        "their gradients by hand, their topologies will differ: use DistributedDataParallel",
        stacklevel=2,
    )
    return True


def in_a_process_group() -> bool:
    """Whether there are other processes that might be replicas of this one."""
    distributed = torch.distributed
    ready = distributed.is_available() and distributed.is_initialized()
    return ready and distributed.get_world_size() > 1
