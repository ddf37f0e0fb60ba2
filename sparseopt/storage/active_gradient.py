"""A gradient that looks like the dense tensor and holds the active entries only.

Sparse compute makes gradients of the active weights alone. As ``p.grad`` they must stay what every
training loop expects: a tensor of the weight's shape. :class:`ActiveGradient` is one. What loops do
between ``backward()`` and ``step()`` (scaling, norms, clipping, accumulation, zeroing) runs on the
active values, which is exact, because all other entries are zero. Anything else turns it into the
dense tensor first, so that every operation gives the result that it gives for dense gradients.

In the window before an update that grows by gradient the other entries are not zero: then it holds
the factors of the dense gradient besides, or those alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor

from .factors import Factors

__all__ = [
    "ActiveGradient",
    "active_values",
    "factors_of",
    "holds_active_only",
    "holds_factors",
    "is_packable",
    "known_values",
    "pack",
    "take_factors",
    "take_values",
    "times",
    "writes_of",
]

WORTH_PACKING = 1 << 13  # entries of a gradient; of fewer the inactive ones are zeroed in place

aten = torch.ops.aten
refuse_access = getattr(torch._C, "_set_throw_on_mutable_data_ptr", None)


class Held:
    """What a gradient and its aliases share: active values, or all of them once they were asked.

    With ``factors``, their product is the gradient, inactive entries included. ``writes`` counts
    how often the values may have been written, by operators or who took them.
    """

    def __init__(
        self,
        values: Tensor | None,
        index: Tensor,
        dense: Tensor | None = None,
        factors: Factors | None = None,
    ) -> None:
        self.values = values
        self.index = index
        self.dense = dense
        self.factors = factors
        self.writes = 0


class ActiveGradient(Tensor):
    """A tensor that is zero everywhere but at the given positions.

    Args:
        values: One-dimensional: the entries at ``index``.
        index: Their positions, row-major, int64, ascending; kept, not copied.
        like: A contiguous tensor of the shape that the gradient has.

    Example:
        >>> values, index = torch.tensor([3.0, 4.0]), torch.tensor([0, 5])
        >>> grad = ActiveGradient(values, index, torch.zeros(2, 3))
        >>> float(torch.linalg.vector_norm(grad))
        5.0
        >>> grad.tolist()
        [[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]
    """

    held: Held
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls, values: Tensor | None, index: Tensor, like: Tensor, held: Held | None = None
    ) -> ActiveGradient:
        made = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
        )
        made.held = Held(values, index) if held is None else held
        if refuse_access is not None:
            refuse_access(made)  # what goes for its memory past the dispatcher would crash
        return made

    @classmethod
    @torch.compiler.disable
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        special = SPECIAL.get(func)
        if special is not None:
            return special(func, *args, **kwargs)
        if func in ON_VALUES and ON_VALUES[func](*args, **kwargs):
            return apply(func, args, kwargs, of_values)
        return apply(func, args, kwargs, as_dense)

    def to_plain(self) -> Tensor:
        """The dense tensor; from now on this gradient is that tensor."""
        return as_dense(self)

    # what reads or replaces memory directly does not come by the dispatcher

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, given: Tensor) -> None:  # ``model.half()`` gives other memory so, for example
        plain = given.to_plain() if isinstance(given, ActiveGradient) else given.detach()
        Tensor.data.__set__(self, plain)  # type: ignore[attr-defined]
        self.held = Held(None, self.held.index, plain)

    def numpy(self, *, force: bool = False) -> Any:
        return self.to_plain().numpy(force=force)

    def __array__(self, dtype: Any = None, *options: Any, **more: Any) -> Any:
        return self.to_plain().__array__(dtype)

    def tolist(self) -> Any:
        return self.to_plain().tolist()

    def data_ptr(self) -> int:
        return self.to_plain().data_ptr()

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        return self.to_plain().__dlpack__(*args, **kwargs)

    def untyped_storage(self) -> Any:
        return self.to_plain().untyped_storage()

    def __repr__(self, *, tensor_contents: Any = None) -> Any:  # type: ignore[override]
        return repr(self.to_plain())

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        memo[id(self)] = copied = self.to_plain().clone()
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.to_plain().__reduce_ex__(protocol)


def holds_active_only(grad: Tensor | None) -> bool:
    """Whether the gradient is held as active values, so that there is nothing to mask."""
    if not isinstance(grad, ActiveGradient):
        return False
    return grad.held.values is not None and grad.held.factors is None


def active_values(grad: Tensor, index: Tensor | None) -> Tensor | None:
    """The active values, if the gradient holds these, for exactly this topology; else None."""
    if holds_active_only(grad) and grad.held.index is index:  # type: ignore[attr-defined]
        return grad.held.values  # type: ignore[attr-defined]
    return None


def holds_factors(grad: Tensor) -> TypeGuard[ActiveGradient]:
    """Whether it is a dense gradient that was not asked for yet."""
    return factors_of(grad) is not None


def factors_of(grad: Tensor | None) -> Factors | None:
    """The factors of a dense gradient that was not asked for yet."""
    return grad.held.factors if isinstance(grad, ActiveGradient) else None


def take_factors(grad: Tensor) -> ActiveGradient | None:
    """The dense gradient that is held as factors, by itself; ``grad`` has active entries left."""
    factors = factors_of(grad)
    if not isinstance(grad, ActiveGradient) or factors is None or grad.held.values is None:
        return None
    dense = Held(grad.held.values.clone(), grad.held.index, factors=factors)
    grad.held.factors = None
    return ActiveGradient(dense.values, dense.index, grad, dense)


def times(grad: ActiveGradient, scale: Tensor) -> ActiveGradient:
    """A gradient that is held as factors, scaled, as factors."""
    assert grad.held.factors is not None
    scaled = Held(None, grad.held.index, factors=grad.held.factors.times(scale))
    return ActiveGradient(None, scaled.index, grad, scaled)


def known_values(grad: Tensor, index: Tensor) -> Tensor | None:
    """The entries at these places, if they are held apart, whatever the others are."""
    if isinstance(grad, ActiveGradient) and grad.held.index is index:
        return grad.held.values
    return None


def take_values(grad: Tensor, index: Tensor) -> Tensor | None:
    """The same for one who may write them."""
    values = active_values(grad, index)
    if values is not None:
        grad.held.writes += 1  # type: ignore[attr-defined]
    return values


def writes_of(grad: Tensor) -> int:
    """How often active values that are held alone were written; -1 where they are not."""
    return grad.held.writes if holds_active_only(grad) else -1  # type: ignore[attr-defined]


def is_packable(grad: Tensor, index: Tensor | None) -> bool:
    """Whether to keep only the entries at ``index``: it saves writing zeros, and the memory.

    Only of a gradient that autograd has just made, which then nobody else holds.
    """
    if index is None or grad.numel() < WORTH_PACKING or type(grad) is not Tensor:
        return False
    fresh = grad._version == 0 and not grad.requires_grad
    plain = grad.device.type == "cpu" and grad.is_contiguous()
    return fresh and plain and not torch.compiler.is_compiling()


def pack(grad: Tensor, index: Tensor | None) -> ActiveGradient:
    """The gradient with its active entries alone, which behaves as the masked one."""
    assert index is not None
    return ActiveGradient(grad.view(-1).index_select(0, index), index, grad)


def as_dense(grad: ActiveGradient) -> Tensor:
    held = grad.held
    with making:
        if held.dense is None:
            with torch.inference_mode(False):  # it stays p.grad when the user's mode has ended
                held.dense = spread(grad) if held.factors is None else held.factors.dense()
            held.values = held.factors = None
    return held.dense


making = threading.RLock()  # several threads may ask for the same one at once


def spread(grad: ActiveGradient) -> Tensor:
    dense = torch.zeros(grad.shape, dtype=grad.dtype, device=grad.device)
    dense.view(-1).scatter_(0, grad.held.index, of_values(grad))
    return dense


def of_values(grad: ActiveGradient) -> Tensor:
    assert grad.held.values is not None
    return grad.held.values


def apply(
    func: Any, args: Sequence[Any], kwargs: dict[str, Any], inside: Callable[..., Tensor]
) -> Any:
    """Call the operator on what the gradients hold; changed in place, they stay what they are."""
    outside: dict[int, Tensor] = {}

    def unwrap(one: Any) -> Any:
        if isinstance(one, ActiveGradient):
            held = inside(one)
            outside[id(held)] = one
            one.held.writes += func._schema.is_mutable
            return held
        if isinstance(one, (list, tuple)):
            return type(one)(map(unwrap, one))
        return one

    def wrap(one: Any) -> Any:
        if isinstance(one, (list, tuple)):
            return type(one)(map(wrap, one))
        return outside.get(id(one), one)

    return wrap(func(*unwrap(tuple(args)), **{name: unwrap(one) for name, one in kwargs.items()}))


# --- operators that know active values ------------------------------------------------------------


def same_alias(func: Any, grad: ActiveGradient) -> Tensor:
    held = grad.held
    if held.dense is not None:
        return func(held.dense)
    return ActiveGradient(held.values, held.index, grad, held)


def cloned(func: Any, grad: ActiveGradient, **kwargs: Any) -> Tensor:
    if not holds_active_only(grad):
        return func(as_dense(grad), **kwargs)
    return ActiveGradient(of_values(grad).clone(), grad.held.index, grad)


def added(func: Any, grad: Tensor, other: Any, **kwargs: Any) -> Any:
    """Micro-batches of one topology are summed as they are held."""
    if isinstance(grad, ActiveGradient) and isinstance(other, Tensor):
        index = grad.held.index
        values, more = active_values(grad, index), active_values(other, index)
        if values is not None and more is not None:
            values.add_(more, **kwargs)
            grad.held.writes += 1
            return grad
    return apply(func, (grad, other), kwargs, as_dense)


SPECIAL: dict[Any, Callable[..., Any]] = {
    aten.detach.default: same_alias,
    aten.alias.default: same_alias,
    aten.clone.default: cloned,
    aten.add_.Tensor: added,
}


def all_active(one: Any) -> bool:
    grads = one if isinstance(one, (list, tuple)) else [one]
    return all(holds_active_only(g) or not isinstance(g, ActiveGradient) for g in grads)


def scaling(first: Any, factor: Any = 1.0, *rest: Any, **kwargs: Any) -> bool:
    """By a number: zeros stay zeros."""
    if isinstance(factor, ActiveGradient):
        return False
    number = not isinstance(factor, Tensor) or (factor.numel() == 1 and factor.ndim <= 1)
    return number and all_active(first)


def norm_over_all(
    first: Any, order: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> bool:
    """Zeros add nothing to a norm of positive order over all entries."""
    grads = first if isinstance(first, (list, tuple)) else [first]
    some = all(not isinstance(g, ActiveGradient) or g.held.index.numel() > 0 for g in grads)
    return dim is None and not keepdim and some and float(order) > 0 and all_active(first)


def clamping_to_zero(first: Any, low: Any = None, high: Any = None, **kwargs: Any) -> bool:
    """Between bounds that leave zeros alone."""
    numbers = all(bound is None or isinstance(bound, (int, float)) for bound in (low, high))
    return numbers and (low or 0) <= 0 <= (high or 0) and all_active(first)


def list_norm(first: Any, order: Any = 2, *rest: Any, **kwargs: Any) -> bool:
    return norm_over_all(first, order)


def unscaling(grads: Any, found_inf: Any, scale: Any) -> bool:
    return all_active(grads)


ON_VALUES: dict[Any, Callable[..., bool]] = {
    aten.mul_.Tensor: scaling,
    aten.mul_.Scalar: scaling,
    aten.div_.Tensor: scaling,
    aten.div_.Scalar: scaling,
    aten.zero_.default: scaling,
    aten._foreach_mul_.Scalar: scaling,
    aten._foreach_mul_.Tensor: scaling,
    aten._foreach_div_.Scalar: scaling,
    aten._foreach_zero_.default: scaling,
    aten.linalg_vector_norm.default: norm_over_all,
    aten._foreach_norm.Scalar: list_norm,
    aten.clamp_.default: clamping_to_zero,
    aten._amp_foreach_non_finite_check_and_unscale_.default: unscaling,
}
