"""How the inner optimizer sees a layer: as dense tensors with zeros, or as its active values only.

:class:`Masked` works for every optimizer. :class:`Compact` needs an element-wise one (see
:data:`ELEMENTWISE`); its state and arithmetic shrink with density.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from ..layers import Layer
from .compact import Compact, can_pack
from .masked import Masked
from .state import ELEMENTWISE, NEUTRAL, is_elementwise
from .zeroing import zero_inactive

__all__ = ["ELEMENTWISE", "NEUTRAL", "Compact", "Masked", "choose_storage", "zero_inactive"]


def choose_storage(inner: Optimizer, name: str, layers: Sequence[Layer]) -> Masked:
    """The storage asked for; "auto" picks by what was measured (docs, "Storage").

    Raises:
        ValueError: For an unknown name, or "compact" where the optimizer or a layer forbids it.
    """
    if name not in ("auto", "masked", "compact"):
        raise ValueError(f"storage={name!r} is not one of 'auto', 'masked', 'compact'")
    if name == "compact":
        _check_compact(inner, layers)
        return Compact(inner)
    worth_it = is_elementwise(inner) and all(map(can_pack, layers))
    return Compact(inner) if name == "auto" and worth_it else Masked(inner)


def _check_compact(inner: Optimizer, layers: Sequence[Layer]) -> None:
    if not is_elementwise(inner):
        raise ValueError(
            f"storage='compact' needs an optimizer whose rule is element-wise, and "
            f"{type(inner).__name__} is not known to be: use storage='masked', or, if it is, "
            f"sparseopt.storage.ELEMENTWISE.add({type(inner).__name__!r})"
        )
    for layer in layers:
        if not can_pack(layer):
            raise ValueError(
                f"storage='compact' cannot hold {layer.name!r}: its weight is "
                f"{type(layer.weight).__name__} with strides {tuple(layer.weight.stride())}, not "
                "one dense block of memory; use storage='masked'"
            )
