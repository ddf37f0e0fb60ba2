"""Compact storage: the inner optimizer works on the active values alone.

While the inner ``step()`` runs, the parameter groups hold one-dimensional tensors with the active
values in place of the weights, and the state belongs to them; before and after, users, schedulers
and scalers see the ordinary groups. State, arithmetic and memory shrink with density.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..layers import Layer
from ..positions import compress, count, positions
from ..watched import Watch, release_all, untouched
from ..wrapper import step_of
from .active_gradient import take_values
from .deferred import Deferred, defer, settle, stamp
from .masked import Masked
from .packed import Packed, at, can_pack, gather, scatter, unflat
from .state import AFTER, BEFORE, mean_of, run_hooks, runs_more, without_hooks
from .zeroing import flat

if TYPE_CHECKING:
    from ..update import Change

__all__ = ["Compact"]

WORTH_WATCHING = 1 << 13  # entries of a weight; smaller ones are read, so that no write escapes


class Compact(Masked):
    """Active values only; for element-wise optimizers."""

    name = "compact"
    reads_inactive_gradients = False

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner)
        self.packed: dict[tuple[int, int], Packed] = {}
        self.inside: list[Layer] = []
        self.deferring: set[tuple[int, int]] = set()  # layers written when somebody reads them
        self.stepping = False
        self.watch = Watch()

    # --- around a step ----------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None) -> Any:
        """One step of the inner optimizer; its hooks find the model's own tensors."""
        ours = (BEFORE, AFTER) if closure is None else (AFTER,)  # else before: nothing is packed
        self.stepping = True
        try:
            with without_hooks(self.inner, ours):
                step = step_of(self.inner)  # those that a closure registers are called below, too
                loss = step() if closure is None else step(closure)
        finally:
            self.stepping = False
        if getattr(self.inner, AFTER, None):
            self.leave()
            run_hooks(self.inner, AFTER, closure)
        return loss

    def begin(self, layers: Sequence[Layer]) -> None:
        """Gather active values and gradients, and let the inner optimizer see them."""
        if not self.stepping:  # a closure's gradients come within the step
            run_hooks(self.inner, BEFORE)
        self.turn += 1
        with untouched():  # what is not known to be current is written before it is read
            try:
                self._begin(layers)
            except BaseException:  # the groups are the user's again
                self.leave()
                raise

    def _begin(self, layers: Sequence[Layer]) -> None:
        held = [self._held(layer) for layer in layers]  # refuses before anything is changed
        for layer, packed in zip(layers, held, strict=True):
            if not self.is_clean(layer):
                self.mask_weights(layer)
            if packed is None:  # dense: the inner optimizer may have the weight itself
                if layer.weight.grad is not None:
                    self._stretch(layer, layer.weight, layer.weight.grad, lambda born: born)
                continue
            if packed.values.dtype != layer.weight.dtype:  # model.double() and the like
                self._repack(layer, packed.index)
                packed = self.packed[layer.key]
            self._enter(layer, packed)
            if packed.values.grad is not None:
                pick = self._picker(layer, packed)
                self._stretch(layer, packed.values, packed.values.grad, pick)

    def _enter(self, layer: Layer, packed: Packed) -> None:
        weight = layer.weight
        grad = weight.grad
        if grad is None:
            packed.left = None  # no step will look at what was written through weight.data
        else:
            if not packed.unwritten(weight):
                self.write_back(layer)
                gather(weight.detach(), weight, packed.index, packed.values.detach())
            packed.values.grad = take_values(grad, packed.index)
            if packed.values.grad is None:  # a dense one
                packed.values.grad = packed.values.new_empty(len(packed.index))
                gather(grad.detach(), weight, packed.index, packed.values.grad)
        self._swap(layer, weight, packed.values)
        self.inside.append(layer)

    @torch.compiler.disable
    def end(self, layers: Sequence[Layer]) -> None:
        """Write the active values back; the groups are the ordinary ones again."""
        self.correction.relax()
        self.leave()
        foreign = runs_more(self.inner)
        for layer in layers:
            if foreign:
                self.mask_weights(layer)
            else:
                self.note_clean(layer)  # inactive entries were never written

    @torch.no_grad()
    def leave(self) -> None:
        with untouched():
            self._leave()

    def _leave(self) -> None:
        for layer in self.inside:
            packed = self.packed[layer.key]
            self._swap(layer, packed.values, layer.weight)
            if packed.values.grad is None:
                continue
            packed.values.grad = None
            if not self._defer(layer, packed):
                settle(layer.weight)
                scatter(layer.weight.detach(), packed.index, packed.values.detach())
                self._watch(layer)
            packed.left = stamp(layer.weight)
            packed.seen = None if packed.seen is None else packed.left
        self.inside.clear()

    def _defer(self, layer: Layer, packed: Packed) -> bool:
        if packed.seen is None or layer.key not in self.deferring:
            return False
        return defer(layer.weight, layer.name, packed.values, packed.index)

    def _swap(self, layer: Layer, old: Tensor, new: Tensor) -> None:
        """Put one tensor in the place of another, in the group and as the owner of the state."""
        self.group(layer)["params"][layer.key[1]] = new
        state = self.inner.state.pop(old, None)
        if state is not None:
            self.inner.state[new] = state

    @staticmethod
    def _picker(layer: Layer, packed: Packed) -> Callable[[Tensor], Tensor]:
        return lambda dense: at(flat(dense, layer.weight), packed)

    # --- between steps ----------------------------------------------------------------------------

    def current(self, layer: Layer) -> Packed | None:
        """The layer's active values, as the weight has them now.

        Returns:
            None if the weight cannot be told by them: the layer is dense, or inactive entries were
            written from elsewhere and are not zero.
        """
        packed = self.packed.get(layer.key)
        if packed is not None and packed.seen == stamp(layer.weight):
            if packed.unwritten(layer.weight):
                return packed
        return self._reread(layer, self._held(layer))

    @torch.no_grad()
    def _reread(self, layer: Layer, packed: Packed | None) -> Packed | None:
        weight = layer.weight
        if packed is None or packed.values.dtype != weight.dtype or not weight.is_contiguous():
            return None
        entries = flat(weight.detach(), weight).index_select(0, packed.index)
        known = packed.seen == stamp(weight)
        if known and torch.equal(entries, packed.values):
            return packed
        packed.values.copy_(entries)
        masked = not known and super().is_clean(layer)
        zeros = masked or count(weight.detach()) == count(packed.values)
        packed.seen = stamp(weight) if zeros else None
        return packed if zeros else None

    @torch.no_grad()
    def write_back(self, layer: Layer, watch: bool = False) -> None:
        """Give the weight the values that it has not got yet; watch it if only we read it."""
        if settle(layer.weight) and watch:
            self._watch(layer)
        self._held(layer)

    def _watch(self, layer: Layer) -> None:
        if layer.numel >= WORTH_WATCHING and not layer.ordinary:
            self.watch.add(layer.key, layer.weight)

    def is_clean(self, layer: Layer) -> bool:
        packed = self.packed.get(layer.key)
        if packed is not None and packed.unwritten(layer.weight):
            return packed.clean  # else a write from before may have been overlooked
        if packed is not None:
            packed.clean = False
        return not isinstance(layer.weight, Deferred) and super().is_clean(layer)

    def mask_weights(self, layer: Layer) -> None:
        packed, weight = self.packed.get(layer.key), layer.weight
        known = packed is not None and packed.unwritten(weight)
        self.write_back(layer, watch=known)
        with untouched():
            super().mask_weights(layer)
        if packed is None:
            return
        packed.clean = True
        if known:  # its active entries are what they were
            same = packed.seen == packed.left
            packed.left = stamp(weight)
            packed.seen = packed.left if same else None

    def reread(self, layer: Layer) -> None:
        """Forget what is known of the weight: it is read again when it is needed."""
        self.write_back(layer)
        if layer.key in self.packed:
            self.packed[layer.key].seen = self.packed[layer.key].left = None

    @torch.no_grad()
    def active(self, layer: Layer) -> Tensor | None:
        packed, weight = self._held(layer), layer.weight
        if packed is None or packed.index is not layer.index or packed.values.dtype != weight.dtype:
            return None
        if not packed.unwritten(weight):
            gather(weight.detach(), weight, packed.index, packed.values.detach())
        return packed.values.detach()

    def _held(self, layer: Layer) -> Packed | None:
        """The packed layer, in the order and on the device in which its weight lies now."""
        packed = self.packed.get(layer.key)
        if packed is None or packed.lies_as(layer.weight):
            return packed
        return self._follow(layer, packed)

    @torch.no_grad()
    def _follow(self, layer: Layer, old: Packed) -> Packed:
        """Pack anew a weight that was moved: ``model.to(memory_format=...)``, ``model.cuda()``."""
        if not can_pack(layer):
            raise RuntimeError(
                f"the weight {layer.name!r} was given memory with strides {layer.weight.stride()}, "
                "not one dense block, which storage='compact' cannot follow: give it a contiguous "
                "tensor, or use storage='masked'"
            )
        weight, entries = layer.weight, list(self._entries(layer))
        before = torch.empty_strided(weight.shape, old.strides, device="meta")
        self._repack(layer, positions(flat(layer.mask, weight)).to(weight.device))
        packed = self.packed[layer.key]
        for key, value, _ in entries:
            whole = value.new_zeros(layer.numel).index_copy_(0, old.index, value)
            moved = flat(unflat(whole, before), weight).to(weight.device)
            self.inner.state[weight][key] = at(moved, packed)
        return packed

    # --- a new topology ---------------------------------------------------------------------------

    @torch.no_grad()
    def take_up(self, layer: Layer, moved: bool) -> None:
        """Pack the layer under its present mask, and dense state that came from elsewhere."""
        if moved:
            self.mask_weights(layer)
        self._repack(layer, positions(flat(layer.mask, layer.weight)))
        packed = self.packed.get(layer.key)
        if packed is None:
            return
        for key, value, _ in list(super()._entries(layer)):
            self.inner.state[layer.weight][key] = at(flat(value, layer.weight), packed)

    def clean(self, layer: Layer) -> None:
        self.take_up(layer, moved=True)

    def _repack(self, layer: Layer, index: Tensor, into: Packed | None = None) -> None:
        if layer.dense:
            self.packed.pop(layer.key, None)
            return
        if into is None:
            values = nn.Parameter(layer.weight.new_empty(len(index)))
        else:
            index, values = into.placed(index), into.values
        self.packed[layer.key] = Packed(index, values, layer.weight.stride())
        layer.index = index if layer.weight.is_contiguous() else None

    @torch.no_grad()
    def carry_out(self, change: Change, grown_state: str) -> None:
        layer, weight = change.layer, change.layer.weight
        self.write_back(layer)
        if not self.is_clean(layer):
            self.mask_weights(layer)
        old = self.packed.get(layer.key)
        known = old is not None and old.unwritten(weight)
        zeros = old is not None and old.seen == stamp(weight)
        with untouched():
            super().carry_out(change, grown_state)
        new = self.packed.get(layer.key)
        if known and old is not None and new is not None:  # what it writes is known as well
            new.left, new.clean = stamp(weight), old.clean
            new.seen = new.left if zeros else None
        elif known:
            release_all([weight])

    def _move(self, change: Change, grown_state: str) -> None:
        """Carry values and state to their new places; grown ones are zero, with neutral state."""
        layer, weight = change.layer, change.layer.weight
        old, entries = self.packed.get(layer.key), list(self._entries(layer))
        staying, survived, index = self._places(change)
        source, target = positions(staying), positions(survived)
        if len(source) != len(target):
            raise RuntimeError(
                f"the mask of {layer.name!r} was written in place since the last update: masks "
                "are the optimizer's own; start from other ones with topology=, or exchange "
                "weights in a recipe"
            )
        zero = self._to_zero(layer, ~staying, index, ~survived)  # before a view holds the weight
        flat(weight, weight).index_fill_(0, zero, 0.0)
        layer.set_mask(change.mask, change.nnz)
        into = old if old is not None and old.has_room(index, weight) else None
        self._repack(layer, index, into)
        new = self.packed.get(layer.key)

        def moved(value: Tensor, neutral: float) -> Tensor:
            there = value.new_full((layer.nnz,), neutral)
            scatter(there, target, flat(value, weight).index_select(0, source))
            return there

        for key, value, neutral in entries:
            there = moved(value, neutral)
            if grown_state == "mean" and neutral == 0.0:
                there.masked_fill_(~survived, mean_of(there, len(target)))
            if into is None:
                self.inner.state[weight][key] = unflat(there, weight) if new is None else there
            else:
                value.copy_(there)
        if old is not None and new is not None:
            new.values.copy_(moved(old.values.detach(), 0.0))

    def _places(self, change: Change) -> tuple[Tensor, Tensor, Tensor]:
        """Which active values stay, which of the new ones they are, and where these lie."""
        layer, weight = change.layer, change.layer.weight
        old = self.packed.get(layer.key)
        now, carried = flat(change.mask, weight), flat(change.carried, weight)
        staying = change.lasting if weight.is_contiguous() else None
        if staying is None:
            staying = at(now & carried, old)
        elif change.carried is not layer.mask:  # some start again
            staying = staying & at(carried, old)
        index = positions(now)
        return staying, carried.index_select(0, index), index

    def _to_zero(self, layer: Layer, lost: Tensor, index: Tensor, grown: Tensor) -> Tensor:
        """Where values are lost; where others are grown too, unless it is known to be zero."""
        old, places = self.packed.get(layer.key), positions(lost)
        if old is None:
            return places
        places = old.index.index_select(0, places)
        known = old.clean and old.unwritten(layer.weight)
        return places if known else torch.cat([places, compress(index, grown)])

    def _entries(self, layer: Layer) -> Iterator[tuple[str, Tensor, float]]:
        packed = self.packed.get(layer.key)
        if packed is None:
            return super()._entries(layer)
        return self.table.elementwise(layer.weight, self.group(layer), packed.values.shape)

    # --- checkpoints ------------------------------------------------------------------------------

    def portable(self, layer: Layer, entry: dict[str, Any]) -> dict[str, Any]:
        """The layer's entry of the inner state dict, spread out to the weight's shape."""
        packed = self.packed.get(layer.key)
        if packed is None:
            return entry
        dense = dict(entry)
        for key, value, neutral in self._entries(layer):
            whole = value.new_full((layer.numel,), neutral)
            dense[key] = unflat(whole.index_copy_(0, packed.index, value), layer.weight)
        return dense
