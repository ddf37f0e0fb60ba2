"""Topologies that look at one layer's weight and at no graph: random, magnitude, structured."""

from __future__ import annotations

import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Layer
from ..select import choose, top_k
from ..shards import takes_shards


@takes_shards
def random(layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
    """A uniform draw of exactly nnz weights: the start of SET, RigL and most others.

    Args:
        layer: has a ``weight``; its values do not matter.
        nnz: number of active weights.
        generator: where chance comes from, a generator of the CPU.

    Returns:
        A bool mask of the shape of the weight.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(4, 5))
        >>> random(layer, 7, torch.Generator().manual_seed(0)).sum()
        tensor(7)
    """
    return choose(torch.ones_like(layer.weight, dtype=torch.bool), nnz, generator)


@takes_shards
def magnitude(layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
    """The nnz largest weights; equal ones by position. Arguments and result as `random`.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.tensor([[0.1, -3.0], [2.0, 0.5]]))
        >>> magnitude(layer, 2, torch.Generator())
        tensor([[False,  True],
                [ True, False]])
    """
    return top_k(layer.weight.detach().abs(), nnz)


@takes_shards
def constant_fan_in(layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
    """The same number of weights in every row, at random: the start of SRigL.

    A row is one output, ``weight.flatten(1)``. Arguments and result as `random`.

    Raises:
        ValueError: if ``nnz`` is not a multiple of the number of rows.

    References:
        Lasby et al., Dynamic Sparse Training with Structured Sparsity, ICLR 2024.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(3, 5))
        >>> constant_fan_in(layer, 6, torch.Generator().manual_seed(0)).sum(1)
        tensor([2, 2, 2])
    """
    rows, fan_in = layer.weight.flatten(1).shape
    if nnz % rows:
        raise ValueError(
            f"constant_fan_in: {nnz} active weights of {layer.name!r} cannot be shared equally by "
            f"{rows} rows; {nnz // rows * rows} can: pass a distribution with such counts, or take "
            "algo='srigl', which rounds them"
        )
    one = torch.ones(fan_in, dtype=torch.bool)
    mask = torch.stack([choose(one, nnz // rows, generator) for _ in range(rows)])
    return mask.view(layer.weight.shape).to(layer.weight.device)


@takes_shards
@dataclass(frozen=True)
class n_of_m:
    """n weights at random of every m that follow each other along the inputs of one output.

    A convolution is read in NHWC order, (outputs, height, width, inputs), as hardware for 2:4
    sparsity does: a group holds m input channels of one place of the kernel.

    Attributes:
        n: active weights of a group, from 1 to m.
        m: size of a group; the number of inputs must be a multiple of it.

    Raises:
        TypeError: if ``n`` or ``m`` is not a whole number.
        ValueError: if ``n`` is not between 1 and ``m``; on use, if the inputs do not fall into
            groups of ``m``, or ``nnz`` is not ``n / m`` of the weights.

    References:
        Mishra et al., Accelerating Sparse Deep Neural Networks, arXiv 2104.08378.

    Example:
        >>> from types import SimpleNamespace
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(3, 8))
        >>> n_of_m(2, 4)(layer, 12, torch.Generator().manual_seed(0)).view(6, 4).sum(1)
        tensor([2, 2, 2, 2, 2, 2])
    """

    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not isinstance(self.n, numbers.Integral) or not isinstance(self.m, numbers.Integral):
            raise TypeError(f"n={self.n!r} and m={self.m!r} must be whole numbers")
        if not 1 <= self.n <= self.m:
            raise ValueError(
                f"n={self.n} must be between 1 and m={self.m}: n of every m are active"
            )

    def __call__(self, layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
        inputs_last = layer.weight.movedim(1, -1).shape
        self._check(layer, inputs_last[-1], nnz)
        noise = torch.rand(layer.weight.numel() // self.m, self.m, generator=generator)
        first = noise.topk(self.n, dim=1).indices
        groups = torch.zeros(noise.shape, dtype=torch.bool).scatter_(1, first, True)
        mask = groups.view(inputs_last).movedim(-1, 1).contiguous()
        return mask.to(layer.weight.device)

    def _check(self, layer: Layer, inputs: int, nnz: int) -> None:
        if inputs % self.m:
            raise ValueError(
                f"n_of_m({self.n}, {self.m}): {layer.name!r} has {inputs} inputs, which is not a "
                f"multiple of {self.m}; keep this layer dense"
            )
        expected = layer.weight.numel() // self.m * self.n
        if nnz != expected:
            raise ValueError(
                f"n_of_m({self.n}, {self.m}): {layer.name!r} gets {expected} active weights, not "
                f"{nnz}; ask for a sparsity of {1 - self.n / self.m:g} in this layer"
            )
