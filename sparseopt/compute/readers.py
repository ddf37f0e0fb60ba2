"""Who reads the outputs of a sparse layer: where only sparse layers do, they stay feature-major."""

from __future__ import annotations

import weakref
from typing import Any, Protocol

from torch import Tensor
from torch.autograd.graph import Node

__all__ = ["Readers", "tell_makers"]


class Reader(Protocol):
    """A sparse layer that was called."""

    @property
    def obstacle(self) -> str | None:
        """Why its last product was a dense one, if it was."""


class Readers:
    """Whether sparse layers, and nobody else, read the outputs of a layer entry by entry.

    Learned in training: when a backward pass arrives, as many outputs must have been read so as
    were made since the one before. Until then outputs are contiguous, as torch makes them.
    """

    def __init__(self) -> None:
        self.outputs = self.read = 0
        self.last: weakref.ref[Reader] | None = None
        self.known = False

    def decide(self) -> None:
        """A backward pass has arrived."""
        self.known = self.known or 0 < self.read == self.outputs
        self.outputs = self.read = 0

    def are_sparse(self) -> bool:
        """Whether sparse layers will read the next output, too."""
        reader = self.last() if self.known and self.last is not None else None
        return reader is not None and reader.obstacle is None


def tell_makers(values: Tensor, reader: Reader) -> bool:
    """Tell the layers that made these values who reads them; whether some do not know it yet."""
    products = makers(values)
    for product in products:
        readers = product.readers
        readers.read += not product.read
        product.read, readers.last = True, weakref.ref(reader)
    return any(not product.readers.known for product in products)


MOST = 16  # steps back; chains of activations are shorter


def makers(values: Tensor) -> list[Any]:
    """The sparse products, as autograd's nodes, of which these values are made entry by entry.

    None, if anything else has a part in them. A constant might be noise, which is drawn in the
    order of memory: dropout of a feature-major tensor leaves out other entries for the same seed.
    """
    nodes, found = [values.grad_fn], []
    for node in nodes:  # which grows
        if isinstance(getattr(node, "readers", None), Readers):
            found.append(node)
        elif node is not None and operator(node) in ENTRYWISE and len(nodes) < MOST:
            nodes += [before for before, _ in node.next_functions]
        else:
            return []
    return found


ENTRYWISE = {
    "Abs", "Add", "Celu", "Clamp", "ClampMin", "Div", "Elu", "Gelu", "Hardsigmoid", "Hardswish",
    "Hardtanh", "LeakyRelu", "Mish", "Mul", "Neg", "Pow", "Relu", "Rsub", "Sigmoid", "Silu",
    "Softplus", "Sub", "Tanh", "Threshold", "ToCopy",
}  # fmt: skip
"""Operators, by autograd's names, whose results have the memory order of what they read."""


def operator(node: Node) -> str:
    """What a node differentiates: ``Clamp`` for ``ClampBackward1``."""
    return type(node).__name__.rstrip("0123456789").removesuffix("Backward")
