"""The active values of one layer as a CSR matrix and its transpose.

The CSR matrix shares its values with compact storage; the transpose has the same values in another
order, taken over when it is needed. Both are built anew with a new topology. Activations are kept
*feature-major* (features in rows, samples in columns): that is how products of CSR with dense
matrices run fastest, and the sampled product needs both of its operands so.
"""

from __future__ import annotations

import warnings
import weakref

import numpy as np
import torch
from torch import Tensor

from ..storage.active_gradient import ActiveGradient, Held
from ..storage.compact import Packed

__all__ = ["Structure"]


class Structure:
    """Products with one layer's active weights.

    Args:
        packed: The active values and their positions.
        weight: The weight, shape (outputs, inputs), contiguous.
    """

    def __init__(self, packed: Packed, weight: Tensor) -> None:
        self.packed = packed
        self.shape = tuple(weight.shape)
        outputs, inputs = self.shape
        rows = torch.arange(outputs + 1) * inputs
        self.starts = torch.searchsorted(packed.index, rows).int()
        self.columns = (packed.index % inputs).int()
        self.matrix = csr(self.starts, self.columns, packed.values.detach(), self.shape)
        self.turned: Tensor | None = None
        self.order: Tensor | None = None
        self.turned_at = -1
        self.sampled: Tensor | None = None
        self.given: weakref.ref[Held] | None = None

    def forward(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """``W x + b``; inputs (inputs, samples), result (outputs, samples)."""
        if bias is None:
            return torch.mm(self.matrix, inputs)
        return torch.addmm(bias.unsqueeze(1), self.matrix, inputs)

    def backward(self, slopes: Tensor, version: int) -> Tensor:
        """``W' g``: the gradient of the inputs. ``version`` tells when the weights changed."""
        if self.turned is None or self.order is None:
            self.turned, self.order = self._transpose()
        if self.turned_at != version:
            values = self.packed.values.detach()
            torch.index_select(values, 0, self.order, out=self.turned.values())
            self.turned_at = version
        return torch.mm(self.turned, slopes)

    def gradient(self, slopes: Tensor, inputs: Tensor, weight: Tensor) -> ActiveGradient:
        """``g x'`` at the active places only."""
        into = self._buffer()
        one, other = in_eights(slopes), in_eights(inputs)
        into.values().zero_()  # beta=0 multiplies what is there, and 0 * NaN is not 0
        torch.sparse.sampled_addmm(into, one, other.t(), beta=0.0, out=into)
        made = ActiveGradient(into.values(), self.packed.index, weight)
        self.given = weakref.ref(made.held)
        return made

    def _buffer(self) -> Tensor:
        """A matrix for the gradient: the last one, unless somebody still holds its values."""
        before = None if self.given is None else self.given()
        if self.sampled is None or (before is not None and before.values is not None):
            values = torch.empty_like(self.packed.values, requires_grad=False)
            self.sampled = csr(self.starts, self.columns, values, self.shape)
        return self.sampled

    def _transpose(self) -> tuple[Tensor, Tensor]:
        outputs, inputs = self.shape
        columns = self.columns.numpy()
        small = columns.astype(np.uint16) if inputs <= 1 << 16 else columns  # sorted by radix
        order = torch.from_numpy(np.argsort(small, kind="stable"))
        counts = np.bincount(columns, minlength=inputs)
        starts = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)])).int()
        each = np.repeat(np.arange(outputs, dtype=np.int32), np.diff(self.starts.numpy()))
        rows = torch.from_numpy(each).index_select(0, order)
        values = torch.empty_like(self.packed.values, requires_grad=False)
        return csr(starts, rows, values, (inputs, outputs)), order.int()


def csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A CSR tensor that shares these tensors."""
    with warnings.catch_warnings():  # torch says once that the layout is in beta
        warnings.simplefilter("ignore", UserWarning)
        return torch.sparse_compressed_tensor(
            starts, columns, values, size=shape, layout=torch.sparse_csr, check_invariants=False
        )


def in_eights(values: Tensor) -> Tensor:
    """Samples filled up with zeros to a multiple of 8.

    The sampled product is up to 30 times slower where rows are not whole vectors.
    """
    samples = values.shape[1]
    if samples % 8 == 0 or samples == 1:
        return values
    return torch.nn.functional.pad(values, (0, -samples % 8))
