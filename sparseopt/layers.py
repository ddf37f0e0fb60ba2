"""Which parameters take part, and what is known of each: name, weight, mask, counts."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .positions import count
from .refusals import refuse_flattened, refuse_unsupported
from .shards import shard_like

__all__ = ["Layer", "Pattern", "Selection", "counterparts", "wrapped"]

logger = logging.getLogger("sparseopt")

Pattern = str | Callable[[str, Tensor], bool]
"""A glob over dotted name components (``"layer1.*.conv2"``, ``"fc"``), or ``f(name, weight)``."""

CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
# in a name, words of parameters that are tables or scales rather than products with the input
NOT_WEIGHTS = ("embed", "emb", "wte", "wpe", "norm", "bn", "ln", "token", "position", "pos")


class Layer:
    """One sparse parameter: its name, its weight and which of its entries are active.

    Attributes:
        name: Dotted name of the parameter, or ``"<group>.<index>"`` where names are unknown.
        weight: The parameter itself; inactive entries are exactly zero.
        mask: Boolean tensor of the weight's shape, true where active; updated in place.
        key: Position in the optimizer: (parameter group, index in the group).
        index: Positions of the active weights, row-major, where the storage keeps them.
        values: The active weights at ``index``, while an update runs, where the storage has them.
        gradient: Dense gradient of the last step, while an update that asks for it runs.
        extras: Tensors of the weight's shape that a recipe keeps between updates; checkpointed.
        ordinary: Whether its module wants an ordinary ``nn.Parameter`` at all times.

    Example:
        >>> layer = Layer("fc", torch.ones(2, 3), (0, 0))
        >>> layer.set_mask(torch.tensor([[1, 0, 0], [0, 1, 1]]).bool())
        >>> layer
        Layer('fc', shape=(2, 3), nnz=3, density=0.5000)
    """

    def __init__(self, name: str, weight: Tensor, key: tuple[int, int]) -> None:
        self.name = name
        self.weight = weight
        self.key = key
        self.mask = torch.ones_like(weight, dtype=torch.bool, requires_grad=False)
        self.index: Tensor | None = None
        self.values: Tensor | None = None
        self.gradient: Tensor | None = None
        self.extras: dict[str, Tensor] = {}
        self.ordinary = False

    @cached_property
    def nnz(self) -> int:
        """Number of active weights; counted when it is asked for."""
        return count(self.mask)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, output channels first (as stored)."""
        return tuple(self.weight.shape)

    @property
    def numel(self) -> int:
        """Number of weights, active or not."""
        return self.mask.numel()

    @property
    def density(self) -> float:
        """Fraction of weights that are active, in [0, 1]; 1 for a layer without any."""
        return self.nnz / self.numel if self.numel else 1.0

    @property
    def dense(self) -> bool:
        """Whether every weight is active, so that nothing needs masking."""
        return self.nnz == self.numel

    def set_mask(self, mask: Tensor, nnz: int | None = None) -> None:
        """Make ``mask``, with ``nnz`` true entries if that is known, the topology.

        In place: compiled steps and CUDA graphs keep its address.
        """
        self.mask.copy_(shard_like(mask, self.mask))
        self.nnz = count(self.mask) if nnz is None else nnz
        self.index = self.values = None

    def __repr__(self) -> str:
        return (
            f"Layer({self.name!r}, shape={self.shape}, nnz={self.nnz}, density={self.density:.4f})"
        )


def wrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside DistributedDataParallel, DataParallel or torch.compile."""
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, parallel) or hasattr(model, "_orig_mod"):
        model = model.module if isinstance(model, parallel) else model._orig_mod  # type: ignore[assignment]
    return model


def matches(pattern: Pattern, name: str, weight: Tensor) -> bool:
    """Whether a glob matches a run of whole name components, or a callable says so.

    >>> weight = torch.zeros(2, 2)
    >>> matches("fc", "head.fc.weight", weight), matches("bias", "unbiased.weight", weight)
    (True, False)
    >>> matches("layer*.0", "layer1.0.conv1.weight", weight)
    True
    """
    if callable(pattern):
        return bool(pattern(name, weight))
    parts, wanted = name.split("."), pattern.split(".")
    runs = (parts[i : i + len(wanted)] for i in range(len(parts) - len(wanted) + 1))
    return any(all(map(fnmatch.fnmatchcase, run, wanted)) for run in runs)


def as_patterns(patterns: Pattern | Iterable[Pattern] | None, argument: str) -> list[Pattern]:
    if patterns is None:
        return []
    one = isinstance(patterns, str) or callable(patterns) or not isinstance(patterns, Iterable)
    chosen: list[Any] = [patterns] if one else [*patterns]  # type: ignore[misc]
    for pattern in chosen:
        if not isinstance(pattern, str) and not callable(pattern):
            raise TypeError(
                f"{argument}={patterns!r} must be a name pattern, a callable (name, weight) -> "
                f"bool, or a list of these; got {pattern!r} in it"
            )
    return chosen


def vector_like(weight: Tensor) -> bool:
    """Whether a tensor of several dimensions is really a vector: gains, scales, one-wide layers."""
    return weight.ndim < 2 or weight.numel() == max(weight.shape)


def eligible_in_module(module: nn.Module, name: str, weight: Tensor) -> bool:
    """Whether this parameter of this module is a weight that multiplies the module's input."""
    if isinstance(module, nn.MultiheadAttention):
        return name in PROJECTIONS
    if isinstance(module, CONVOLUTIONS) and module.groups == module.in_channels > 1:
        return False  # depthwise: one small filter per channel
    is_product = isinstance(module, (nn.Linear, *CONVOLUTIONS)) or type(module).__name__ == "Conv1D"
    # torch.nn.utils.weight_norm splits the weight into a gain (weight_g) and a direction (weight_v)
    return is_product and name in ("weight", "weight_v") and not vector_like(weight)


def keeps_zeros(parametrization: nn.Module) -> bool:
    """Whether zeros of the stored tensor are zeros of the weight that the layer multiplies by."""
    return type(parametrization).__name__ in ("_WeightNorm", "_SpectralNorm")


def owner_of(modules: dict[str, nn.Module], path: str, name: str) -> tuple[nn.Module, str]:
    """The module that multiplies by a parameter, and the name under which it knows it."""
    module = modules[path]
    if not isinstance(module, nn.utils.parametrize.ParametrizationList):
        return module, name
    owner = modules[path.rpartition("parametrizations.")[0].rstrip(".")]
    known = len(module) == 1 and keeps_zeros(module[0])
    return owner, path.rpartition(".")[2] if known and name in ("original", "original1") else ""


def eligible_names(model: nn.Module) -> set[str]:
    """Names of the parameters of ``model`` that are made sparse unless the user says otherwise."""
    votes: dict[int, list[bool]] = {}
    names: dict[int, str] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        for name, weight in module.named_parameters(recurse=False):
            owner, own_name = owner_of(modules, path, name)
            votes.setdefault(id(weight), []).append(eligible_in_module(owner, own_name, weight))
            names.setdefault(id(weight), f"{path}.{name}" if path else name)
    # a tied weight (owned twice) is left dense: an embedding shares it, or two layers do
    return {names[key] for key, owners in votes.items() if owners == [True]}


def eligible_by_name(name: str, weight: Tensor) -> bool:
    """The default choice where only names are known."""
    *path, last = name.split(".")
    if last not in ("weight", "weight_v", "original1", *PROJECTIONS):
        return False
    words = [word for part in path for word in part.lower().split("_")]
    table = any(word.startswith(NOT_WEIGHTS[:2]) or word in NOT_WEIGHTS[2:] for word in words)
    norm = any("norm" in part.lower() for part in path[-1:])
    return not table and not norm and eligible_by_shape(weight)


def eligible_by_shape(weight: Tensor) -> bool:
    """The default choice where only shapes are known: matrices and convolutions, not tables.

    A leading 1 is a position table or token; a single input channel in a convolution is depthwise.
    """
    depthwise = weight.ndim > 2 and weight.shape[1] == 1
    return not vector_like(weight) and weight.shape[0] > 1 and not depthwise


@dataclass
class Selection:
    """The choice of layers: by module type, else by name, else by shape; then include, exclude."""

    include: list[Pattern] = field(default_factory=list)
    exclude: list[Pattern] = field(default_factory=list)
    by: str = "shape"
    eligible: set[str] = field(default_factory=set)
    known: list[tuple[Tensor, str]] = field(default_factory=list)
    names: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        groups: Sequence[dict[str, Any]],
        model: nn.Module | None,
        include: Pattern | Iterable[Pattern] | None,
        exclude: Pattern | Iterable[Pattern] | None,
    ) -> Selection:
        """What the arguments ask for.

        Raises TypeError on arguments of a wrong kind, ValueError for an include without a pattern.
        """
        choice = cls(as_patterns(include, "include"), as_patterns(exclude, "exclude"))
        if include is not None and not choice.include:
            raise ValueError(
                f"include={include!r} names no parameter; leave it out for the usual choice"
            )
        if model is not None:
            if not isinstance(model, nn.Module):
                raise TypeError(f"model={model!r} must be a torch.nn.Module")
            choice.know(wrapped(model))
            choice.check_model(groups)
        elif all("param_names" in group for group in groups):
            choice.by = "name"
        return choice

    def know(self, model: nn.Module) -> None:
        """Learn the names and the eligible weights of a module."""
        self.by = "module"
        self.eligible = eligible_names(model)
        self.known = [(weight, name) for name, weight in model.named_parameters()]

    def check_model(self, groups: Sequence[dict[str, Any]]) -> None:
        """Raise ValueError if the module and the optimizer share no parameter."""
        present = {id(weight) for group in groups for weight in group["params"]}
        if not any(id(weight) in present for weight, _ in self.known):
            raise ValueError(
                "model= has no parameter in common with the optimizer: pass the module whose "
                "parameters the optimizer was built from"
            )

    def forget(self, groups: Sequence[dict[str, Any]]) -> None:
        """Keep the names, and only the parameters that may still come with add_param_group.

        Holding the others would keep their memory when FSDP2 replaces them by shards.
        """
        for key, group, _ in parameters(groups):
            self.names.setdefault(key, self.name(group, key))
        present = {id(weight) for group in groups for weight in group["params"]}
        self.known = [(weight, name) for weight, name in self.known if id(weight) not in present]

    def name(self, group: dict[str, Any], key: tuple[int, int]) -> str:
        """Name of one parameter; ``"<group>.<index>"`` where none is known."""
        if key in self.names:
            return self.names[key]
        weight = group["params"][key[1]]
        for other, name in self.known:
            if other is weight:
                return name
        names = group.get("param_names")
        return names[key[1]] if names else f"{key[0]}.{key[1]}"

    def takes(self, name: str, weight: Tensor) -> bool:
        """Whether this parameter is made sparse; raises where the user asks for the impossible."""
        if any(matches(pattern, name, weight) for pattern in self.exclude):
            return False
        if self.include:
            wanted = any(matches(pattern, name, weight) for pattern in self.include)
            return wanted and self._possible(name, weight) and weight.requires_grad
        trained = weight.requires_grad and weight.ndim >= 2
        return trained and self._eligible(name, weight) and self._possible(name, weight)

    def _possible(self, name: str, weight: Tensor) -> bool:
        if weight.ndim < 2:
            return False  # a pattern like "fc" names the bias too
        if not weight.is_floating_point():
            raise TypeError(
                f"parameter {name!r} is {weight.dtype}: only real floating-point weights can be "
                "sparse; exclude it"
            )
        return True

    def _eligible(self, name: str, weight: Tensor) -> bool:
        if any(other is weight for other, _ in self.known):
            return name in self.eligible
        if self.by == "name":
            return eligible_by_name(name, weight)
        return eligible_by_shape(weight)

    def layers(self, groups: Sequence[dict[str, Any]], first: int = 0) -> list[Layer]:
        """The layers of the parameter groups from ``first`` on; dense groups are left out."""
        found = []
        for key, group, weight in parameters(groups, first):
            name = self.name(group, key)
            if group.get("sparsity") != 0:
                refuse_flattened(name, weight)
            if group.get("sparsity") != 0 and self.takes(name, weight):
                refuse_unsupported(name, weight)
                found.append(Layer(name, weight, key))
        return found

    def check_patterns(self, groups: Sequence[dict[str, Any]]) -> None:
        """Raise ValueError for an include or exclude pattern that matches no parameter."""
        named = [(self.name(group, key), weight) for key, group, weight in parameters(groups)]
        for argument, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not any(matches(pattern, name, weight) for name, weight in named):
                    shown = ", ".join(name for name, _ in named[:8])
                    raise ValueError(
                        f"{argument}={pattern!r} matches no parameter of the optimizer; "
                        f"parameters are {shown}{', ...' if len(named) > 8 else ''}"
                        + ("" if self.by != "shape" else "; pass model= to use names")
                    )


def parameters(
    groups: Sequence[dict[str, Any]], first: int = 0
) -> Iterator[tuple[tuple[int, int], dict[str, Any], Tensor]]:
    """Every parameter once, with its key and its group."""
    seen: set[int] = set()
    for number, group in enumerate(groups):
        for index, weight in enumerate(group["params"]):
            if number >= first and id(weight) not in seen:
                yield (number, index), group, weight
            seen.add(id(weight))


def counterparts(
    layers: Sequence[Layer], model: nn.Module, mine: Sequence[Tensor]
) -> list[tuple[Layer, Tensor]]:
    """The parameter of a copied model that belongs to each layer, by name, else by order.

    Args:
        layers: The layers of the original.
        model: The copy, such as an average of weights.
        mine: All parameters of the optimizer, in order.

    Raises:
        TypeError: If the copy is no module.
        ValueError: If the copy lacks a layer, or has another shape there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a torch.nn.Module")
    named = {name.removeprefix("module."): weight for name, weight in model.named_parameters()}
    theirs = list(named.values())
    if not all(layer.name in named for layer in layers) and len(theirs) == len(mine):
        order = {id(weight): position for position, weight in enumerate(mine)}
        named = {layer.name: theirs[order[id(layer.weight)]] for layer in layers}
    for layer in layers:
        if layer.name not in named or tuple(named[layer.name].shape) != layer.shape:
            raise ValueError(
                f"model= has no parameter {layer.name!r} of shape {layer.shape}: pass a copy of "
                "the model that is trained (and model= when building the SparseOptimizer)"
            )
    return [(layer, named[layer.name]) for layer in layers]
