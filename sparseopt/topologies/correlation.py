"""A topology from data: inputs that vary together get the links (CSTI)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..layers import Layer
from ..select import top_k


@dataclass(frozen=True, eq=False)
class csti:
    """The most correlated pairs of inputs, for layers whose input is the data.

    The first hidden layer, a whole number of times as wide as the data, is seen as copies of the
    input: output i stands for input ``i % width``, and the links are the nnz largest absolute
    correlations between the two, equal ones by position. A feature correlates with itself 0, and
    so does a constant feature with everything.

    The data are read once, at the first use, in float64 sums: memory grows with the square of the
    number of features, not with the number of samples. The state of torch's global generator is
    the same afterwards, even if a loader shuffles.

    Attributes:
        data: a tensor (samples, ...), or batches of such tensors, or of tuples or lists whose
            first item is one (a DataLoader). Everything but the first dimension is flattened.
        layers: names of the layers whose input is the data; None: those with as many inputs as
            the data have features and a whole multiple of outputs.
        fallback: topology of all other layers, a name or a callable; None: they are an error.

    Raises:
        TypeError: if ``layers`` is a single string.
        ValueError: on use, if a layer's input cannot be the data and there is no ``fallback``, or
            the data are not what is asked for.

    References:
        Zhang et al., ICLR 2024 (CHT): correlated sparse topological initialization.

    Example:
        >>> from types import SimpleNamespace
        >>> data = torch.tensor([[0.0, 0.0, 1.0], [1.0, 2.0, 0.0], [2.0, 4.0, 4.0]])
        >>> layer = SimpleNamespace(name="fc", weight=torch.zeros(6, 3))
        >>> csti(data)(layer, 4, torch.Generator()).int()
        tensor([[0, 1, 0],
                [1, 0, 0],
                [0, 0, 0],
                [0, 1, 0],
                [1, 0, 0],
                [0, 0, 0]], dtype=torch.int32)
    """

    data: Any = field(repr=False)
    layers: Sequence[str] | None = None
    fallback: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.layers, str):
            raise TypeError(f"csti: layers={self.layers!r} must be a list of names: layers=[...]")

    def __call__(self, layer: Layer, nnz: int, generator: torch.Generator) -> Tensor:
        outputs, inputs = layer.weight.flatten(1).shape
        named = self.layers is not None and layer.name in self.layers
        reason = self._misfit(outputs, inputs, named)
        if reason is None:
            copies = self.correlation.repeat(outputs // inputs, 1)
            return top_k(copies, nnz).view(layer.weight.shape).to(layer.weight.device)
        if self.fallback is None or named:
            raise ValueError(
                f"csti cannot start layer {layer.name!r} of shape {tuple(layer.weight.shape)}: "
                f"{reason}; {'take it out of layers=' if named else 'pass fallback='}"
            )
        from . import resolve  # the registry imports this module

        topology = resolve(self.fallback)
        if not callable(topology):
            raise ValueError(
                f"csti: fallback={self.fallback!r} ranks all layers together; give a topology of "
                "single layers, such as 'random'"
            )
        return topology(layer, nnz, generator)

    @cached_property
    def correlation(self) -> Tensor:
        """Absolute correlation of every pair of features, float64 (features, features)."""
        # A shuffling loader draws its seed from the global stream, which is the user's.
        with torch.random.fork_rng(devices=[]):
            return _correlation(_batches(self.data))

    def _misfit(self, outputs: int, inputs: int, named: bool) -> str | None:
        """Why a layer cannot start from the data; None if it can."""
        if self.layers is not None and not named:
            return f"it is not one of layers={list(self.layers)}"
        features = len(self.correlation)
        if inputs != features:
            return f"its input is {inputs} wide, the data have {features} features"
        if outputs % inputs:
            return f"its {outputs} outputs are not a whole multiple of its {inputs} inputs"
        return None


def _batches(data: Any) -> Iterator[Tensor]:
    """The data as float64 matrices (samples, features), a part at a time."""
    if isinstance(data, Tensor):
        data = data.split(4096)
    if isinstance(data, str) or not isinstance(data, Iterable):
        raise ValueError(
            f"csti: data={type(data).__name__} must be a tensor (samples, features) or an iterable "
            "of batches"
        )
    for batch in data:
        sample = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(sample, Tensor) or sample.ndim < 2:
            kind = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
            raise ValueError(
                f"csti: data holds a batch of {kind}; a batch is a tensor (samples, ...), or a "
                "tuple or list whose first item is one"
            )
        yield sample.detach().flatten(1).cpu().double()


def _correlation(batches: Iterator[Tensor]) -> Tensor:
    """Absolute correlations from running sums and sums of outer products."""
    count, origin, total, outer = 0, None, torch.zeros(()), torch.zeros(())
    for batch in batches:
        if origin is None:
            # Sums about a sample: constant features then have a variance of exactly 0.
            origin = batch[0]
        if batch.shape[1] != len(origin):
            raise ValueError(
                f"csti: data has batches of {len(origin)} and {batch.shape[1]} features"
            )
        centred = batch - origin
        count, total, outer = (
            count + len(batch),
            total + centred.sum(0),
            outer + centred.T @ centred,
        )
    if count < 2 or not outer.isfinite().all():
        problem = f"{count} samples" if count < 2 else "values that are not finite"
        raise ValueError(f"csti: data has {problem}; a correlation needs 2 or more finite samples")
    return _absolute(outer - total.outer(total) / count)


def _absolute(covariance: Tensor) -> Tensor:
    """Absolute correlation with a zero diagonal, exactly symmetric, 0 where nothing varies."""
    scale = covariance.diagonal().clamp(min=0).rsqrt()
    scale = scale.masked_fill(scale.isinf(), 0)
    upper = (covariance * scale * scale[:, None]).abs().clamp(max=1).triu(1)
    return upper + upper.T
