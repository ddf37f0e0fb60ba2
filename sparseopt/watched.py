"""Weights that tell when somebody may write them past autograd.

The active values of a weight are known from the last step on, unless somebody writes the weight.
Autograd counts what operators write. What is written through ``p.data``, NumPy or a view leaves no
trace: to find it, all active entries would have to be read before every step, which costs more than
the step itself. Instead the parameter becomes a :class:`Watched` one, in place: the same object, in
the modules, groups and lists that hold it. Layers go on multiplying by it; every other function,
method or attribute of torch that gives access to its memory makes it an ordinary parameter again,
and then the entries are read. Memory that others hold besides the parameter is never watched: a
``state_dict`` that was kept, ``p.data``, a NumPy view, memory shared with another process.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import callback_handler
from torch.nn import functional as F

__all__ = [
    "Watch",
    "Watched",
    "is_alone",
    "is_watched",
    "release_all",
    "untouched",
    "values_of",
    "with_fast_paths",
]

untouched = torch._C.DisableTorchFunctionSubclass
holders = getattr(torch._C, "_storage_Use_Count", None)


def holders_of(memory: Any) -> int:
    """How many tensors and storage objects hold memory; 0 where torch does not tell."""
    return 0 if holders is None else holders(memory._cdata)


def held_by_nobody() -> tuple[int, int]:
    """How many hold memory, and its storage object, if nobody but one tensor does."""
    tensor = torch.empty(1)
    memory = tensor.untyped_storage()
    return holders_of(memory), sys.getrefcount(memory)


ALONE = held_by_nobody()


class Watched(nn.Parameter):
    """A parameter whose memory nobody got hold of since the last step."""

    @classmethod
    @torch.compiler.disable  # to trace it would change the weight that is traced
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in HARMLESS and not cls.only_reads(func, types):
            # in an object of the caller's we do not find it: then all are released
            if release_all((args, kwargs)) or release_all([one.weights for one in watches]):
                return a_parameter(*args) if makes_a_parameter(func) else func(*args, **kwargs)
        with untouched():
            return func(*args, **kwargs)

    @classmethod
    def only_reads(cls, func: Any, types: Any) -> bool:
        """Whether the function reads the weight, writes it not, and gives out no view of it."""
        return func in READING and set(types) == {Watched}

    def release(self) -> None:
        """Become an ordinary parameter."""
        self.__class__ = nn.Parameter  # type: ignore[assignment]

    def _use_count(self) -> int:
        self.release()  # torch.utils.swap_tensors asks before it swaps class and memory
        return self._use_count()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self.release()
        return nn.Parameter.__deepcopy__(self, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        self.release()
        return self.__reduce_ex__(protocol)  # as the ordinary parameter that it is now


def attribute(name: str) -> list[Any]:
    descriptor = getattr(torch.Tensor, name)
    return [getattr(descriptor, way) for way in ("__get__", "__set__", "__delete__")]


HARMLESS = {
    # what asks for no values: training loops look these up in every step
    *attribute("grad"),
    *(attribute(name)[0] for name in ("shape", "dtype", "device", "ndim", "layout", "is_sparse")),
    *(attribute(name)[0] for name in ("requires_grad", "is_leaf", "grad_fn", "_version")),
    *(attribute(name)[0] for name in ("is_cpu", "is_cuda", "itemsize", "nbytes")),
    *(torch.Tensor.register_hook, torch.Tensor.register_post_accumulate_grad_hook),
    *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.stride),
    *(torch.Tensor.nelement, torch.Tensor.element_size, torch.Tensor.get_device),
    *(torch.Tensor.is_contiguous, torch.Tensor.is_floating_point, torch.Tensor.is_complex),
}


def functions(names: str, *homes: Any) -> set[Any]:
    return {getattr(home, name) for home in homes for name in names.split() if hasattr(home, name)}


READING = {
    # what layers, penalties and logs do with weights: the result is never a view of them
    *functions("linear bilinear embedding embedding_bag multi_head_attention_forward", F),
    *functions("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", F),
    *functions("matmul mm bmm addmm norm", torch, torch.Tensor),
    *functions("mul add sub div abs pow square sum mean std var", torch, torch.Tensor),
    *functions("__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__", torch.Tensor),
    *functions("__truediv__ __pow__ __matmul__ __rmatmul__", torch.Tensor),
    *(torch.linalg.vector_norm, torch._foreach_norm),
}


def makes_a_parameter(func: Any) -> bool:
    """Whether it is ``nn.Parameter(weight)`` that asks, which wants the type of what it gets."""
    if func is not torch.Tensor.detach:
        return False
    callers = sys._getframe(2), sys._getframe(3)  # one of them is of torch.compiler.disable
    return nn.Parameter.__new__.__code__ in [frame.f_code for frame in callers]


def a_parameter(weight: Tensor) -> Tensor:
    """An alias of the weight, as ``nn.Parameter(weight)`` makes one of an ordinary parameter."""
    return torch.Tensor._make_subclass(nn.Parameter, weight.detach(), False)


def is_alone(weight: Tensor) -> bool:
    """Whether it is a plain parameter on the CPU whose memory nobody else holds."""
    if type(weight) not in (nn.Parameter, Watched) or not weight.is_cpu or holders is None:
        return False
    with untouched():
        memory = weight.untyped_storage()
        held = holders(memory._cdata), sys.getrefcount(memory)
        return held == ALONE and not memory.is_shared()


def with_fast_paths(model: nn.Module) -> set[int]:
    """The ``id`` of weights that torch hands to faster kernels where all are ordinary parameters.

    In evaluation; outputs differ a little then, so such weights stay ordinary.
    """
    kinds = (nn.TransformerEncoderLayer, nn.MultiheadAttention)
    blocks = [module for module in model.modules() if isinstance(module, kinds)]
    return {id(weight) for block in blocks for weight in block.parameters()}


class Watch:
    """The weights that one storage watches; a copy of it watches none."""

    def __init__(self) -> None:
        self.weights: dict[Any, Tensor] = {}  # no weak references: swap_tensors refuses those
        watches.add(self)

    def add(self, key: Any, weight: Tensor) -> None:
        """Have the weight tell from now on.

        Not where others hold its memory, nor once ``torch.compile`` has compiled something,
        because compiled code tells nobody what it writes.
        """
        if is_alone(weight) and (is_called_first() or call_first()):
            weight.__class__ = Watched
            self.weights[key] = weight
        else:
            release_all([weight])

    def __reduce__(self) -> tuple[Any, ...]:
        return Watch, ()


watches: weakref.WeakSet[Watch] = weakref.WeakSet()
called = threading.Event()  # torch calls release_watched before it compiles
over = threading.Event()  # it has done so


def is_called_first() -> bool:
    """Whether torch has compiled nothing yet, and will call us before it does."""
    return not over.is_set() and release_watched in callback_handler.start_callbacks


def call_first() -> bool:
    """Have it call us; once: it forgets us where ``torch._dynamo`` is reset, and so is in use."""
    if called.is_set():
        return False
    called.set()
    callback_handler.register_start_callback(release_watched)
    return True


@torch.compiler.disable  # torch calls it holding a lock, for which compiling it would wait
def release_watched(*_: Any) -> None:
    """Make all of them ordinary, for good: compiled code is to meet ordinary parameters."""
    over.set()
    for one in watches:
        release_all(one.weights)


def values_of(weight: Tensor) -> Tensor:
    """The weight without its history, for one who only reads: it stays watched."""
    with untouched():
        return weight.detach()


def is_watched(weight: Tensor) -> bool:
    """Whether nobody can have written it since it was added, but for what autograd counts."""
    return type(weight) is Watched and is_called_first() and is_alone(weight)


def release_all(given: Any) -> bool:
    """Make all among these arguments ordinary; whether there were any."""
    if isinstance(given, (list, tuple)):
        return any([release_all(one) for one in given])  # all of them, not the first only
    if isinstance(given, dict):
        return any([release_all(one) for one in given.values()])
    if not isinstance(given, Watched):
        return False
    given.release()
    return True
