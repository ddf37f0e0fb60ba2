"""Gradients that see the sparse model, and the dense ones that growth asks for.

Autograd computes the gradient of every entry. A hook zeroes the inactive ones as soon as they are
accumulated, so that clipping and norms see the sparse model (a truly sparse one would have no such
entries). In the window before an update that grows by gradient, the hook first adds the dense
gradient to a buffer; the buffer lives from the first micro-batch of that step to the update.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from .layers import Layer
from .storage.zeroing import zero_at_sentinels, zero_inactive

__all__ = ["Hooks", "dense_gradient", "mask_gradient", "refuse_gradients"]


@dataclass
class Window:
    """The dense gradient summed over the micro-batches of one step.

    ``grad`` and ``version`` tell whether the parameter's gradient was only added to since, or
    zeroed or replaced: then the sum starts again.
    """

    dense: Tensor
    grad: weakref.ref[Tensor]
    version: int


class Hooks:
    """Masks gradients as they are accumulated; keeps the dense ones while ``collecting``.

    One object per optimizer, not copied with it: parameters lose their hooks when copied.
    """

    def __init__(self) -> None:
        self.collecting = False
        self.windows: dict[int, Window] = {}
        self.masked: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.handles: dict[int, RemovableHandle] = {}

    def attach(self, layer: Layer) -> None:
        """Watch the layer's parameter; a second call moves the hook to a new parameter object."""
        if id(layer) in self.handles:
            self.handles[id(layer)].remove()
        hook = _hook(weakref.ref(self), weakref.ref(layer))
        self.handles[id(layer)] = layer.weight.register_post_accumulate_grad_hook(hook)

    def remove(self) -> None:
        """Leave all parameters as if they had never been watched."""
        for handle in self.handles.values():
            handle.remove()
        self.handles.clear()
        self.forget()

    def forget(self) -> None:
        """Drop what was collected: the gradients were used or zeroed."""
        self.windows.clear()
        self.masked.clear()

    @torch.no_grad()
    def accumulate(self, layer: Layer) -> None:
        """Keep the dense gradient if it is wanted, then mask the parameter's own."""
        grad = layer.weight.grad
        if grad is None:
            return
        refuse_gradients([layer])
        if self.collecting:
            self._collect(layer, grad)
        self.mask(layer)
        if self.collecting:
            self.windows[id(layer)].version = grad._version  # as masking left it

    def _collect(self, layer: Layer, grad: Tensor) -> None:
        last = self.windows.get(id(layer))
        if last is not None and last.grad() is grad and grad._version == last.version + 1:
            # inactive entries were zeroed after the last micro-batch: they hold this one alone
            dense = torch.where(layer.mask, grad, last.dense + grad)
        else:
            dense = grad.detach().clone()
        self.windows[id(layer)] = Window(dense, weakref.ref(grad), grad._version)

    def lost(self, layer: Layer) -> bool:
        """Whether the present gradient was masked without its dense values being kept."""
        grad, last = layer.weight.grad, self.masked.get(id(layer))
        seen = grad is not None and last is not None and last[0]() is grad
        return seen and id(layer) not in self.windows

    def assume_masked(self, layer: Layer) -> None:
        """For a copy made between backward and step: its gradients were masked in the original."""
        grad = layer.weight.grad
        if grad is not None:
            self.masked[id(layer)] = (weakref.ref(grad), grad._version)

    def mask(self, layer: Layer) -> None:
        """Zero the inactive entries of the gradient, unless that is what was done to it last."""
        grad = layer.weight.grad
        if grad is None or layer.dense:
            return  # a dense layer's gradient is the dense gradient
        last = self.masked.get(id(layer))
        seen = last is not None and last[0]() is grad and last[1] == grad._version
        if seen and zero_at_sentinels(grad.detach(), layer):
            return
        grad = layer.weight.grad = mask_gradient(layer, grad)
        self.masked[id(layer)] = (weakref.ref(grad), grad._version)


def _hook(hooks: weakref.ref[Hooks], layer: weakref.ref[Layer]) -> Callable[[Tensor], None]:
    """A hook that dies with its optimizer, so that wrapping anew leaves no old mask at work."""

    def hook(weight: Tensor) -> None:
        watcher, watched = hooks(), layer()
        if watcher is not None and watched is not None and watched.weight is weight:
            watcher.accumulate(watched)

    return hook


def mask_gradient(layer: Layer, grad: Tensor) -> Tensor:
    """The gradient with zeros at inactive entries; in place where autograd allows it."""
    if grad.requires_grad:  # backward(create_graph=True)
        return grad.masked_fill(~layer.mask, 0.0)
    return zero_inactive(grad, layer.mask)


def refuse_gradients(layers: Sequence[Layer]) -> None:
    """Raise TypeError, naming the parameter, for gradients that cannot be masked by entry."""
    for layer in layers:
        grad = layer.weight.grad
        if grad is not None and (grad.layout != torch.strided or grad.is_complex()):
            kind = "complex" if grad.is_complex() else f"sparse ({grad.layout})"
            raise TypeError(
                f"the gradient of {layer.name!r} is {kind}: only dense real gradients can be "
                "masked; exclude the parameter, or use sparse=False in its embedding"
            )


def dense_gradient(layer: Layer, hooks: Hooks) -> Tensor | None:
    """The dense gradient of the step about to be taken, in the units that the optimizer sees.

    What was collected is the gradient before unscaling and clipping. Both scale all entries alike,
    so the active ones, of which both versions are known, give the factor for the others.
    """
    grad = layer.weight.grad
    if grad is None:
        return None
    window = hooks.windows.get(id(layer))
    if window is None:  # set by hand (torch.func, autograd.grad): nothing has masked it yet
        return grad.detach().clone()
    dense = mean_over_replicas(window.dense)
    before = dense.masked_fill(~layer.mask, 0.0).norm()
    after = grad.detach().masked_fill(~layer.mask, 0.0).norm()
    factor = torch.where(before > 0, after / before, torch.ones_like(before))
    return torch.where(layer.mask, grad, dense * factor)


def mean_over_replicas(dense: Tensor) -> Tensor:
    """Average over the processes: the hook ran before DistributedDataParallel averaged."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return dense
    replicas = distributed.get_world_size()
    if replicas > 1:
        dense = dense / replicas
        distributed.all_reduce(dense)
    return dense
