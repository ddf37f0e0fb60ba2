"""Which modules compute sparsely, for one optimizer; switched on and off as a whole."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..gradients import Hooks
from ..layers import Layer, wrapped
from ..storage.compact import Compact
from ..storage.packed import can_pack
from ..storage.state import is_elementwise
from ..watched import untouched
from .choice import HIGHEST_DENSITY, Choose, chooser, pays, rows_of
from .linear import Forward, Watcher
from .sequences import Path, following
from .structure import Structure

__all__ = ["Engine", "check_compute", "dense_compute", "storage_for"]


def check_compute(compute: str | Choose, model: nn.Module | None, storage: str) -> None:
    """Raise on what cannot be computed sparsely.

    Raises:
        ValueError: Without ``model=``, with masked storage, or where torch has no MKL.
    """
    chooser(compute)
    if compute == "dense":
        return
    if model is None:
        raise ValueError(f"compute={compute!r} needs model=: it finds Linear layers by module")
    if storage == "masked":
        raise ValueError(
            f"compute={compute!r} works on active values: use storage='compact' (or 'auto'), "
            "not 'masked'"
        )
    if not torch.backends.mkl.is_available():
        raise ValueError(
            f"compute={compute!r} needs sparse products on the CPU, and this torch was built "
            "without MKL: use compute='dense'"
        )


def storage_for(
    compute: str | Choose, storage: str, inner: Optimizer, layers: Sequence[Layer], density: float
) -> str:
    """The storage to ask for: compact, except where "auto" finds nothing to gain or cannot."""
    if compute == "dense":
        return storage
    if compute == "auto" and storage == "auto":
        packable = is_elementwise(inner) and all(map(can_pack, layers))
        return "compact" if packable and density <= HIGHEST_DENSITY else "auto"
    if not is_elementwise(inner):
        name = type(inner).__name__
        raise ValueError(
            f"compute={compute!r} needs an optimizer whose rule is element-wise, and {name} is not "
            f"known to be: use compute='dense', or, if it is, "
            f"sparseopt.storage.ELEMENTWISE.add({name!r})"
        )
    return "compact"


class Engine(Watcher):
    """Gives Linear modules a forward on active values, and takes it back.

    Args:
        compute: "sparse", "auto" or a callable ``(layer, rows) -> bool``.
        model: Where the Linear modules are.
        storage: Holds the active values.
        hooks: Know when a dense gradient is wanted.
    """

    def __init__(
        self, compute: str | Choose, model: nn.Module, storage: Compact, hooks: Hooks
    ) -> None:
        self.compute = compute
        self.choose = chooser(compute)
        after = following(model)  # by id, which a copy of the modules would not have
        self.linears = [
            (module, after.get(id(module), ()))
            for module in wrapped(model).modules()
            if isinstance(module, nn.Linear) and is_plain(module)
        ]
        self.storage = storage
        self.pairs: list[tuple[nn.Linear, Path, Layer]] = []
        self.structures: dict[tuple[int, int], Structure] = {}
        self.traced: set[tuple[int, int]] = set()
        self.on = True
        self.use(hooks)

    def use(self, hooks: Hooks) -> None:
        """Ask these hooks whether the dense gradient is wanted; a copy has hooks of its own."""
        self.hooks = weakref.ref(hooks)
        if self.on:
            self.resume()

    def take(self, layers: Sequence[Layer]) -> None:
        """Let the modules of these layers compute sparsely from now on."""
        for layer in layers:
            self.pairs += [
                (m, after, layer) for m, after in self.linears if m.weight is layer.weight
            ]
        if self.on:
            self.resume()

    def resume(self) -> None:
        """All modules compute sparsely (again)."""
        self.on = True
        for module, after, layer in self.pairs:
            module.forward = Forward(module, self, layer, after)  # type: ignore[method-assign]

    def stop(self) -> None:
        """All modules are as they were before."""
        self.on = False
        self.storage.deferring.clear()
        for module, _, layer in self.pairs:
            self.storage.write_back(layer)
            own = module.__dict__.get("forward")
            if isinstance(own, Forward) and own.engine() is self:
                del module.__dict__["forward"]

    def settle(self, layer: Layer) -> None:
        """Dense products follow: the weight is written now, and after every step."""
        if torch.jit.is_tracing():
            self.traced.add(layer.key)  # traces read its memory, and do not come by here
        self.storage.deferring.discard(layer.key)
        self.storage.write_back(layer)

    def products(self) -> dict[str, str]:
        """How the modules' layers were multiplied last, by name: sparsely, or why not."""
        found = {}
        for module, _, layer in self.pairs:
            forward = module.__dict__.get("forward")
            why = forward.obstacle if isinstance(forward, Forward) else "switched off"
            found[layer.name] = "sparse" if why is None else f"dense: {why}"
        return found

    def wants_dense(self) -> bool:
        """Whether the next update asks for the gradient of every weight."""
        hooks = self.hooks()
        return hooks is not None and hooks.collecting

    def refusal(
        self, layer: Layer, structure: Structure, module: nn.Linear, values: Tensor
    ) -> str | None:
        """Why these inputs are to be multiplied by the dense weight, if they are."""
        if self.choose is None:
            return None if pays(layer, structure, module, values) else SLOWER
        return None if self.choose(layer, rows_of(values)) else CHOSEN

    def structure(
        self, layer: Layer, module: nn.Linear, values: Tensor, lower: torch.dtype | None = None
    ) -> Structure | str:
        """What to multiply by; a word on it where the dense weight is the better or only choice.

        ``lower`` is the precision that autocast would give the dense product.
        """
        if self.choose is not None and not self.choose(layer, rows_of(values)):
            return CHOSEN
        known, measured = self.structures.get(layer.key), self.choose is None
        last = known if known is not None and self._fits(known, layer) else None
        if last is not None and measured and not pays(layer, last, module, values, lower):
            return SLOWER  # whatever the weight holds by now
        packed = self.storage.current(layer)
        if packed is None:
            return "all weights are active" if layer.dense else "inactive weights are not zero"
        if known is not None and known.follow(packed):
            structure = known
        else:
            structure = self.structures[layer.key] = Structure(packed, layer.weight)
        if last is None and measured and not pays(layer, structure, module, values, lower):
            return SLOWER
        if layer.key not in self.traced:
            self.storage.deferring.add(layer.key)
        return structure

    def _fits(self, structure: Structure, layer: Layer) -> bool:
        """Whether it is of the present topology, type and memory order."""
        packed = structure.packed
        with untouched():
            same = packed.values.dtype == layer.weight.dtype and packed.lies_as(layer.weight)
        return same and packed is self.storage.packed.get(layer.key)

    def __getstate__(self) -> dict[str, Any]:
        # structures are built again from the storage; the copied optimizer has hooks of its own
        return self.__dict__ | {"structures": {}, "hooks": None}


CHOSEN = "dense products were chosen"
SLOWER = "dense products were measured to be faster"


def is_plain(module: nn.Linear) -> bool:
    """Whether it is a Linear layer whose forward is torch's own, or ours from another optimizer."""
    if "weight" not in module._parameters:  # parametrized: computed from others
        return False
    own = module.__dict__.get("forward")
    ours = own is None or isinstance(own, Forward) or is_original(own, module)
    return ours and type(module).forward is nn.Linear.forward


def is_original(forward: Any, module: nn.Module) -> bool:
    """Whether it is what a copy of a sparsely computing module gets."""
    return getattr(forward, "__func__", None) is type(module).forward


class dense_compute:  # noqa: N801 - reads as the method that returns it
    """Switches sparse compute off at once, and on again at the end of a ``with`` block."""

    def __init__(self, engine: Engine | None) -> None:
        self.engine = engine if engine is not None and engine.on else None
        if self.engine is not None:
            self.engine.stop()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: Any) -> None:
        if self.engine is not None:
            self.engine.resume()
