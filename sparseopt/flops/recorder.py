"""Which module and which weight does a counted operator belong to? Read from the traced graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sparseopt.flops.operators import KINDS, PRODUCTS, Handle
from sparseopt.flops.tracing import Call


@dataclass(frozen=True)
class Entry:
    """One counted operator: where it ran, how much it did, and with which parameter."""

    operator: str
    module: str
    kind: str
    amount: int
    weight: str | None


@dataclass
class Recorder:
    """Wraps fvcore's handles: the same numbers, and what each of them belongs to."""

    state: list[str | None]
    entries: list[Entry] = field(default_factory=list)
    silent: Counter[str] = field(default_factory=Counter)

    def counting(self, operator: str, handle: Handle) -> Handle:
        def counted(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
            try:
                result = handle(inputs, outputs)
            except Exception:  # a shape its handle refuses: listed, as what has no handle
                return listed(inputs, outputs)
            amounts = result if isinstance(result, Mapping) else {plain(operator): result}
            self.record(operator, amounts, inputs, outputs)
            return Counter({name: round(amount) for name, amount in amounts.items()})

        listed = self.listing(operator)
        return counted

    def record(
        self, operator: str, amounts: Mapping[str, float], inputs: list[Any], outputs: list[Any]
    ) -> None:
        weight = self.weight_of(operator, inputs)
        kind = KINDS.get(operator, "other")
        if kind == "product":
            kind = "attention" if weight is None else "linear"
        module = _inside(outputs[0].node().scopeName().split("/")[-1])
        for name, amount in amounts.items():
            self.entries.append(Entry(name, module, kind, round(amount), weight or None))

    def listing(self, operator: str) -> Handle:
        def listed(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
            self.silent[plain(operator)] += 1
            return Counter()

        return listed

    def weight_of(self, operator: str, inputs: list[Any]) -> str | None:
        """The parameter that multiplies activations; "" for a fixed factor, None for neither."""
        fixed = False
        for position, always in PRODUCTS.get(operator, ()):
            operand = inputs[position]
            pieces = list(operand.node().inputs()) if operator == "aten::einsum" else [operand]
            for piece in pieces:
                names, of_data = self.sources(piece)
                if names and (always or not of_data):
                    return names[0]
                fixed |= not of_data
        return "" if fixed else None

    def sources(self, value: Any) -> tuple[list[str], bool]:
        """Parameters a value is made of, the largest first; and whether data go in as well."""
        found: dict[str, int] = {}
        of_data, pending, seen = False, [value], set()
        while pending:
            current = pending.pop()
            if current.unique() in seen:
                continue
            seen.add(current.unique())
            node = current.node()
            if node.kind() == "prim::Param":
                name = self.name_of(node, current)
                of_data |= name is None
                if name:
                    found[name] = math.prod(current.type().sizes())
            elif node.kind() in PRODUCTS:
                of_data = True
            else:
                pending += node.inputs()
        return sorted(found, key=lambda name: -found[name]), of_data

    def name_of(self, node: Any, value: Any) -> str | None:
        """Name of a graph input: data first, then the model's state in its order."""
        order = [output.unique() for output in node.outputs()]
        position = order.index(value.unique()) - (len(order) - len(self.state))
        return self.state[position] if position >= 0 else None


def state_names(call: Call) -> list[str | None]:
    """Names of the model's state as the trace lists it; "" for what is no parameter."""
    parameters = {id(parameter) for parameter in call.parameters()}
    unique: dict[int, str] = {}
    for name, tensor in call.state_dict(keep_vars=True).items():
        unique.setdefault(id(tensor), name)
    return [_inside(name) if key in parameters else "" for key, name in unique.items()]


def _inside(name: str) -> str:
    """The name without the component that `Call` puts in front."""
    return name.partition(".")[2]


def plain(operator: str) -> str:
    return operator.partition("::")[2] or operator
