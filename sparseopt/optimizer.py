"""SparseOptimizer: your optimizer, with the zeros kept."""

from __future__ import annotations

import logging
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .algorithms import Algorithm, Recipe, resolve
from .bias_correction import check_supported
from .compute.choice import Choose
from .compute.engine import Engine, check_compute, dense_compute, storage_for
from .distributions import check_sparsity
from .evolution import check_capture
from .gradients import Hooks, refuse_gradients
from .history import Record, Run
from .layers import Layer, Pattern, Selection, counterparts, wrapped
from .persistence import Persistence
from .pools import Pool, check_length, check_names
from .progress import check_whole
from .refusals import refuse_unsupported
from .shards import shard_like
from .storage import Compact, choose_storage
from .watched import release_all, untouched, with_fast_paths
from .wrapper import check_inner, with_hooks, zero_grad_of

__all__ = ["SparseOptimizer"]

logger = logging.getLogger("sparseopt")


class SparseOptimizer(Persistence):
    """Turns any optimizer into one that trains with most weights at exactly zero.

    One step is: mask the gradients, step the inner optimizer, mask the weights, count; and, when
    the schedule says so, update the topology. Learning-rate schedulers, gradient scaling,
    clipping, accumulation, closures, checkpoints and copies work as with the inner optimizer.

    Args:
        optimizer: Any ``torch.optim.Optimizer``, already built.
        algo: Name of a recipe (see :func:`sparseopt.available`), a recipe, or an
            :class:`sparseopt.Algorithm`, which brings its own sparsity (unless one is given
            here that differs from the default).
        sparsity: Fraction of the weights that are zero, in [0, 1). A parameter group with a
            ``"sparsity"`` of its own overrides it; 0.0 keeps the group dense.
        total_steps: Optimizer steps of the whole training; schedules need it. None: values stay as
            they are at the start.
        update_every: Optimizer steps between topology updates.
        distribution: How the weights are shared out over the layers: "uniform", "er", "erk", or a
            callable ``(shapes, sparsity) -> counts``. None: the recipe's own.
        topology: Which weights are active at the start: a name, a dict of layer name to boolean
            mask, or a callable ``(layer, nnz, generator) -> mask``. None: the recipe's own.
        model: The module that is trained, for choosing layers by type and for their names.
        include: Make exactly these parameters sparse: patterns on dotted names, or callables
            ``(name, weight) -> bool``. None: weights of linear layers, convolutions and attention.
        exclude: Leave these dense, in the same manner.
        storage: "masked" (dense tensors with zeros; any optimizer), "compact" (the inner optimizer
            gets the active values only; element-wise ones), or "auto", the faster of the two.
        compute: "dense", "sparse" (Linear layers of low density multiply by their active values
            only, on the CPU; needs compact storage and ``model=``), "auto" (where a short
            measurement finds that faster), or a callable ``(layer, rows) -> bool``.
        seed: Seed of the private random streams; the global stream is never used.
        on_update: Called with the :class:`Record` of every topology update.
        **recipe_options: Options of the recipe, such as ``drop_fraction=0.1``.

    Raises:
        ValueError: For a value out of range or an unknown name; nothing has been changed then.
        TypeError: For an argument of a wrong kind, or an option that the recipe does not take.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> optimizer = SparseOptimizer(optimizer, algo="set", sparsity=0.9, model=model)
        >>> model(torch.ones(4, 20)).sum().backward()
        >>> optimizer.step()
        >>> optimizer
        SparseOptimizer(algo='set', sparsity=0.900, storage='masked', inner=SGD)
        >>> [layer.nnz for layer in optimizer.layers]
        [44, 31]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        algo: str | Algorithm | Recipe = "set",
        *,
        sparsity: float = 0.5,
        total_steps: int | None = None,
        update_every: int = 100,
        distribution: Any = None,
        topology: Any = None,
        model: nn.Module | None = None,
        include: Pattern | Iterable[Pattern] | None = None,
        exclude: Pattern | Iterable[Pattern] | None = None,
        storage: str = "auto",
        compute: str | Choose = "dense",
        seed: int = 0,
        on_update: Callable[[Record], Any] | None = None,
        **recipe_options: Any,
    ) -> None:
        check_inner(optimizer)
        check_compute(compute, model, storage)
        super().__init__(optimizer)
        check_whole("seed", seed, None)
        self._run = Run(seed=int(seed))
        self.total_steps = total_steps
        self.update_every = update_every
        self.on_update = on_update
        self._algo = algo
        given = {"distribution": distribution, "topology": topology}
        self._options = recipe_options | {k: v for k, v in given.items() if v is not None}
        self._algorithm = self._algorithm_for(check_sparsity(sparsity))
        self._hooks = Hooks()
        self._selection = Selection.of(optimizer.param_groups, model, include, exclude)
        # weak: the optimizer does not keep the model alive, and is not copied with it
        self._model = None if model is None else weakref.ref(model)
        self._pools: list[Pool] = []
        self._layers: list[Layer] = []
        # weights as they were before masking, until the first step: a checkpoint may want others
        self._given: dict[tuple[int, int], Tensor] = {}
        found = self._found(first=0)
        self._selection.check_patterns(optimizer.param_groups)
        if not found:
            left = "" if exclude is None else f" and that exclude={exclude!r} leaves"
            raise ValueError(
                "no parameter of the optimizer can be made sparse: it takes weights of linear "
                "layers, convolutions and attention that require gradients and are not "
                f"tied{left}; name others (embeddings, recurrent layers) with include=, and pass "
                "model= for the names"
            )
        check_names(self._algorithm.topology, found)
        density = 1.0 - self._algorithm.sparsity
        storage = storage_for(compute, storage, optimizer, found, density)
        self._storage = choose_storage(optimizer, storage, found, density)
        self._engine: Engine | None = None
        if model is not None and isinstance(self._storage, Compact) and compute != "dense":
            self._engine = Engine(compute, model, self._storage, self._hooks)
        self._start(found)

    # --- construction -----------------------------------------------------------------------------

    def _algorithm_for(self, sparsity: float) -> Algorithm:
        """The recipe at one target sparsity; an Algorithm keeps its own unless told otherwise."""
        default = isinstance(self._algo, Algorithm) and sparsity == 0.5
        made = resolve(self._algo, None if default else sparsity, self._options, self.total_steps)
        if made.grown_state == "per_element_step":
            check_supported(self._inner)
        check_length(made, self.total_steps, self.update_every)
        return made

    def _found(self, first: int) -> list[Layer]:
        model = None if self._model is None else self._model()
        if first and model is not None:
            self._selection.know(wrapped(model))  # it may have grown since
        found = self._selection.layers(self._inner.param_groups, first)
        release_all([layer.weight for layer in found])  # from what another optimizer made of them
        ordinary = set() if model is None else with_fast_paths(wrapped(model))
        for layer in found:
            layer.ordinary = id(layer.weight) in ordinary
        return found

    def _start(self, found: Sequence[Layer]) -> None:
        """Give new layers their masks; everything is checked before anything is changed."""
        pools = self._pools_of(found)
        context = self._context()
        masks = [pool.first_masks(context, self.total_steps, self.update_every) for pool in pools]
        for pool, ours in zip(pools, masks, strict=True):
            for layer, mask in zip(pool.layers, ours, strict=True):
                self._adopt(layer, mask, pool.algorithm)
        self._pools.extend(pools)
        self._layers.extend(found)
        self._run.note_densities(self._layers)
        self._selection.forget(self._inner.param_groups)
        if self._engine is not None:
            self._engine.take(found)
        self._open_window()
        self._tell(found)

    def _pools_of(self, layers: Sequence[Layer]) -> list[Pool]:
        main = self._algorithm
        members: dict[float, list[Layer]] = defaultdict(list)
        for layer in layers:
            own = self._inner.param_groups[layer.key[0]].get("sparsity")
            members[main.sparsity if own is None else check_sparsity(own)].append(layer)
        return [
            Pool(main if sparsity == main.sparsity else self._algorithm_for(sparsity), ours)
            for sparsity, ours in members.items()
        ]

    @torch.no_grad()
    def _adopt(self, layer: Layer, mask: Tensor, algorithm: Algorithm) -> None:
        self._given[layer.key] = layer.weight.detach().clone()
        layer.set_mask(mask)
        layer.extras = algorithm.extras(layer) | {"ever_active": layer.mask.clone()}
        self._storage.clean(layer)
        self._hooks.attach(layer)

    def _tell(self, layers: Sequence[Layer]) -> None:
        logger.info(
            "sparseopt: %d layers, %d of %d weights active, chosen by %s%s",
            len(layers),
            sum(layer.nnz for layer in layers),
            sum(layer.numel for layer in layers),
            self._selection.by,
            "; pass model= to choose by module type and to use names"
            if self._selection.by == "shape"
            else "",
        )

    # --- a step -----------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, and what was collected of them."""
        self._bind()  # parameters replaced since then have their gradients masked from here on
        self._hooks.forget()
        zero_grad_of(self._inner, set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with masks of their own at the density that the schedule has now.

        Args:
            param_group: As for torch; ``"sparsity"`` in it is the group's own target.
        """
        if isinstance(param_group, dict) and param_group.get("sparsity") is not None:
            check_sparsity(param_group["sparsity"])
        self._inner.add_param_group(param_group)
        try:
            found = self._found(first=len(self._inner.param_groups) - 1)
            choose_storage(self._inner, self._storage.name, found)  # refuses what it cannot hold
            self._start(found)
        except Exception:
            self._inner.param_groups.pop()
            raise

    @with_hooks
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with the inner optimizer; update the topology if it is time.

        Args:
            closure: As for torch: evaluates the model again and returns the loss.

        Returns:
            What the inner optimizer returns: the loss of the closure, or None.
        """
        self._bind()
        if closure is None and self._is_probe():
            return self._probe()
        self._undo_probe()
        due = self._due()
        check_capture(due)
        if closure is None:
            due = self._with_gradients(due)
            self._prepare(due)
        else:
            self._open_window()
            closure = self._masking(closure, due)
        loss = self._inner_step(closure, due)
        self._finish(due)
        return loss

    def _inner_step(self, closure: Callable[[], Any] | None, due: Sequence[Pool]) -> Any:
        if skips_step(due):
            loss = None if closure is None else closure()
            for layer in self._layers:
                self._storage.mask_weights(layer)
            return loss
        try:
            return self._storage.step(closure)
        finally:
            self._storage.end(self._layers)

    def _masking(self, closure: Callable[[], Any], due: Sequence[Pool]) -> Callable[[], Any]:
        """The closure, with gradients masked after every evaluation (LBFGS makes many)."""

        def masked() -> Any:
            self._storage.leave()
            with torch.enable_grad():
                loss = closure()
            with torch.no_grad():
                self._prepare(due)
            return loss

        return masked

    @torch.compiler.disable
    def _prepare(self, due: Sequence[Pool]) -> None:
        """Mask the gradients; keep the dense ones for layers whose update asks for them."""
        refuse_gradients(self._layers)
        for pool in self._pools:
            self._keep_gradients(pool, pool in due)
        if self._storage.reads_inactive_gradients:
            for layer in self._layers:
                self._hooks.mask(layer)
        if not skips_step(due):
            self._storage.begin(self._layers)

    @torch.compiler.disable
    def _finish(self, due: Sequence[Pool]) -> None:
        self._run.steps += 1
        self._given.clear()
        self._hooks.forget()
        if due:
            self._update(due)
        else:
            self._open_window()

    @torch.compiler.disable
    def _bind(self) -> None:
        """Follow parameters that were replaced (FSDP2) or moved (``model.to``)."""
        groups = self._inner.param_groups
        for layer in self._layers:
            group, place = layer.key
            weight = groups[group]["params"][place]
            if weight is not layer.weight:
                self._rebind(layer, weight)
            with untouched():  # asks for no values
                device = weight.device
            if layer.mask.device != device:
                layer.mask = layer.mask.to(device)
                layer.extras = {name: value.to(device) for name, value in layer.extras.items()}

    def _rebind(self, layer: Layer, weight: Tensor) -> None:
        refuse_unsupported(layer.name, weight)
        if tuple(weight.shape) != layer.shape:
            raise RuntimeError(
                f"the parameter {layer.name!r} of shape {layer.shape} was replaced by one of shape "
                f"{tuple(weight.shape)}: its mask does not fit; wrap the optimizer after the "
                "model has been sharded or changed"
            )
        layer.weight = weight
        layer.mask = shard_like(layer.mask, weight)
        layer.extras = {
            name: shard_like(value, weight) if value.ndim else value
            for name, value in layer.extras.items()
        }
        self._hooks.attach(layer)

    @torch.no_grad()
    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Zero the inactive weights: of this model, or of a copy such as an EMA.

        Averages of weights hold the union of all topologies; late ``model.load_state_dict`` may
        bring weights back. The next step masks them too; this does it at once.

        Args:
            model: A module with the same parameters. None: the one that is trained.

        Raises:
            TypeError: If ``model`` is no module.
            ValueError: If it lacks one of the layers, or has another shape there.
        """
        self._bind()
        if model is None:
            for layer in self._layers:
                self._storage.mask_weights(layer)
                self._storage.reread(layer)
            return
        mine = [weight for group in self.param_groups for weight in group["params"]]
        for layer, weight in counterparts(self.layers, wrapped(model), mine):
            weight.masked_fill_(~shard_like(layer.mask, weight).to(weight.device), 0.0)

    @property
    def products(self) -> dict[str, str]:
        """How each layer was multiplied in its last forward pass: "sparse", or "dense: why"."""
        found = {} if self._engine is None else self._engine.products()
        other = "not a plain nn.Linear" if self._engine is not None else "compute='dense'"
        return {layer.name: found.get(layer.name, f"dense: {other}") for layer in self._layers}

    def dense_compute(self) -> dense_compute:
        """Multiply by dense weights from now on; in a ``with`` block, until its end.

        Modules that computed sparsely are as they were before. Without sparse compute: nothing.

        Example:
            >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
            >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
            >>> optimizer = SparseOptimizer(sgd, sparsity=0.9, model=model, compute="sparse")
            >>> with optimizer.dense_compute():
            ...     outputs = model(torch.ones(4, 20))
        """
        return dense_compute(self._engine)


def skips_step(due: Sequence[Pool]) -> bool:
    """Whether the update replaces the optimizer step, as in the original RigL code."""
    return any(pool.algorithm.skip_step_on_update for pool in due)
