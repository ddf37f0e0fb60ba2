"""How the inner optimizer sees a layer: as dense tensors with zeros, or as its active values only.

:class:`Masked` works for every optimizer. :class:`Compact` needs an element-wise one (see
:data:`ELEMENTWISE`); its state and arithmetic shrink with density.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from ..layers import Layer
from .compact import Compact
from .masked import Masked
from .packed import can_pack
from .state import ELEMENTWISE, NEUTRAL, is_elementwise
from .zeroing import zero_inactive

__all__ = ["ELEMENTWISE", "NEUTRAL", "Compact", "Masked", "choose_storage", "zero_inactive"]


# Where compact storage was measured to be the faster one (benchmarks/speed.py, one thread): at or
# below these densities, for networks of at least so many sparse weights. A light rule (SGD, fused
# kernels) passes over memory so few times that gathering pays late.
FEWEST_WEIGHTS = {"light": 400_000, "heavy": 1 << 16}
HIGHEST_DENSITY = {"sgd": 0.45, "fused": 0.35, "heavy": 0.9}


def choose_storage(
    inner: Optimizer, name: str, layers: Sequence[Layer], density: float = 1.0
) -> Masked:
    """The storage asked for; "auto" picks the one that was measured to be faster.

    Args:
        inner: The optimizer that is wrapped.
        name: "masked", "compact" or "auto".
        layers: The sparse layers.
        density: Fraction of their weights that is active at the end.

    Raises:
        ValueError: For an unknown name, or "compact" where the optimizer or a layer forbids it.
    """
    if name not in ("auto", "masked", "compact"):
        raise ValueError(f"storage={name!r} is not one of 'auto', 'masked', 'compact'")
    if name == "compact":
        _check_compact(inner, layers)
        return Compact(inner)
    possible = is_elementwise(inner) and all(map(can_pack, layers))
    if name == "auto" and possible and _pays(inner, layers, density):
        return Compact(inner)
    return Masked(inner)


def _pays(inner: Optimizer, layers: Sequence[Layer], density: float) -> bool:
    fused = any(group.get("fused") for group in inner.param_groups)
    kind = "fused" if fused else "sgd" if type(inner).__name__ == "SGD" else "heavy"
    fewest = FEWEST_WEIGHTS["heavy" if kind == "heavy" else "light"]
    return density <= HIGHEST_DENSITY[kind] and sum(layer.numel for layer in layers) >= fewest


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
