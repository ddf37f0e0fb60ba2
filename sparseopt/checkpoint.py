"""The portable state dict: the inner optimizer's own, with boolean masks and counters merged in.

``state[id]["sparse_mask"]`` holds the mask of a layer, ``state[id]["sparse_step"]`` the number of
steps for every parameter, and ``param_groups[0]["sparse"]`` what belongs to the run as a whole and
the entries of parameters for which the inner optimizer has no state while it has some for others.
Distributed checkpoints keep only what stands under ``state`` and ``param_groups``, the inner
optimizer ignores what it does not know, and ``torch.load(weights_only=True)`` reads all of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .layers import Layer
from .positions import count

if TYPE_CHECKING:
    from .algorithms import Algorithm

__all__ = ["Saved", "announce", "merge", "split"]

PREFIX = "sparse_"
RUN = "sparse"
OWN_LAYOUT = "inner"
APART = "apart"
LENGTH = ("total_steps", "update_every")
STATELESS = "stateless"  # in the run: the inner optimizer's state stands for none


@dataclass
class Saved:
    """What a state dict says of the sparse part.

    Attributes:
        run: Counters, seed, history and recipe; empty in a checkpoint of a dense optimizer.
        entries: For each parameter, by (group, index): its mask, step count and extras.
    """

    run: dict[str, Any] = field(default_factory=dict)
    entries: dict[tuple[int, int], dict[str, Tensor]] = field(default_factory=dict)

    @property
    def dense(self) -> dict[tuple[int, int], Tensor]:
        """The kept copy of the dense network's parameters, if there is one."""
        return {key: entry["dense"] for key, entry in self.entries.items() if "dense" in entry}

    def of_layer(self, key: tuple[int, int]) -> dict[str, Tensor]:
        """What is known of one layer: its mask and its extras."""
        entry = self.entries.get(key, {})
        return {name: entry[name] for name in entry if name not in ("step", "dense")}

    @property
    def masks(self) -> dict[tuple[int, int], Tensor]:
        """The masks there are, by (group, index)."""
        return {key: entry["mask"] for key, entry in self.entries.items() if "mask" in entry}

    @property
    def steps(self) -> int | None:
        """Steps taken, from the run or (distributed checkpoints, flattened) from any parameter."""
        if "steps" in self.run:
            return int(self.run["steps"])
        return next(
            (int(entry["step"]) for entry in self.entries.values() if "step" in entry), None
        )


def in_torch_layout(inner: Optimizer) -> dict[str, Any]:
    """The inner state dict; one of another layout (Lookahead and others) goes in as a whole."""
    own: dict[str, Any] = inner.state_dict()
    if "state" in own and "param_groups" in own:
        return own
    groups, first = [], 0
    for group in inner.param_groups:
        last = first + len(group["params"])
        groups.append({**group, "params": list(range(first, last))})
        first = last
    return {"state": {}, "param_groups": groups, OWN_LAYOUT: own}


def identifiers(groups: Sequence[dict[str, Any]]) -> Iterator[tuple[tuple[int, int], Any]]:
    """Each parameter's key with its id in the state dict (a number, or a name after DCP)."""
    for number, group in enumerate(groups):
        for index, identifier in enumerate(group["params"]):
            yield (number, index), identifier


def merge(
    plain: dict[str, Any],
    layers: Sequence[Layer],
    run: dict[str, Any],
    dense: Mapping[tuple[int, int], Tensor],
) -> dict[str, Any]:
    """The inner optimizer's state dict with masks and counters; the original is not changed."""
    by_key = {layer.key: layer for layer in layers}
    state = dict(plain["state"])
    step = torch.tensor(int(run["steps"]))
    apart: dict[str, dict[str, Tensor]] = {}
    for key, identifier in identifiers(plain["param_groups"]):
        ours = {f"{PREFIX}step": step}
        if key in dense:
            ours[f"{PREFIX}dense"] = dense[key]
        if key in by_key:
            ours[f"{PREFIX}mask"] = by_key[key].mask
            ours |= {f"{PREFIX}{name}": value for name, value in by_key[key].extras.items()}
        if identifier in plain["state"] or not plain["state"]:
            state[identifier] = {**state.get(identifier, {}), **ours}
        elif len(ours) > 1:  # Adam takes a parameter with any state for one that has all of it
            apart[f"{key[0]}.{key[1]}"] = ours
    groups = [dict(group) for group in plain["param_groups"]]
    groups[0][RUN] = run | ({APART: apart} if apart else {})
    return {**plain, "state": state, "param_groups": groups}


def announce(inner: Optimizer, merged: dict[str, Any]) -> None:
    """Show the names of our entries in the inner optimizer itself, with nothing behind them.

    Flattened distributed checkpoints restore the entries whose names they find there, no others.
    """
    for (number, index), identifier in identifiers(merged["param_groups"]):
        weight = inner.param_groups[number]["params"][index]
        if weight.requires_grad:
            ours = [name for name in merged["state"][identifier] if str(name).startswith(PREFIX)]
            inner.state[weight].update(dict.fromkeys(ours, 0))
    inner.param_groups[0][RUN] = {}


def split(state_dict: dict[str, Any]) -> tuple[dict[str, Any], Saved]:
    """The inner optimizer's part and ours; a parameter left without state has no entry."""
    if not {"state", "param_groups"} <= state_dict.keys():
        raise ValueError(
            "a state dict of an optimizer has the keys 'state' and 'param_groups', this one has "
            f"{', '.join(map(repr, list(state_dict)[:5])) or 'none'}: pass the part of the "
            "checkpoint that optimizer.state_dict() gave"
        )
    saved = Saved()
    state = dict(state_dict["state"])
    for key, identifier in identifiers(state_dict["param_groups"]):
        whole = state.get(identifier, {})
        ours = {name: value for name, value in whole.items() if str(name).startswith(PREFIX)}
        if ours:
            saved.entries[key] = unprefixed(ours)
            state[identifier] = {name: whole[name] for name in whole if name not in ours}
            if not state[identifier]:
                del state[identifier]
    groups = [dict(group) for group in state_dict["param_groups"]]
    for group in groups:
        saved.run |= group.pop(RUN, None) or {}
    for place, ours in saved.run.pop(APART, {}).items():
        number, index = map(int, place.split("."))
        saved.entries[number, index] = unprefixed(ours)
    return {**state_dict, "state": state, "param_groups": groups}, saved


def unprefixed(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in ours.items()}


def check(saved: Saved, layers: Sequence[Layer], algorithm: Algorithm) -> None:
    """Raise ValueError where a checkpoint belongs to another recipe, sparsity or model."""
    if not saved.masks:
        return  # a dense optimizer's checkpoint: its state is taken, the topology stays
    for name, mine in (("algo", algorithm.name), ("sparsity", algorithm.sparsity)):
        theirs = saved.run.get(name, mine)
        if theirs != mine:
            raise ValueError(
                f"the checkpoint was written with {name}={theirs!r}, this optimizer has "
                f"{name}={mine!r}: build it with the same {name}, or start from the checkpoint's "
                "topology with topology={name: mask}"
            )
    _check_layers(saved.masks, layers)
    _check_shapes(saved, layers)
    _check_counts(saved.masks, layers, algorithm)


def refuse_lost_masks(saved: Saved, plain: dict[str, Any]) -> None:
    """Raise ValueError for what a flattened distributed checkpoint leaves of ours after training.

    It restores only entries that it finds in the optimizer, and the masks are there before the
    first step alone. Its parameters are known by their names, not by numbers.
    """
    named = any(isinstance(one, str) for _, one in identifiers(plain["param_groups"]))
    if named and not saved.masks:
        raise ValueError(
            "the checkpoint brings no masks, and this optimizer has trained already: load a "
            "flattened checkpoint (flatten_optimizer_state_dict=True) into a new SparseOptimizer, "
            "or save and load without flattening"
        )


def _check_counts(
    masks: dict[tuple[int, int], Tensor], layers: Sequence[Layer], algorithm: Algorithm
) -> None:
    numbers = {layer.key: count(masks[layer.key]) for layer in layers}
    for layer in layers:
        if layer.nnz and not numbers[layer.key]:  # a topology given by hand may leave one empty
            raise ValueError(f"the checkpoint's mask of {layer.name!r} has no active weight")
    total, mine = sum(numbers.values()), sum(layer.nnz for layer in layers)
    if algorithm.keeps_count and total != mine:
        raise ValueError(
            f"the checkpoint's masks have {total} active weights, algo={algorithm.name!r} keeps "
            f"{mine}: they were not written by it"
        )


def _check_layers(masks: dict[tuple[int, int], Tensor], layers: Sequence[Layer]) -> None:
    names = {layer.key: layer.name for layer in layers}
    strange = [f"parameter {key[1]} of group {key[0]}" for key in masks if key not in names]
    missing = [repr(name) for key, name in names.items() if key not in masks]
    if strange or missing:
        raise ValueError(
            "the checkpoint's masks are not for these layers: "
            + "; ".join(
                f"{what} {', '.join(which[:4])}{', ...' if len(which) > 4 else ''}"
                for what, which in (("it has one for", strange), ("it has none for", missing))
                if which
            )
            + ". Was it another model, or another choice of layers (model=, include=, exclude=)?"
        )


def _check_shapes(saved: Saved, layers: Sequence[Layer]) -> None:
    """Masks and extras have the weight's shape; what a recipe keeps of a layer may be a number."""
    for layer in layers:
        for name, value in saved.of_layer(layer.key).items():
            shape = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            if shape != layer.shape and (shape != () or name == "mask"):
                raise ValueError(
                    f"the checkpoint's {name} of {layer.name!r} has shape {shape}, the weight "
                    f"{layer.shape}: it belongs to another model"
                )
