"""The dense gradient of a linear layer, as the two matrices whose product it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..positions import positions

__all__ = ["Factors"]


@dataclass(frozen=True)
class Factors:
    """``slopes @ inputs.T``, of which parts can be had without the whole.

    The gradient of a large weight takes more memory than the few samples that it comes from, and
    to write it and read it again takes longer than to compute it.

    Attributes:
        slopes: Gradients of the outputs, shape (outputs, samples).
        inputs: Shape (inputs, samples).

    Example:
        >>> factors = Factors(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0], [5.0]]))
        >>> factors.dense()
        tensor([[ 3.,  4.,  5.],
                [ 6.,  8., 10.]])
        >>> factors.rows(1, 2)
        tensor([[ 6.,  8., 10.]])
    """

    slopes: Tensor
    inputs: Tensor

    @classmethod
    def of(cls, slopes: Sequence[Tensor], inputs: Sequence[Tensor]) -> Factors:
        """Copies of blocks of samples, since others may write those."""
        return cls(torch.cat([*slopes], 1), torch.cat([*inputs], 1))

    def times(self, scale: Tensor) -> Factors:
        """Those of the product, scaled."""
        return Factors(self.slopes * scale, self.inputs)

    def dense(self) -> Tensor:
        """The whole matrix, shape (outputs, inputs)."""
        return self.slopes @ self.inputs.t()

    def rows(self, first: int, last: int) -> Tensor:
        """Some of its rows, shape (last - first, inputs)."""
        return self.slopes[first:last] @ self.inputs.t()

    def reaching(self, least: float) -> tuple[Tensor, Tensor]:
        """Rows and columns, outside of which no entry of the product is so large in magnitude.

        An entry is a scalar product: the lengths of its two vectors bound it (Cauchy-Schwarz).
        """
        rows, columns = lengths(self.slopes), lengths(self.inputs)
        # computed sums of so many products may be off by as many roundings, or underflow as often
        samples, numbers = self.slopes.shape[1], torch.finfo(rows.dtype)
        least = least / (1.0 + 4.0 * samples * numbers.eps) - samples * numbers.tiny
        return positions(rows * columns.max() >= least), positions(columns * rows.max() >= least)

    def at(self, rows: Tensor, columns: Tensor) -> Factors:
        """Those of the entries where these rows and columns cross."""
        return Factors(self.slopes.index_select(0, rows), self.inputs.index_select(0, columns))

    def windows(self, number: int, width: int) -> tuple[Tensor, Tensor]:
        """A sample: runs of neighbouring entries in rows and columns evenly spread.

        Rows of little more than ``width`` entries are taken whole.

        Returns:
            The entries, shape (number, width), and their positions in row-major order.
        """
        outputs, length, samples = len(self.slopes), len(self.inputs), self.inputs.shape[1]
        width = width if length - width >= number else length
        aside = (length - width) // max(1, number - 1)
        runs = torch.arange(number)
        rows = runs * outputs // number
        # overlapping views of the inputs: copies of them would take longer than the products
        inputs = self.inputs.as_strided((number, samples, width), (aside * samples, 1, samples))
        found = torch.bmm(self.slopes.index_select(0, rows).unsqueeze(1), inputs).squeeze(1)
        return found, (rows * length + runs * aside).unsqueeze(1) + torch.arange(width)

    def is_finite(self) -> bool:
        """Whether the product cannot hold NaN or infinity; an unlucky one may say no as well."""
        largest = float(self.slopes.abs().max()) * float(self.inputs.abs().max())
        return largest * self.slopes.shape[1] < torch.finfo(self.slopes.dtype).max


def lengths(vectors: Tensor) -> Tensor:
    """Euclidean norms of rows, whose squares may underflow or overflow."""
    largest = vectors.abs().max()
    if largest == 0:
        return vectors.new_zeros(len(vectors))
    return torch.linalg.vector_norm(vectors / largest, dim=1).mul_(largest)
