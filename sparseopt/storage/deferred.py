"""Weights that get their newest values when somebody reads them.

Compact storage steps on the active values alone. To spread them over the dense weight after every
step costs as much memory traffic as a dense step; where sparse products read the active values
themselves, nobody misses the dense copy. Such a parameter becomes a :class:`Deferred` one, in
place: the same object, in the modules, groups and lists that hold it. Every function, method or
attribute of torch that asks for its values first gives it these, and makes it an ordinary parameter
again. What gets at the memory past Python (C++ extensions, ``torch.func`` on the parameter itself)
meets a lock: torch raises our message instead of handing out old values. Memory that others hold
besides the parameter (``state = model.state_dict()``, ``p.data``, a NumPy view, a traced module)
is never deferred, so that whoever took it earlier finds new values in it after every step.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ..watched import Watched, is_alone, untouched

__all__ = ["Deferred", "awaits", "can_defer", "defer", "settle", "stamp"]

lock = getattr(torch._C, "_set_storage_data_ptr_access_error_msg", None)
unlock = getattr(torch._C, "_clear_storage_data_ptr_access_error_msg", None)
settling = threading.RLock()

MESSAGE = (
    "the newest values of the weight {name!r} are held by its SparseOptimizer, which computes "
    "sparsely, and what reads the weight here does not tell torch: give it p.detach(), or call "
    "optimizer.apply_masks() before, or optimizer.dense_compute() for good"
)


class Deferred(Watched):
    """A parameter whose values are still to be written; an ordinary one as soon as it is read."""

    awaited: tuple[Tensor, Tensor, tuple[int, int]]  # values, their positions, where the memory is

    @classmethod
    def only_reads(cls, func: Any, types: Any) -> bool:
        return False  # what reads has to find the values

    def release(self) -> None:
        """Write the values, and become an ordinary parameter."""
        settle(self)


def can_defer(weight: Tensor) -> bool:
    """Whether nobody but the parameter holds its memory, and this torch can lock it."""
    if lock is None or unlock is None or not weight.is_contiguous():
        return False
    return is_alone(weight)


def defer(weight: Tensor, name: str, values: Tensor, index: Tensor) -> bool:
    """Leave the values of ``weight`` at ``index`` to ``values``, now and as these change.

    Args:
        weight: A contiguous parameter; its version is counted up.
        name: Its name, for errors.
        values: One-dimensional: what belongs there; kept, not copied.
        index: Their positions, row-major.

    Returns:
        Whether it was done; otherwise the values have to be written.
    """
    if type(weight) is not Deferred:
        if not can_defer(weight):
            return False
        with untouched():
            memory = weight.untyped_storage()
            where = weight.data_ptr(), memory._cdata
        weight.awaited = values, index, where  # type: ignore[attr-defined]
        lock(memory._cdata, MESSAGE.format(name=name))  # type: ignore[misc]
        weight.__class__ = Deferred
    torch.autograd.graph.increment_version(weight)
    return True


def awaits(weight: Tensor | None, values: Tensor, index: Tensor) -> bool:
    """Whether it is a deferred parameter that gets these values: nobody has asked for it yet."""
    if type(weight) is not Deferred:
        return False
    awaited = weight.__dict__.get("awaited")  # another thread may settle the weight at any time
    return awaited is not None and awaited[0] is values and awaited[1] is index


def settle(weight: Tensor) -> bool:
    """Write what a deferred parameter waits for; no change for autograd, so no new version.

    Returns:
        Whether there was anything to write.
    """
    if type(weight) is not Deferred:
        return False
    with settling:
        if type(weight) is not Deferred:  # another thread was faster
            return False
        values, index, (_, memory) = weight.awaited
        unlock(memory)  # type: ignore[misc]
        with torch.no_grad(), unwatched(), untouched():
            weight.data.view(-1).scatter_(0, index, values.detach())
        # ordinary at last, so that no other thread reads it before
        weight.__class__ = nn.Parameter  # type: ignore[assignment]
        del weight.awaited
    return True


@contextlib.contextmanager
def unwatched() -> Iterator[None]:
    """Outside of traces, fake tensors and ``torch.func``: they would take it for theirs."""
    with contextlib.ExitStack() as left:
        trace: Any = torch._C._get_tracing_state()
        if trace is not None:
            turn: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]
            left.callback(turn, trace)
            turn(None)
        if torch._C._functorch.peek_interpreter_stack() is not None:
            from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

            left.enter_context(temporarily_clear_interpreter_stack())
        if torch._C._len_torch_dispatch_stack():
            left.enter_context(_disable_current_modes())
        yield


def stamp(weight: Tensor) -> tuple[int, int]:
    """Changes with every write that autograd counts, and with the memory."""
    # asked for once: another thread may settle the weight at any time
    awaited = getattr(weight, "awaited", None) if type(weight) is Deferred else None
    with untouched():
        return weight._version, weight.data_ptr() if awaited is None else awaited[2][0]
