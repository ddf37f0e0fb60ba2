"""Whole layers, for the parts of a recipe that cannot do with this process's rows."""

from __future__ import annotations

from typing import Any

from .layers import Layer
from .shards import is_sharded, whole

__all__ = ["Gathered", "gathered", "seen_by"]

TENSORS = ("weight", "mask", "gradient", "extras")


class Gathered(Layer):
    """A sharded layer as one process would have it.

    Each of its tensors is gathered when it is first looked at: all processes must do so together.
    """

    def __init__(self, layer: Layer) -> None:
        self.name, self.key = layer.name, layer.key
        self.nnz, self.index, self.values = layer.nnz, layer.index, layer.values
        self.sharded = layer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sharded.shape

    @property
    def numel(self) -> int:
        return self.sharded.numel

    def __getattr__(self, name: str) -> Any:
        if name not in TENSORS:
            raise AttributeError(f"a layer has no attribute {name!r}")
        value = getattr(self.sharded, name)
        if name == "extras":
            found: Any = {key: whole(extra) for key, extra in value.items()}
        else:
            found = whole(value)
        if name == "weight":
            found.requires_grad_(value.requires_grad)
        self.__dict__[name] = found
        return found

    def marks(self) -> dict[str, Any]:
        """The numbers that an exchange has left in the extras."""
        extras = self.__dict__.get("extras", {})
        return {name: value for name, value in extras.items() if value.ndim == 0}


def gathered(layer: Layer) -> Layer:
    """The whole layer; the layer itself where nothing is sharded."""
    return Gathered(layer) if is_sharded(layer.weight) else layer


def seen_by(part: Any, layer: Layer) -> Layer:
    """The layer as a part of a recipe sees it: whole, unless the part takes shards."""
    return layer if getattr(part, "takes_shards", False) else gathered(layer)
