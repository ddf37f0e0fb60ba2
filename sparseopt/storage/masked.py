"""Masked storage: the inner optimizer works on the model's own dense tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..bias_correction import BORN, BiasCorrection, Moments, mark_grown
from ..layers import Layer
from ..positions import count
from ..wrapper import step_of
from .active_gradient import active_values
from .deferred import stamp
from .state import StateTable, keeps_zeros, mean_of, state_of
from .zeroing import is_here, zero_at_sentinels, zero_inactive

if TYPE_CHECKING:
    from ..update import Change

__all__ = ["Masked"]


class Masked:
    """Dense weights, gradients and state, with zeros at inactive entries; for every optimizer."""

    name = "masked"
    reads_inactive_gradients = True  # so they must be zeroed before a step

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.table = StateTable(inner)
        self.correction = BiasCorrection(inner)
        self.clean_at: dict[tuple[int, int], tuple[int, int]] = {}
        self.begun = False
        self.turn = 0

    def step(self, closure: Callable[[], Any] | None) -> Any:
        """One step of the inner optimizer."""
        if closure is not None:  # it may register hooks, which this very step calls
            return self.inner.step(closure)
        return step_of(self.inner)()

    def group(self, layer: Layer) -> dict[str, Any]:
        return self.inner.param_groups[layer.key[0]]

    def _entries(self, layer: Layer) -> Iterator[tuple[str, Tensor, float]]:
        """State tensors with one value per weight, as the storage lays them out."""
        return self.table.elementwise(layer.weight, self.group(layer), layer.weight.shape)

    # --- around a step ----------------------------------------------------------------------------

    @torch.no_grad()
    def begin(self, layers: Sequence[Layer]) -> None:
        """Make ready for the inner step; gradients are final."""
        self.begun = True
        self.turn += 1
        for layer in layers:
            if not self.is_clean(layer):  # written from elsewhere: model.load_state_dict, an EMA
                self.mask_weights(layer)
            if layer.weight.grad is not None:
                self._stretch(layer, layer.weight, layer.weight.grad, lambda born: born)

    @torch.compiler.disable
    @torch.no_grad()
    def end(self, layers: Sequence[Layer]) -> None:
        """Clear up after the inner step, or after its failure."""
        self.correction.relax()
        trusted = self.begun and keeps_zeros(self.inner)
        self.begun = False
        for layer in layers:
            # optimizers that mix entries (Muon, Shampoo) write into inactive ones
            if trusted:
                self.note_clean(layer)
            else:
                self.mask_weights(layer)

    def _stretch(
        self, layer: Layer, weight: Tensor, grad: Tensor, pick: Callable[[Tensor], Tensor]
    ) -> None:
        """Give weights grown late a bias correction of their own, if the recipe asks for it."""
        if BORN not in layer.extras:
            return
        state = state_of(self.inner).get(weight, {})
        if "exp_avg" in state:
            moments = Moments(state, weight, grad, pick(layer.extras[BORN]))
            self.correction.stretch(moments, self.group(layer))

    def leave(self) -> None:
        """Give the model its tensors back between evaluations of a closure."""

    def write_back(self, layer: Layer, watch: bool = False) -> None:
        """The weight is where the values are."""

    def reread(self, layer: Layer) -> None:
        """Nothing is known of the weight that could be out of date."""

    def active(self, layer: Layer) -> Tensor | None:
        """The active weights at ``layer.index``; None where they are not held apart."""
        return None

    # --- zeros ------------------------------------------------------------------------------------

    def is_clean(self, layer: Layer) -> bool:
        """Whether inactive weights are zero: nothing was written since we saw them.

        Writes through ``.data`` leave no trace but the values; the sentinels see those. On other
        devices they do not look: a weight is masked in every step that writes it anyway.
        """
        if layer.dense:
            return True
        weight = layer.weight
        if self.clean_at.get(layer.key) != stamp(weight):
            return False
        # a backward pass may be waiting for a weight that takes no part in this step
        resting = not is_here(weight) and weight.grad is None
        return resting or zero_at_sentinels(weight, layer, self.turn)

    def note_clean(self, layer: Layer) -> None:
        self.clean_at[layer.key] = stamp(layer.weight)

    @torch.no_grad()
    def mask_weights(self, layer: Layer) -> None:
        """Make inactive weights exactly zero, whatever was written there."""
        if not layer.dense:
            zero_inactive(layer.weight, layer.mask)
        self.note_clean(layer)

    def take_up(self, layer: Layer, moved: bool) -> None:
        """Follow state that was loaded, with the mask; weights are looked at if the mask moved."""
        if moved:
            self.mask_weights(layer)

    @torch.no_grad()
    def clean(self, layer: Layer) -> None:
        """Zero inactive weights and give their state the neutral value: for what came before."""
        self.mask_weights(layer)
        for _, value, neutral in self._entries(layer):
            value.masked_fill_(~layer.mask, neutral)

    # --- a new topology ---------------------------------------------------------------------------

    @torch.no_grad()
    def carry_out(self, change: Change, grown_state: str) -> None:
        """Move the layer to its new topology: grown weights are zero, survivors untouched."""
        layer, grad = change.layer, change.layer.weight.grad
        if grown_state == "per_element_step":
            clock = state_of(self.inner).get(layer.weight, {}).get("step", 0)
            mark_grown(layer, change.fresh, float(clock))
        values = None if grad is None else active_values(grad, layer.index)
        if values is not None and change.lasting is not None:
            zero_inactive(values, change.lasting)
        elif grad is not None:
            zero_inactive(grad, change.mask)
        self._move(change, grown_state)
        self.note_clean(layer)

    def _move(self, change: Change, grown_state: str) -> None:
        """Give the layer its new mask, and weight and state what belongs to that."""
        layer = change.layer
        staying = change.mask & change.carried
        for _, value, neutral in self._entries(layer):
            zero_inactive(value, staying)
            mean = grown_state == "mean" and neutral == 0.0
            grown = mean_of(value, count(staying)) if mean else neutral
            if neutral:
                value.masked_fill_(~change.mask, neutral)
            if grown:
                value.masked_fill_(change.fresh, grown)
        zero_inactive(layer.weight, staying)
        layer.set_mask(change.mask, change.nnz)

    # --- checkpoints ------------------------------------------------------------------------------

    def portable(self, layer: Layer, entry: dict[str, Any]) -> dict[str, Any]:
        """The layer's entry of the inner state dict in dense layout."""
        return entry
