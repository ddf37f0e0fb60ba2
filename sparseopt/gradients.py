"""Gradients that see the sparse model, and the dense ones that growth asks for.

Autograd computes the gradient of every entry. A hook zeroes the inactive ones as soon as they are
accumulated, so that clipping and norms see the sparse model (a truly sparse one would have no such
entries). In the window before an update that grows by gradient, all entries stay until the end of
the backward pass, where a copy is kept and the inactive ones are zeroed; the copy lives from the
first micro-batch of that step to the update. DistributedDataParallel averages gradients before that
moment, the inactive entries with the others: replicas agree without a collective of ours, and
processes that train different models under one process group are left alone.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import _engine_run_backward
from torch.utils.hooks import RemovableHandle

from .layers import Layer, parameters
from .shards import is_sharded, version
from .storage.active_gradient import (
    ActiveGradient,
    holds_active_only,
    is_packable,
    pack,
    take_factors,
    writes_of,
)
from .storage.zeroing import zero_at_sentinels, zero_inactive
from .watched import ALONE, holders_of, untouched
from .windows import Window, in_a_process_group

__all__ = ["Hooks", "mask_gradient", "refuse_gradients"]


class Hooks:
    """Masks gradients as they are accumulated; keeps the dense ones while ``collecting``.

    One object per optimizer, not copied with it: parameters lose their hooks when copied.
    """

    def __init__(self) -> None:
        self.collecting = False
        self.windows: dict[int, Window] = {}
        self.masked: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self.handles: dict[int, RemovableHandle] = {}
        self.between: dict[int, RemovableHandle] = {}  # from one micro-batch to the next
        self.others: list[RemovableHandle] = []  # on parameters without a mask, while collecting
        self.layers: dict[int, weakref.ref[Layer]] = {}
        self.summed: set[int] = set()  # layers whose gradients are sums of several backward passes
        self.added: set[int] = set()  # layers whose gradients this backward pass added to
        self.backward = -1  # the backward pass at whose end the dense gradients are collected
        self.warned = False
        self.turn = 0

    def attach(self, layer: Layer) -> None:
        """Watch the layer's parameter; a second call moves the hook to a new parameter object."""
        if id(layer) in self.handles:
            self.handles[id(layer)].remove()
        usual_references()  # asked for now, outside of a backward pass
        hook = _hook(weakref.ref(self), weakref.ref(layer))
        self.handles[id(layer)] = layer.weight.register_post_accumulate_grad_hook(hook)
        self.layers[id(layer)] = weakref.ref(layer)
        LATEST[id(layer.weight)] = self

    def watches(self, layer: Layer) -> bool:
        """Whether no later optimizer has wrapped the parameter: its masks would be others."""
        latest = LATEST.get(id(layer.weight))
        return latest is None or latest is self

    def remove(self) -> None:
        """Leave all parameters as if they had never been watched."""
        _remove([*self.handles.values(), *self.others])
        self.handles.clear()
        self.others.clear()
        self.layers.clear()
        self.forget()

    def collect(self, wanted: bool, groups: Sequence[dict[str, Any]]) -> None:
        """Keep the dense gradients of the next backward passes, or no longer.

        DDP may bring a process the gradients of layers that it has not run: any parameter's hook
        will do to notice the backward pass.
        """
        self.collecting = wanted
        if wanted and not self.others and in_a_process_group():
            hook = _notice(weakref.ref(self))
            self.others = [
                weight.register_post_accumulate_grad_hook(hook)
                for _, _, weight in parameters(groups)
                if weight.requires_grad and not is_sharded(weight)
            ]
        if not wanted:
            _remove(self.others)
            self.others.clear()

    def forget(self) -> None:
        """Drop what was collected: the gradients were used or zeroed."""
        _remove(self.between.values())
        self.between.clear()
        self.windows.clear()
        self.masked.clear()
        self.added.clear()
        self.turn += 1

    def accumulate(self, layer: Layer) -> None:
        """Mask the parameter's gradient, or have its dense values kept if they are wanted."""
        if torch.is_grad_enabled():  # backward(create_graph=True)
            with torch.no_grad():
                self.accumulate(layer)
            return
        held = is_held(layer)
        grad = gradient_of(layer)
        if grad is None or not self.watches(layer):
            return
        refuse_gradient(layer.name, grad)
        if not self.collecting:
            self.mask(layer, held)
            return
        last = self.windows.get(id(layer))
        if last is not None and last.added_to(grad):
            # inactive entries were zeroed after the last micro-batch: they hold this one alone
            grad.add_(zero_inactive(last.dense.clone(), ~layer.mask))
        self.added.add(id(layer))
        self.collect_at_the_end()

    def collect_at_the_end(self) -> None:
        """Have the dense gradients collected once the backward pass, and DDP with it, is done."""
        now = torch._C._current_graph_task_id()
        if now == -1:
            self._collect()
        elif now != self.backward and not in_a_nested_backward():
            self.backward = now
            # DDP asks for its own last act during the pass; what we ask for at its end comes later
            at_the_end(lambda: at_the_end(self._collect))

    @torch.compiler.disable
    @torch.no_grad()
    def _collect(self) -> None:
        """Keep a copy of the dense gradients, then mask them: also those that DDP brought alone."""
        for watched in self.layers.values():
            layer = watched()
            if layer is not None and self.watches(layer):
                self._collect_one(layer)

    def _collect_one(self, layer: Layer) -> None:
        held = is_held(layer)
        grad = gradient_of(layer)
        if grad is None:
            return
        last = self.windows.get(id(layer))
        added = id(layer) in self.added
        self.added.discard(id(layer))
        if last is not None and last.is_of(grad, added):
            return  # nothing was added in this backward pass
        refuse_gradient(layer.name, grad)
        dense: Tensor | None = take_factors(grad)
        if dense is None:
            dense = grad.detach()
            if held or not self.packs(layer, grad):  # it is masked in place
                dense = dense.clone()
        self.mask(layer, held)
        grad = layer.weight.grad if layer.weight.grad is not None else grad
        self.windows[id(layer)] = Window(dense, weakref.ref(grad), version(grad), writes_of(grad))
        if id(layer) not in self.between and not is_sharded(grad):
            hook = _before(weakref.ref(self), weakref.ref(layer))
            self.between[id(layer)] = layer.weight.register_hook(hook)

    @torch.no_grad()
    def before(self, layer: Layer) -> None:
        """Look at the gradient before a further micro-batch is added to it."""
        grad, last = layer.weight.grad, self.windows.get(id(layer))
        if last is None or id(layer) in self.added:
            return
        if grad is None:
            del self.windows[id(layer)]
        elif not last.is_of(grad, added=False):
            last.follow(layer, grad)

    def lost(self, layer: Layer) -> bool:
        """Whether the present gradient was masked without its dense values being kept."""
        grad, last = layer.weight.grad, self.masked.get(id(layer))
        seen = grad is not None and last is not None and last[0]() is grad
        return seen and id(layer) not in self.windows

    def assume_masked(self, layer: Layer) -> None:
        """For a copy made between backward and step: its gradients were masked in the original."""
        grad = layer.weight.grad
        if grad is not None:
            self.masked[id(layer)] = (weakref.ref(grad), version(grad))

    def mask(self, layer: Layer, held: bool = True) -> None:
        """Zero the inactive entries of the gradient, unless that is what was done to it last.

        ``held`` says that somebody may have got hold of it, and go on writing it.
        """
        grad = gradient_of(layer)
        if grad is None or layer.dense:
            return  # a dense layer's gradient is the dense gradient
        if holds_active_only(grad):  # from sparse compute: there is nothing else in it
            self.masked[id(layer)] = (weakref.ref(grad), version(grad))
            return
        last = self.masked.get(id(layer))
        seen = last is not None and last[0]() is grad and last[1] == version(grad)
        if seen and zero_at_sentinels(grad.detach(), layer, self.turn):
            return
        if not held and self.packs(layer, grad):
            grad = pack(grad, layer.index)
        else:
            grad = mask_gradient(layer, self._unpacked(layer, grad))
        layer.weight.grad = grad
        self.masked[id(layer)] = (weakref.ref(grad), version(grad))

    def packs(self, layer: Layer, grad: Tensor) -> bool:
        """Whether the active entries are kept alone; not of sums, which are made in the dense."""
        summed = id(layer) in self.summed or in_a_process_group()
        return not summed and is_packable(grad, layer.index)

    def _unpacked(self, layer: Layer, grad: Tensor) -> Tensor:
        """The plain tensor, if something was added to active entries that were kept alone."""
        if not isinstance(grad, ActiveGradient):
            return grad
        self.summed.add(id(layer))  # micro-batches: sums are made faster in the dense tensor
        return grad.to_plain()


LATEST: weakref.WeakValueDictionary[int, Hooks] = weakref.WeakValueDictionary()
"""The hooks of the optimizer that wrapped a parameter last, by the parameter's ``id``.

torch refuses to swap parameters (``torch.utils.swap_tensors``) to which there are weak references.
"""


def _hook(hooks: weakref.ref[Hooks], layer: weakref.ref[Layer]) -> Callable[[Tensor], None]:
    """A hook that dies with its optimizer, so that wrapping anew leaves no old mask at work."""

    @torch.compiler.disable  # autograd calls it from compiled functions, too
    def hook(weight: Tensor) -> None:
        watcher, watched = hooks(), layer()
        if watcher is not None and watched is not None and watched.weight is weight:
            watcher.accumulate(watched)

    return hook


def _before(hooks: weakref.ref[Hooks], layer: weakref.ref[Layer]) -> Callable[[Tensor], None]:
    """A hook called with what is about to be added to a gradient."""

    @torch.compiler.disable
    def hook(addend: Tensor) -> None:
        watcher, watched = hooks(), layer()
        if watcher is not None and watched is not None:
            watcher.before(watched)

    return hook


def _notice(hooks: weakref.ref[Hooks]) -> Callable[[Tensor], None]:
    """A hook that has dense gradients collected at the end of the backward pass."""

    @torch.compiler.disable
    def hook(weight: Tensor) -> None:
        watcher = hooks()
        if watcher is not None and watcher.collecting:
            watcher.collect_at_the_end()

    return hook


def _remove(handles: Iterable[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def at_the_end(call: Callable[[], None]) -> None:
    """Call this when the backward pass now running has ended."""
    Variable._execution_engine.queue_callback(call)


def in_a_nested_backward() -> bool:
    """Whether this backward pass runs inside another one, as in reentrant checkpointing.

    Its end is not the end of the outer one, in which DDP may still be averaging.
    """
    frame: FrameType | None = sys._getframe()
    started = False
    while frame is not None:
        if frame.f_code is BackwardCFunction.apply.__code__ and started:
            return True
        started = started or frame.f_code is _engine_run_backward.__code__
        frame = frame.f_back
    return False


def is_held(layer: Layer) -> bool:
    """Whether another hook took the gradient, so that it has to stay the tensor that it is."""
    if layer.index is None or torch.compiler.is_compiling():
        return True  # it will not be packed
    grad = gradient_of(layer)
    if type(grad) is not Tensor:
        return False
    (seen, memory), (usual, alone) = references(grad), usual_references()
    return seen > usual or (alone == ALONE[0] and memory > alone)


def references(value: Tensor) -> tuple[int, int]:
    """How many refer to a tensor, and how many tensors and storages to its memory."""
    return sys.getrefcount(value), holders_of(value.untyped_storage())


@functools.cache
def usual_references() -> tuple[int, int]:
    """The same of a gradient that autograd has just made; torch 2.7 holds more of them itself."""
    found = []

    def hook(weight: Tensor) -> None:
        grad: Any = weight.grad
        found.append(references(grad))

    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.ones(1, requires_grad=True)
        weight.register_post_accumulate_grad_hook(hook)
        (2 * weight).sum().backward()
    return found[0]


def gradient_of(layer: Layer) -> Tensor | None:
    with untouched():  # asks for no values
        return layer.weight.grad


def mask_gradient(layer: Layer, grad: Tensor) -> Tensor:
    """The gradient with zeros at inactive entries; in place where autograd allows it."""
    if grad.requires_grad:  # backward(create_graph=True)
        return grad.masked_fill(~layer.mask, 0.0)
    return zero_inactive(grad, layer.mask)


def refuse_gradients(layers: Sequence[Layer]) -> None:
    """Raise TypeError, naming the parameter, for gradients that cannot be masked by entry."""
    for layer in layers:
        grad = gradient_of(layer)
        if grad is not None:
            refuse_gradient(layer.name, grad)


def refuse_gradient(name: str, grad: Tensor) -> None:
    if grad.layout != torch.strided or grad.is_complex():
        kind = "complex" if grad.is_complex() else f"sparse ({grad.layout})"
        raise TypeError(
            f"the gradient of {name!r} is {kind}: only dense real gradients can be masked; "
            "exclude the parameter, or use sparse=False in its embedding"
        )
