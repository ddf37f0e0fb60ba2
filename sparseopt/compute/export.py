"""A trained sparse network as a model for inference."""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import wrapped
from ..positions import positions
from .structure import Matrix

__all__ = ["Exported", "SparseLinear", "export", "is_two_of_four"]

FORMATS = ("csr", "dense", "2:4")


@dataclass(frozen=True)
class Exported:
    """The model for inference and how large it is.

    Attributes:
        model: The module, in evaluation mode; save it with ``torch.save(exported.model, path)``.
        layers: Names of the modules that were replaced.
        bytes: Size of the saved model on disk.
        dense_bytes: The same of the model that was exported.
    """

    model: nn.Module
    layers: list[str]
    bytes: int
    dense_bytes: int

    def __str__(self) -> str:
        share = self.bytes / self.dense_bytes
        return (
            f"{len(self.layers)} sparse layers, {self.bytes:,} bytes on disk "
            f"({share:.1%} of the dense model's {self.dense_bytes:,})"
        )


class SparseLinear(nn.Module):
    """A Linear layer for inference whose weight is a CSR matrix.

    Args:
        linear: The layer to take over; its zeros are left out.

    Example:
        >>> linear = torch.nn.Linear(4, 3)
        >>> _ = linear.weight.data[:, 1:].zero_()
        >>> sparse = SparseLinear(linear)
        >>> sparse
        SparseLinear(in_features=4, out_features=3, bias=True, nnz=3)
        >>> torch.allclose(sparse(torch.ones(2, 4)), linear(torch.ones(2, 4)))
        True
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        index = positions(weight != 0)
        rows = torch.arange(self.out_features + 1) * self.in_features
        self.register_buffer("starts", torch.searchsorted(index, rows).int())
        self.register_buffer("columns", (index % self.in_features).int())
        self.register_buffer("values", weight.reshape(-1).index_select(0, index))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``; input (..., in_features), result (..., out_features)."""
        starts, columns, values, bias = self.starts, self.columns, self.values, self.bias
        assert isinstance(starts, Tensor) and isinstance(columns, Tensor)
        assert isinstance(values, Tensor)
        matrix = Matrix(starts, columns, values, (self.out_features, self.in_features))
        samples = input.reshape(-1, self.in_features).t().contiguous()
        outputs = matrix.product(samples, bias if isinstance(bias, Tensor) else None)
        return outputs.t().contiguous().view(*input.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, nnz={len(self.values)}"  # type: ignore[arg-type]
        )


def export(
    model: nn.Module, optimizer: Any = None, *, format: str = "csr", density: float = 0.3
) -> Exported:
    """A copy of a trained model for inference; the original is not touched.

    Args:
        model: The trained model.
        optimizer: The :class:`SparseOptimizer` that trained it: its inactive weights are zeroed in
            the copy first (an average of weights has others). None: the zeros count as they are.
        format: "csr" (Linear layers of low density become :class:`SparseLinear`, for the CPU),
            "dense" (zeros in plain dense weights), or "2:4" (semi-structured, for CUDA: at most two
            active weights in every four; on a CPU only the structure is checked).
        density: For "csr": up to this fraction of non-zero weights.

    Returns:
        The :class:`Exported` model, in evaluation mode, with its size on disk.

    Raises:
        ValueError: For an unknown format, or where no layer has the structure that it needs.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU())
        >>> _ = torch.nn.init.sparse_(model[0].weight, sparsity=0.9)
        >>> exported = export(model)
        >>> exported.layers
        ['0']
        >>> values = torch.ones(2, 64)
        >>> torch.allclose(exported.model(values), model(values))
        True
    """
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(map(repr, FORMATS))}")
    plain = copy.deepcopy(wrapped(model)).eval()
    if optimizer is not None:
        optimizer.apply_masks(plain)
    dense_bytes = size_on_disk(plain)
    linears = {n: m for n, m in plain.named_modules() if type(m) is nn.Linear}
    replaced = REPLACE[format](linears, density)
    made = with_modules(plain, replaced)
    return Exported(made, list(replaced), size_on_disk(made), dense_bytes)


def with_modules(model: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """The model with these modules in the places of its own, by name."""
    for name, module in replaced.items():
        if not name:  # the model is the layer
            return module
        path, _, last = name.rpartition(".")
        model.get_submodule(path)._modules[last] = module
    without_fast_path(model)
    return model


def without_fast_path(model: nn.Module) -> None:
    """Encoders with a `SparseLinear` call it: torch's fused kernel reads a dense ``weight``."""
    for module in model.modules():
        if not any(isinstance(part, SparseLinear) for part in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # one of the things that the fused kernel asks for
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


Modules = dict[str, nn.Module]


def to_csr(linears: Mapping[str, nn.Linear], density: float) -> Modules:
    chosen = {n: m for n, m in linears.items() if share(m.weight) <= density}
    if not chosen:
        raise ValueError(
            f"no Linear layer has a density of at most density={density}: "
            "export(format='dense'), or train at a higher sparsity"
        )
    return {name: SparseLinear(module) for name, module in chosen.items()}


def to_dense(linears: Mapping[str, nn.Linear], density: float) -> Modules:
    return {}


def to_two_of_four(linears: Mapping[str, nn.Linear], density: float) -> Modules:
    fits = {n: m for n, m in linears.items() if is_two_of_four(m.weight)}
    if not fits:
        raise ValueError(
            "no Linear layer has at most two active weights in every four of a row: train with "
            'algo="nm", n=2, m=4, or export(format="csr")'
        )
    for module in fits.values():
        if module.weight.is_cuda:
            packed = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            module.weight = nn.Parameter(packed, requires_grad=False)
    return dict(fits)


REPLACE = {"csr": to_csr, "dense": to_dense, "2:4": to_two_of_four}


def is_two_of_four(weight: Tensor) -> bool:
    """Whether every four neighbours in a row hold at most two weights that are not zero.

    >>> is_two_of_four(torch.tensor([[1.0, 0, 0, 2], [0, 3, 4, 0]]))
    True
    >>> is_two_of_four(torch.tensor([[1.0, 2, 3, 0]]))
    False
    """
    if weight.ndim != 2 or weight.shape[1] % 4:
        return False
    return bool((weight.detach().reshape(-1, 4) != 0).sum(1).max() <= 2)


def share(weight: Tensor) -> float:
    return float((weight != 0).sum()) / weight.numel()


def size_on_disk(model: nn.Module) -> int:
    """Bytes of the saved state dict."""
    memory = io.BytesIO()
    torch.save(model.state_dict(), memory)
    return memory.getbuffer().nbytes
