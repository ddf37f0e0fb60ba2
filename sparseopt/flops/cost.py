"""The cost of one forward pass, and what is left of it when weights are zero."""

from __future__ import annotations

import difflib
import functools
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field

MACS = ("conv", "linear", "attention")  # counted in multiply-adds: two FLOPs each
Densities = float | Mapping[str, float] | None


@dataclass(frozen=True)
class Weight:
    """A parameter that multiplies activations: the part of a model that sparsity makes cheaper.

    Attributes:
        kind: "conv" or "linear".
        macs: multiply-adds of one sample with every entry active.
        shape: shape of the parameter.
    """

    kind: str
    macs: int
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModuleCost:
    """What one module does itself, its children left out; a row of the table.

    Attributes:
        name: dotted name of the module, "" for the model.
        type: class name of the module.
        macs: multiply-adds of one sample by kind: "conv", "linear", "attention".
        other: FLOPs of one sample by kind: "norm", "pool", "resize".
        parameters: number of entries of the module's own parameters.
    """

    name: str
    type: str
    macs: dict[str, int]
    other: dict[str, int]
    parameters: int

    @property
    def flops(self) -> int:
        """FLOPs of one sample: a multiply-add is two."""
        return 2 * sum(self.macs.values()) + sum(self.other.values())


@dataclass(frozen=True)
class ModelCost:
    """The cost of one sample through a dense model; prints as a table.

    Attributes:
        modules: one row per module that computes something or has parameters, by name.
        weights: the parameters that multiply activations, by the names of `named_parameters`.
        sizes: number of entries of every parameter, tied ones once.
        operators: what fvcore reports per operator: multiply-adds for products, FLOPs for the rest.
        unsupported: operators that have no count, with the number of calls. They cost something,
            and it is not in any figure here.
    """

    modules: dict[str, ModuleCost] = field(repr=False)
    weights: dict[str, Weight] = field(repr=False)
    sizes: dict[str, int] = field(repr=False)
    operators: dict[str, int]
    unsupported: dict[str, int]

    @property
    def macs(self) -> dict[str, int]:
        """Multiply-adds of one sample by kind: "conv", "linear", "attention"."""
        rows = self.modules.values()
        return {kind: sum(row.macs.get(kind, 0) for row in rows) for kind in MACS}

    @property
    def other(self) -> dict[str, int]:
        """FLOPs of one sample that are no multiply-adds, by kind: "norm", "pool", "resize"."""
        kinds = sorted({kind for row in self.modules.values() for kind in row.other})
        return {
            kind: sum(row.other.get(kind, 0) for row in self.modules.values()) for kind in kinds
        }

    @functools.cached_property
    def flops(self) -> int:
        """FLOPs of one sample: two per multiply-add, and those of norms and pooling."""
        return sum(row.flops for row in self.modules.values())

    @property
    def parameters(self) -> int:
        """Number of entries of all parameters, tied ones once."""
        return sum(self.sizes.values())

    def __str__(self) -> str:
        return table(self)


def inference_flops(cost: ModelCost, densities: Densities = None) -> float:
    """FLOPs of one sample through the model at these densities.

    Only products with a weight shrink, each by the density of its weight; attention, norms and
    pooling stay.

    Args:
        cost: from `count`.
        densities: fraction of active weights, in [0, 1], by parameter name as in
            ``model.named_parameters()`` or by module name; what is not named is dense. A number
            stands for every weight in ``cost.weights``.

    Returns:
        FLOPs.

    Raises:
        ValueError: for a name the model does not have, or a density outside [0, 1].

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> inference_flops(cost), inference_flops(cost, {"weight": 0.1})
        (2000.0, 200.0)
    """
    return inference(cost, by_parameter(cost, densities))


def inference(cost: ModelCost, shares: Mapping[str, float]) -> float:
    """`inference_flops` of densities that are checked and named by parameter."""
    saved = math.fsum(
        weight.macs * (1.0 - shares[name])
        for name, weight in cost.weights.items()
        if name in shares
    )
    return cost.flops - 2.0 * saved


def parameters(cost: ModelCost, densities: Densities = None) -> int:
    """Number of parameters that are not fixed at zero, at these densities.

    Args:
        cost: from `count`.
        densities: as in `inference_flops`; biases and norms may be named too, and are dense
            otherwise.

    Returns:
        ``sum(density * size)`` over all parameters, rounded.

    Raises:
        ValueError: for a name the model does not have, or a density outside [0, 1].

    Example:
        >>> import torch
        >>> from sparseopt import flops
        >>> cost = flops.count(torch.nn.Linear(100, 10), torch.zeros(1, 100))
        >>> parameters(cost), parameters(cost, {"weight": 0.1})
        (1010, 110)
    """
    shares = by_parameter(cost, densities)
    removed = math.fsum(cost.sizes[name] * (1.0 - share) for name, share in shares.items())
    return math.floor(cost.parameters - removed + 0.5)


def by_parameter(cost: ModelCost, densities: Densities) -> dict[str, float]:
    """Densities by parameter name, checked; a parameter's own name wins over its modules'."""
    if densities is None:
        return {}
    if not isinstance(densities, Mapping):
        return {name: _checked("densities", densities) for name in cost.weights}
    found: dict[str, tuple[int, float]] = {}
    for name, density in densities.items():
        density = _checked(f"densities[{name!r}]", density)
        for parameter, nearness in _parameters_of(cost, name):
            if parameter not in found or nearness > found[parameter][0]:
                found[parameter] = nearness, density
    return {parameter: density for parameter, (_, density) in found.items()}


def _parameters_of(cost: ModelCost, name: str) -> list[tuple[str, int]]:
    """The parameters a name stands for, each with how closely it was named."""
    if name not in cost.sizes:
        name = _known(cost, name)
    if name in cost.sizes:
        return [(name, len(name) + 1)]
    prefix = f"{name}." if name else ""
    return [(weight, len(prefix)) for weight in cost.weights if weight.startswith(prefix)]


def _known(cost: ModelCost, name: str) -> str:
    """The model's own name: wrappers (compile, data parallel) put components in front."""
    plain = ".".join(part for part in str(name).split(".") if part != "_orig_mod")
    for candidate in (name, plain, plain.removeprefix("module.")):
        inside = f"{candidate}." if candidate else ""
        if candidate in cost.sizes or any(weight.startswith(inside) for weight in cost.weights):
            return candidate
    known = [*cost.weights, *(name.rpartition(".")[0] for name in cost.weights), *cost.sizes]
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.4)
    raise ValueError(
        f"densities names {name!r}, which is neither a parameter nor a module with weights; "
        f"nearest: {', '.join(map(repr, near or known[:3]))}. Use the names of "
        "model.named_parameters()"
    )


def _checked(argument: str, density: object) -> float:
    number = isinstance(density, numbers.Real) and not isinstance(density, bool)
    if number and 0.0 <= float(density) <= 1.0:  # type: ignore[arg-type]
        return float(density)  # type: ignore[arg-type]
    raise ValueError(
        f"{argument}={density!r} must be a number in [0, 1]: the fraction of active weights"
    )


# --- the printed table ----------------------------------------------------------------------------


def table(cost: ModelCost) -> str:
    """The rows of a `ModelCost` as text, the total below, what is not counted last."""
    kinds = [kind for kind in MACS if cost.macs[kind]]
    others = list(cost.other)
    heads = [f"{kind} MACs" for kind in kinds] + [f"{kind} FLOPs" for kind in others]
    lines = [["module", "type", "parameters", *heads]]
    for row in cost.modules.values():
        amounts = [row.macs.get(kind, 0) for kind in kinds] + [row.other.get(k, 0) for k in others]
        lines.append([row.name or "(model)", row.type, *map(_figure, (row.parameters, *amounts))])
    totals = [cost.parameters, *(cost.macs[kind] for kind in kinds), *cost.other.values()]
    lines.append(["total", "", *map(_figure, totals)])
    return "\n".join([*_aligned(lines), _summary(cost)])


def _figure(amount: int) -> str:
    return f"{amount:,}" if amount else "-"


def _aligned(lines: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = "  ".join("-" * width for width in widths)
    text = []
    for line in lines:
        words = [word.ljust(width) for word, width in zip(line[:2], widths, strict=False)]
        figures = [word.rjust(width) for word, width in zip(line[2:], widths[2:], strict=True)]
        text.append("  ".join(words + figures).rstrip())
    return [text[0], rule, *text[1:-1], rule, text[-1]]


def _summary(cost: ModelCost) -> str:
    text = f"{cost.flops:,} FLOPs per sample: 2 per multiply-add, and those of norms and pooling."
    if not cost.unsupported:
        return text
    calls = ", ".join(f"{name} ({times})" for name, times in sorted(cost.unsupported.items()))
    return f"{text}\nNot counted (calls): {calls}."
