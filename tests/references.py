"""Slow, literal versions of one topology update and of truly sparse training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

# --- one topology update, on numpy arrays ---------------------------------------------------------


def best(score: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """Mask of the k largest scores among the candidates; of equals the first position wins."""
    flat_score, flat_among = score.reshape(-1), among.reshape(-1)
    order = [i for i in range(flat_score.size) if flat_among[i]]
    order.sort(key=lambda i: (-flat_score[i], i))
    chosen = np.zeros(flat_score.size, dtype=bool)
    chosen[order[:k]] = True
    return chosen.reshape(score.shape)


def number_to_drop(fraction: float, active: int, rounding: str = "floor") -> int:
    from fractions import Fraction

    exact = Fraction(str(fraction)) * active
    return int(exact) if rounding == "floor" else -int(-exact // 1)


def magnitude_drop(weight: np.ndarray, mask: np.ndarray, k: int) -> np.ndarray:
    """What is left when the k active weights of smallest magnitude are dropped."""
    return best(np.abs(weight), mask, int(mask.sum()) - k)


def gradient_growth(gradient: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """The k candidates of largest absolute gradient."""
    return best(np.abs(gradient), candidates, k)


def rigl_update(
    weight: np.ndarray, gradient: np.ndarray, mask: np.ndarray, k: int, forbid: bool = False
) -> np.ndarray:
    """The mask after one RigL update that exchanges k weights."""
    if forbid:
        k = min(k, int((~mask).sum()))
    kept = magnitude_drop(weight, mask, k)
    candidates = ~mask if forbid else ~kept
    return kept | gradient_growth(gradient, candidates, k)


def signed_set_drop(weight: np.ndarray, mask: np.ndarray, fraction: float) -> np.ndarray:
    """What is left when the fraction is dropped of the smallest positive and the largest negative.

    Zeros count as positive.
    """
    kept = mask.copy()
    for side in (mask & (weight < 0), mask & (weight >= 0)):
        number = int(side.sum())
        kept &= ~side | magnitude_drop(weight, side, number_to_drop(fraction, number))
    return kept


def mest_score(weight: np.ndarray, gradient: np.ndarray, gradient_weight: float) -> np.ndarray:
    """What a weight is worth to MEST: |w| + lambda |g|."""
    return np.abs(weight) + gradient_weight * np.abs(gradient)


# --- training that holds only the active values ---------------------------------------------------


class TrulySparse:
    """A network whose sparse weights exist only as vectors of their active values.

    The optimizer sees these vectors and the dense parameters, nothing else; dense gradients are
    read only to decide what grows. Independent of sparseopt: it follows given first masks and its
    own RigL updates.
    """

    def __init__(
        self,
        model: nn.Module,
        masks: dict[str, Tensor],
        make: Callable[[Iterable[Any]], Optimizer],
    ) -> None:
        self.model = model
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.values = {
            name: nn.Parameter(p.detach()[masks[name]].clone() if name in masks else p.detach())
            for name, p in model.named_parameters()
        }
        self.optimizer = make(list(self.values.values()))
        self.built: dict[str, Tensor] = {}

    def dense(self, name: str) -> Tensor:
        mask = self.masks.get(name)
        if mask is None:
            return self.values[name]
        return torch.zeros(mask.shape, dtype=self.values[name].dtype).masked_scatter(
            mask, self.values[name]
        )

    def forward(self, inputs: Tensor) -> Tensor:
        self.built = {name: self.dense(name) for name in self.values}
        for name in self.masks:
            self.built[name].retain_grad()
        return functional_call(self.model, self.built, (inputs,))

    def step(self, loss_of: Callable[[Any], Tensor], clip: float | None = None) -> None:
        self.optimizer.zero_grad()
        loss_of(self.forward).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.values.values(), clip)
        self.optimizer.step()

    @torch.no_grad()
    def rigl(self, fraction: float) -> None:
        """One topology update: surviving values keep their state, grown ones start at zero."""
        for name, mask in self.masks.items():
            weight, gradient = self.dense(name).numpy(), self.built[name].grad.numpy()
            k = number_to_drop(fraction, int(mask.sum()))
            new = torch.from_numpy(rigl_update(weight, gradient, mask.numpy(), k))
            self._move(name, mask, new)
            self.masks[name] = new

    def _move(self, name: str, old: Tensor, new: Tensor) -> None:
        p = self.values[name]
        tensors = [p.data] + [
            value for value in self.optimizer.state[p].values()
            if torch.is_tensor(value) and value.shape == p.shape
        ]  # fmt: skip
        for tensor in tensors:
            dense = torch.zeros(old.shape, dtype=tensor.dtype).masked_scatter(old, tensor)
            dense[~new] = 0
            tensor.copy_(dense[new])  # counts are constant, so the vectors keep their length

    def weights(self) -> Sequence[Tensor]:
        return [self.dense(name).detach() for name in self.values]
