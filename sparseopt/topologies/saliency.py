"""Topologies from the loss on one batch, ranked over all layers together: SNIP and GraSP."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layers import Layer
from ..select import top_k


@dataclass(frozen=True)
class snip:
    """The weights whose removal would change the loss most: the largest ``|gradient * weight|``.

    Gradients, the global random streams and training flags are the same afterwards. What the
    forward pass itself writes is not undone: put batch norm in eval mode, or expect its running
    averages to see the batch once more.

    Attributes:
        loss: function of no arguments that returns the loss on a batch, a scalar with its graph.
            It may average several batches.

    Raises:
        TypeError: if ``loss`` is no function.
        ValueError: on use, if the loss is no scalar with a graph, or see `masks`.

    References:
        Lee, Ajanthan and Torr, SNIP: Single-shot network pruning based on connection sensitivity,
        ICLR 2019.

    Example:
        >>> from types import SimpleNamespace
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> layer = SimpleNamespace(name="fc", weight=weight)
        >>> x = torch.tensor([5.0, 0.0, 1.0])
        >>> snip(lambda: (weight @ x).sum()).masks([layer], 2)
        {'fc': tensor([[ True, False,  True]])}
    """

    loss: Callable[[], Tensor]

    def __post_init__(self) -> None:
        _check_callable("snip", self.loss)

    def masks(self, layers: Sequence[Layer], nnz: int) -> dict[str, Tensor]:
        """Masks by layer name with exactly nnz active weights together, at least 1 per layer.

        Args:
            layers: objects with ``name`` and ``weight``.
            nnz: active weights of all layers together.

        Raises:
            ValueError: if ``nnz`` is too small or too large, or the loss gives no finite score.
        """
        return _ranked("snip", self.scores(layers), layers, nnz)

    def scores(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Worth of every weight, in the shape of the weight; larger is kept."""
        weights = [layer.weight for layer in layers]
        with _aside(weights):
            gradients = _gradients([_scalar("snip", self.loss())], weights, create_graph=False)
        return [(g * w.detach()).abs() for g, w in zip(gradients, weights, strict=True)]


@dataclass(frozen=True)
class grasp:
    """The weights that keep the gradient flowing: the largest ``weight * (H gradient)``.

    Removing a weight changes the squared norm of the gradient by about ``-2 w (H g)``, with the
    Hessian H; those whose removal would raise it most are left out. Takes a double backward, so
    every operation of the model must have one. What is left untouched, and what is not, as `snip`.

    Attributes:
        loss: function of no arguments that returns the loss on a batch, a scalar with its graph.

    Raises:
        TypeError, ValueError: as `snip`.

    References:
        Wang, Zhang and Grosse, Picking Winning Tickets Before Training by Preserving Gradient
        Flow, ICLR 2020, equation 8.

    Example:
        >>> from types import SimpleNamespace
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0, 3.0]]))
        >>> layer = SimpleNamespace(name="fc", weight=weight)
        >>> grasp(lambda: (weight ** 2).sum()).masks([layer], 2)
        {'fc': tensor([[False,  True,  True]])}
    """

    loss: Callable[[], Tensor]

    def __post_init__(self) -> None:
        _check_callable("grasp", self.loss)

    def masks(self, layers: Sequence[Layer], nnz: int) -> dict[str, Tensor]:
        """Masks by layer name with exactly nnz active weights together, at least 1 per layer.

        Arguments and errors as `snip.masks`.
        """
        return _ranked("grasp", self.scores(layers), layers, nnz)

    def scores(self, layers: Sequence[Layer]) -> list[Tensor]:
        """Worth of every weight, in the shape of the weight; larger is kept."""
        weights = [layer.weight for layer in layers]
        with _aside(weights):
            gradients = _gradients([_scalar("grasp", self.loss())], weights, create_graph=True)
            # The gradient of g . stop(g) is the Hessian times the gradient.
            norms = [(g * g.detach()).sum() for g in gradients]
            products = _gradients(norms, weights, create_graph=False)
        return [w.detach() * hg for w, hg in zip(weights, products, strict=True)]


def _check_callable(name: str, loss: object) -> None:
    if not callable(loss):
        raise TypeError(
            f"{name}: loss={loss!r} must be a function that computes the loss anew: "
            f"{name}(lambda: criterion(model(x), y))"
        )


@contextmanager
def _aside(weights: Sequence[Tensor]) -> Iterator[None]:
    """Gradients on, and the global random streams as they were afterwards (dropout draws)."""
    devices = sorted({w.device.index or 0 for w in weights if w.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        yield


def _scalar(name: str, loss: object) -> Tensor:
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss.sum()
    given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    raise ValueError(f"{name}: loss() gave {given}; it must return a scalar tensor with its graph")


def _gradients(
    losses: Sequence[Tensor], weights: Sequence[Tensor], create_graph: bool
) -> list[Tensor]:
    """Gradients that touch no ``.grad``; zero where the losses do not depend on a weight."""
    losses = [loss for loss in losses if loss.requires_grad]
    if not losses:
        return [torch.zeros_like(w) for w in weights]
    found = torch.autograd.grad(losses, weights, create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(w) if g is None else g for g, w in zip(found, weights, strict=True)]


def _ranked(
    name: str, scores: Sequence[Tensor], layers: Sequence[Layer], nnz: int
) -> dict[str, Tensor]:
    """The nnz largest scores over all layers; each layer's best is always among them."""
    total = sum(score.numel() for score in scores)
    if not len(layers) <= nnz <= total:
        raise ValueError(
            f"{name}: {nnz} active weights asked for; {len(layers)} layers can have from "
            f"{len(layers)} (one each) to {total}"
        )
    flat = [_guarded(name, layer, score) for layer, score in zip(layers, scores, strict=True)]
    parts = top_k(torch.cat(flat), nnz).split([len(part) for part in flat])
    return {
        layer.name: part.view(layer.weight.shape).to(layer.weight.device)
        for layer, part in zip(layers, parts, strict=True)
    }


def _guarded(name: str, layer: Layer, score: Tensor) -> Tensor:
    """A layer's scores on the CPU, its best one raised above all others."""
    flat = score.detach().reshape(-1).cpu().double()
    if not flat.isfinite().all():
        raise ValueError(f"{name}: the loss gives scores of {layer.name!r} that are not finite")
    return flat.masked_fill(top_k(flat, 1), math.inf)
