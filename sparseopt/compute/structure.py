"""The active values of one layer as a CSR matrix and its transpose.

The CSR matrix shares its values with compact storage; the transpose has the same values in another
order, taken over when it is needed. Both follow a new topology in place. Activations are kept
*feature-major* (features in rows, samples in columns): that is how products of CSR with dense
matrices run fastest, and the sampled product needs both of its operands so.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..storage.active_gradient import ActiveGradient, Held
from ..storage.factors import Factors
from ..storage.packed import Packed
from ..watched import untouched
from ..windows import in_a_process_group

__all__ = ["Structure"]


FEWEST_COLUMNS = 16
"""From so many samples on, sums over bags of embeddings are faster than products of CSR."""


# Samples multiplied at a time. What is read of few samples out of order stays in the cache; cutting
# activations into blocks costs a copy, which pays where each number is multiplied OFTEN (measured).
BLOCK, LONG_BLOCK = 128, 512
OFTEN = 16

# Where factors of a gradient were measured to pay (benchmarks/compute.py, updates):
THIN = 0.25  # of the entries: so many numbers the factors have at most; else parts take too long
FEW_PRODUCTS = 6.0  # for each entry: so many are made for the active ones beside, at most


class Matrix:
    """A sparse matrix, compressed by rows, that shares these tensors.

    Args:
        starts: Where each row begins among the values, and the end; int32.
        columns: The column of each value; int32.
        values: One-dimensional.
        shape: Rows and columns.
    """

    def __init__(
        self, starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]
    ) -> None:
        self.starts, self.columns, self.values = starts, columns, values
        self.csr = csr(starts, columns, values, shape)
        self.bags = FBGEMM and values.dtype == torch.float32 and values.is_cpu

    def place(self, starts: Tensor, columns: Tensor) -> None:
        """The same values at other places."""
        self.starts.copy_(starts)
        self.columns.copy_(columns)

    def product(self, inputs: Tensor, bias: Tensor | None = None) -> Tensor:
        """Times a dense matrix (columns, samples); ``bias``, if any, is added to each sample.

        A row of the result is a sum of rows of ``inputs``, weighted by values: what an embedding
        bag is, for which torch has a faster kernel where rows are long.
        """
        if not self.bags or inputs.shape[1] < FEWEST_COLUMNS:
            if bias is None:
                return torch.mm(self.csr, inputs)
            return torch.addmm(bias.unsqueeze(1), self.csr, inputs)
        made = torch.nn.functional.embedding_bag(
            self.columns, inputs, self.starts,
            mode="sum", per_sample_weights=self.values, include_last_offset=True,
        )  # fmt: skip
        return made if bias is None else made.add_(bias.unsqueeze(1))


FBGEMM = "fbgemm" in torch.backends.quantized.supported_engines


class Structure:
    """Products with one layer's active weights.

    Args:
        packed: The active values and their positions.
        weight: The weight, shape (outputs, inputs), contiguous.
    """

    def __init__(self, packed: Packed, weight: Tensor) -> None:
        self.packed = packed
        self.shape = tuple(weight.shape)
        self.density = round(len(packed.index) / weight.numel(), 2)
        often = len(packed.index) > OFTEN * sum(self.shape)
        self.block = BLOCK if often else LONG_BLOCK
        self.matrix = Matrix(*self._compressed(), packed.values.detach(), self.shape)
        self.turned: Matrix | None = None
        self.order: Tensor | None = None  # of the values in the transpose; None where it is older
        self.turned_at: tuple[tuple[int, int] | None, int] | None = None
        self.sampled: Matrix | None = None
        self.given: weakref.ref[Held] | None = None
        self.lock = threading.Lock()  # backward passes may run in several threads

    def follow(self, packed: Packed) -> bool:
        """Be of another topology, in the same memory; whether its values are still there."""
        same = packed.values is self.packed.values
        if same and packed is not self.packed:
            with self.lock:
                self.packed, self.order, self.turned_at = packed, None, None
                self.matrix.place(*self._compressed())
        return same

    def forward(self, inputs: Tensor, bias: Tensor | None) -> Tensor:
        """``W x + b``; inputs (inputs, samples), result (outputs, samples)."""
        return self.matrix.product(inputs, bias)

    def version(self) -> tuple[tuple[int, int] | None, int]:
        """Changes with the values."""
        return self.packed.seen, self.packed.values._version

    def backward(self, slopes: Tensor) -> Tensor:
        """``W' g``: the gradient of the inputs."""
        with self.lock:
            if self.turned is None or self.order is None:
                self.turned, self.order = self._transpose()
            turned = self.turned
            if self.turned_at != self.version():
                torch.index_select(self.matrix.values, 0, self.order, out=turned.values)
                self.turned_at = self.version()
        return turned.product(slopes)

    def gradient(
        self, slopes: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor
    ) -> ActiveGradient:
        """``g x'`` at the active places only, summed over blocks of samples."""
        with self.lock:
            into = self._buffer()
            with untouched():  # asks for the shape only
                made = ActiveGradient(into.values, self.packed.index, weight)
            self.given = weakref.ref(made.held)
        into.values.zero_()
        for one, other in zip(slopes, inputs, strict=True):
            torch.sparse.sampled_addmm(into.csr, in_eights(one), in_eights(other).t(), out=into.csr)
        return made

    def keeps_factors(self, samples: int) -> bool:
        """Whether a gradient of all entries is kept as its factors rather than multiplied out.

        Processes average what they have, which only the whole of it can be.
        """
        entries = self.shape[0] * self.shape[1]
        thin = samples * sum(self.shape) <= THIN * entries
        few = samples * len(self.packed.index) <= FEW_PRODUCTS * entries
        return thin and few and not in_a_process_group()

    def factored_gradient(
        self, slopes: Sequence[Tensor], inputs: Sequence[Tensor], weight: Tensor
    ) -> ActiveGradient:
        """``g x'`` at all places, as its factors, and at the active ones beside."""
        made = self.gradient(slopes, inputs, weight)
        made.held.factors = Factors.of(slopes, inputs)
        return made

    def _buffer(self) -> Matrix:
        """A matrix for the gradient: the last one, unless somebody still holds its values."""
        before = None if self.given is None else self.given()
        if self.sampled is None or (before is not None and before.values is not None):
            mine = self.matrix
            values = torch.empty_like(mine.values)
            self.sampled = Matrix(mine.starts, mine.columns, values, self.shape)
        return self.sampled

    def _compressed(self) -> tuple[Tensor, Tensor]:
        """Where rows begin, and the columns of the values."""
        outputs, inputs = self.shape
        index, rows = self.packed.index.numpy(), np.arange(outputs + 1) * inputs
        # numpy's is twice as fast as torch's: each search starts from the one before
        starts = np.searchsorted(index, rows)
        short = np.int32 if outputs * inputs < 1 << 31 else np.int64
        begins = np.repeat(rows[:-1].astype(short), np.diff(starts))
        return in_short(starts), in_short(index.astype(short) - begins)  # faster than % inputs

    def _transpose(self) -> tuple[Matrix, Tensor]:
        outputs, inputs = self.shape
        short = np.uint16 if inputs < 1 << 16 else np.int32  # the shorter ones are sorted by radix
        columns = self.matrix.columns.numpy().astype(short)
        order = np.argsort(columns, kind="stable")
        starts = np.searchsorted(columns[order], np.arange(inputs + 1, dtype=short))
        each = np.repeat(np.arange(outputs, dtype=np.int32), np.diff(self.matrix.starts.numpy()))
        rows = torch.from_numpy(each).index_select(0, torch.from_numpy(order))
        if self.turned is None:
            values = torch.empty_like(self.matrix.values)
            turned = Matrix(in_short(starts), rows, values, (inputs, outputs))
        else:
            turned = self.turned
            turned.place(in_short(starts), rows)
        return turned, in_short(order)


def in_short(numbers: np.ndarray[Any, Any]) -> Tensor:
    """As int32, the type of positions in CSR."""
    return torch.from_numpy(numbers.astype(np.int32, copy=False))


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
