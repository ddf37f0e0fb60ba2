"""SparseOptimizer: your optimizer, with the zeros kept."""

from __future__ import annotations

import logging
import numbers
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from . import checkpoint
from .algorithms import Algorithm, Recipe, resolve
from .bias_correction import check_supported
from .compute.choice import Choose
from .compute.engine import Engine, check_compute, dense_compute
from .distributions import check_sparsity
from .flops import LiveCost, count, live_cost
from .gradients import Hooks, dense_gradient, refuse_gradients
from .history import Record, Run, record_of
from .layers import Layer, Pattern, Selection, counterparts, parameters, wrapped
from .pools import Pool, check_names
from .scores import Context
from .storage import Compact, choose_storage
from .update import Change
from .wrapper import Wrapper, check_inner

__all__ = ["SparseOptimizer"]

logger = logging.getLogger("sparseopt")


class SparseOptimizer(Wrapper):
    """Turns any optimizer into one that trains with most weights at exactly zero.

    One step is: mask the gradients, step the inner optimizer, mask the weights, count; and, when
    the schedule says so, update the topology. Learning-rate schedulers, gradient scaling,
    clipping, accumulation, closures, checkpoints and copies work as with the inner optimizer.

    Args:
        optimizer: Any ``torch.optim.Optimizer``, already built.
        algo: Name of a recipe (see :func:`sparseopt.available`), a recipe, or an
            :class:`sparseopt.Algorithm`, which brings its own sparsity.
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
        if check_compute(compute, model, storage):
            storage = "compact"
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
            raise ValueError(
                "no parameter of the optimizer can be made sparse: it takes weights of two or more "
                "dimensions that require gradients; name them with include=, or pass model="
            )
        check_names(self._algorithm.topology, found)
        self._storage = choose_storage(optimizer, storage, found, 1.0 - self._algorithm.sparsity)
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
        self._check_length(made)
        return made

    def _check_length(self, algorithm: Algorithm) -> None:
        if self.total_steps is None:
            if algorithm.needs_total_steps:
                raise ValueError(
                    f"algo={algorithm.name!r} changes its density over training: pass "
                    "total_steps=, the number of optimizer steps (epochs * len(loader))"
                )
            return
        algorithm.check_length(self.total_steps, self.update_every)
        last = algorithm.last_step(self.total_steps, self.update_every)
        if algorithm.exchanges and last < 1:
            warnings.warn(
                f"update_every={self.update_every} leaves no topology update within "
                f"total_steps={self.total_steps}: the topology stays as it starts; lower "
                "update_every",
                stacklevel=4,
            )

    def _found(self, first: int) -> list[Layer]:
        if first and self._model is not None and (model := self._model()) is not None:
            self._selection.know(wrapped(model))  # it may have grown since
        return self._selection.layers(self._inner.param_groups, first)

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

    # --- what is known of it ----------------------------------------------------------------------

    @property
    def algorithm(self) -> Algorithm:
        """What the method chooses; groups with a sparsity of their own have one made for it."""
        return self._algorithm

    @property
    def layers(self) -> list[Layer]:
        """The sparse layers, in the order of the parameter groups."""
        return list(self._layers)

    @property
    def masks(self) -> dict[str, Tensor]:
        """Layer name to boolean mask, true where active; live, so copy what you change."""
        return {layer.name: layer.mask for layer in self.layers}

    @property
    def density(self) -> float:
        """Fraction of the weights of all sparse layers that are active now, in [0, 1]."""
        layers = self.layers
        return sum(layer.nnz for layer in layers) / sum(layer.numel for layer in layers)

    @property
    def sparsity(self) -> float:
        """``1 - density``: the fraction that is zero now."""
        return 1.0 - self.density

    @property
    def total_steps(self) -> int | None:
        """Optimizer steps of the whole training; schedules measure progress by it."""
        return self._run.total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int | None) -> None:
        check_whole("total_steps", total_steps, 1, optional=True)
        self._run.total_steps = total_steps

    @property
    def update_every(self) -> int:
        """Optimizer steps between topology updates."""
        return self._run.update_every

    @update_every.setter
    def update_every(self, update_every: int) -> None:
        check_whole("update_every", update_every, 1)
        self._run.update_every = update_every

    @property
    def on_update(self) -> Callable[[Record], Any] | None:
        """Called with the :class:`Record` of every topology update."""
        return self._run.on_update

    @on_update.setter
    def on_update(self, on_update: Callable[[Record], Any] | None) -> None:
        if on_update is not None and not callable(on_update):
            raise TypeError(f"on_update={on_update!r} must be callable: it gets a Record")
        self._run.on_update = on_update

    @property
    def steps(self) -> int:
        """Optimizer steps taken; a step that GradScaler left out is not one."""
        return self._run.steps

    @property
    def updates(self) -> int:
        """Topology updates made; skipped ones are not counted."""
        return self._run.updates

    @property
    def dense_parameters(self) -> dict[str, Tensor]:
        """All parameters as they were before the last compression, by name (``keep_dense``)."""
        groups, run = self._inner.param_groups, self._run
        return {
            self._selection.name(groups[key[0]], key): value for key, value in run.dense.items()
        }

    @property
    def history(self) -> list[Record]:
        """One :class:`Record` per topology update."""
        return self._run.history

    def flops(
        self, inputs: Any, *, model: nn.Module | None = None, batch_size: float | None = None
    ) -> LiveCost:
        """What this run costs against dense: now, so far, and projected to ``total_steps``.

        Args:
            inputs: A batch for ``model(inputs)``, or a tuple of its arguments.
            model: The module that is trained; None: the one given as ``model=``.
            batch_size: Samples per optimizer step; None: the size of this batch.

        Returns:
            A :class:`sparseopt.flops.LiveCost`, which prints.

        Raises:
            ValueError: If the model is not known, or lacks a layer by name.
            ImportError: Without fvcore (``pip install sparseopt[flops]``).
        """
        model = model if model is not None else (self._model() if self._model else None)
        if model is None:
            raise ValueError("model= is needed: this optimizer was built without it, or copied")
        cost = count(wrapped(model), inputs)
        first = inputs[0] if isinstance(inputs, (tuple, list)) else inputs
        size = float(len(first)) if batch_size is None else batch_size
        run = self._run
        return live_cost(
            cost, run.densities, self._pools, run.steps, size, run.total_steps, run.update_every
        )

    def summary(self) -> str:
        """A table of the layers: name, shape, active weights, density."""
        rows = [(layer.name, str(layer.shape), f"{layer.nnz:,}", f"{layer.density:.4f}")
                for layer in self.layers]  # fmt: skip
        nnz = sum(layer.nnz for layer in self._layers)
        skipped = sum(record.skipped for record in self.history)
        head = ("layer", "shape", "active", "density")
        rows = [head, *rows, ("total", "", f"{nnz:,}", f"{self.density:.4f}")]
        wide = [max(len(row[column]) for row in rows) for column in range(4)]
        lines = [
            f"{name:<{wide[0]}}  {shape:<{wide[1]}}  {active:>{wide[2]}}  {density:>{wide[3]}}"
            for name, shape, active, density in rows
        ]
        state = f"step {self.steps}, {self.updates} topology updates"
        state += f" ({skipped} skipped: values were not finite)" if skipped else ""
        return "\n".join([repr(self), *lines, state])

    def __repr__(self) -> str:
        return (
            f"SparseOptimizer(algo={self._algorithm.name!r}, sparsity={self.sparsity:.3f}, "
            f"storage={self._storage.name!r}, inner={type(self._inner).__name__})"
        )

    # --- a step -----------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # hooks on parameters are not copied with them: the copy sets its own
        kept = super().__getstate__()
        return {name: value for name, value in kept.items() if name not in ("_hooks", "_model")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._hooks = Hooks()
        self._model = None
        for layer in self._layers:
            self._hooks.attach(layer)
            self._hooks.assume_masked(layer)
        if self._engine is not None:
            self._engine.use(self._hooks)
        self._open_window()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters, and what was collected of them."""
        self._hooks.forget()
        self._inner.zero_grad(set_to_none)

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
        if closure is None:
            due = self._with_gradients(due)
            self._prepare(due)
        else:
            self._open_window()
            closure = self._masking(closure, due)
        loss = self._inner_step(closure, due)
        self._finish(due)
        return loss

    def _with_gradients(self, due: list[Pool]) -> list[Pool]:
        """Put the update off by a step if dense gradients were asked for after backward."""
        for pool in due:
            needed = pool.algorithm.needs_gradient
            if needed and any(self._hooks.lost(layer) for layer in pool.layers):
                self._run.requested = True
                return []
        return due

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

    def _keep_gradients(self, pool: Pool, due: bool) -> None:
        observe = pool.algorithm.observe
        if observe is None and not (due and pool.algorithm.needs_gradient):
            return
        for layer in pool.layers:
            layer.gradient = dense_gradient(layer, self._hooks)
            if observe is not None and layer.gradient is not None:
                observe(layer)

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
    def _due(self) -> list[Pool]:
        """The pools whose topology is updated after the step about to be taken."""
        step, every = self._run.steps + 1, self.update_every
        return [
            pool
            for pool in self._pools
            if self._run.requested or pool.due(step, self.total_steps, every)
        ]

    def _open_window(self) -> None:
        """Collect dense gradients if the next step ends in an update that asks for them."""
        due = self._due()
        self._hooks.collecting = any(
            pool.algorithm.observe is not None or (pool.algorithm.needs_gradient and pool in due)
            for pool in self._pools
        )

    @torch.compiler.disable
    def _bind(self) -> None:
        """Follow parameters that were replaced (FSDP2) or moved (``model.to``)."""
        groups = self._inner.param_groups
        for pool in self._pools:
            for layer in pool.layers:
                group, index = layer.key
                weight = groups[group]["params"][index]
                if weight is not layer.weight:
                    self._rebind(layer, weight)
                if layer.mask.device != weight.device:
                    layer.mask = layer.mask.to(weight.device)
                    layer.extras = {
                        name: value.to(weight.device) for name, value in layer.extras.items()
                    }

    def _rebind(self, layer: Layer, weight: Tensor) -> None:
        if tuple(weight.shape) != layer.shape:
            raise RuntimeError(
                f"the parameter {layer.name!r} of shape {layer.shape} was replaced by one of shape "
                f"{tuple(weight.shape)}: its mask does not fit; wrap the optimizer after the "
                "model has been sharded or changed"
            )
        layer.weight = weight
        self._hooks.attach(layer)

    def _is_probe(self) -> bool:
        """Whether this is the empty step with which torch.distributed.checkpoint makes state.

        If there is no state it sets every learning rate and gradient to zero and steps once.
        """
        if len(self._inner.state):
            return False
        groups = self._inner.param_groups
        if any(float(group.get("lr", 1.0)) != 0.0 for group in groups):
            return False
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        return bool(grads) and not any(bool(grad.any()) for grad in grads)

    def _probe(self) -> None:
        """Make the state that a distributed checkpoint looks for; not a step, so not counted.

        Weights stay as they are: they may have been loaded already, and their masks not yet.
        """
        weights = [weight for _, _, weight in parameters(self._inner.param_groups)]
        values = [weight.detach().clone() for weight in weights]
        self._prepare([])
        self._inner_step(None, [])
        for weight, value in zip(weights, values, strict=True):
            weight.copy_(value)
        checkpoint.announce(self._inner, self._saved())
        self._run.probed = True

    def _undo_probe(self) -> None:
        """Forget the state that a probe made, unless a checkpoint was loaded over it."""
        if self._run.probed:
            self._run.probed = False
            self._inner.state.clear()
            self._inner.param_groups[0].pop(checkpoint.RUN, None)

    # --- topology ---------------------------------------------------------------------------------

    def update_topology(self) -> Record | None:
        """Update the topology now, outside the schedule.

        A recipe that grows by gradient needs dense gradients; where none are at hand the update is
        made at the end of the next ``step()`` instead.

        Returns:
            The record of the update; None if it waits for the next step.
        """
        self._bind()
        self._run.requested = True
        if any(pool.algorithm.needs_gradient for pool in self._pools):
            if not self._hooks.windows:
                self._open_window()
                return None
            for pool in self._pools:
                self._keep_gradients(pool, due=True)
        return self._update(self._pools)

    @torch.no_grad()
    def _update(self, pools: Sequence[Pool]) -> Record:
        run, context = self._run, self._context()
        done: list[Change] | None = None
        if all(pool.is_finite() for pool in pools):
            done = [
                change
                for pool in pools
                for change in pool.plan(context, self.total_steps, self.update_every)
            ]
            self._keep_dense(done)
            for change in done:
                self._carry_out(change)
            self._forget_state(done)
            run.updates += 1
        run.requested = False
        run.note_densities(self._layers)
        record = record_of(run.steps, self._layers, done)
        run.history.append(record)
        for layer in self._layers:
            layer.gradient = None
        self._hooks.forget()
        self._open_window()
        if self.on_update is not None:
            self.on_update(record)
        return record

    def _keep_dense(self, changes: Sequence[Change]) -> None:
        """Copy all parameters if the network is dense now and about to be pruned."""
        if not (self._algorithm.keep_dense and all(change.layer.dense for change in changes)):
            return
        if any(change.dropped for change in changes):
            for key, _, weight in parameters(self._inner.param_groups):
                self._run.dense[key] = weight.detach().clone()

    def _forget_state(self, changes: Sequence[Change]) -> None:
        """Forget all optimizer state if the network has just become dense again."""
        denser = any(change.grown for change in changes)
        if self._algorithm.reset_state and denser and all(layer.dense for layer in self._layers):
            self._inner.state.clear()

    def _carry_out(self, change: Change) -> None:
        self._storage.carry_out(change, self._algorithm.grown_state)
        change.layer.extras["ever_active"] |= change.layer.mask

    def _context(self) -> Context:
        run = self._run
        progress = min(1.0, run.steps / self.total_steps) if self.total_steps else 0.0
        return Context(step=run.steps, updates=run.updates, progress=progress, seed=run.seed)

    @torch.no_grad()
    def apply_masks(self, model: nn.Module | None = None) -> None:
        """Zero the inactive weights: of this model, or of a copy such as an EMA.

        Averages of weights hold the union of all topologies; late ``model.load_state_dict`` may
        bring weights back. The next step masks them too; this does it at once.

        Args:
            model: A module with the same parameters. None: the one that is trained.

        Raises:
            ValueError: If ``model`` lacks one of the layers, or it has another shape there.
        """
        self._bind()
        if model is None:
            for layer in self._layers:
                self._storage.mask_weights(layer)
                self._storage.reread(layer)
            return
        mine = [weight for group in self.param_groups for weight in group["params"]]
        for layer, weight in counterparts(self.layers, wrapped(model), mine):
            weight.masked_fill_(~layer.mask.to(weight.device), 0.0)

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

    # --- checkpoints ------------------------------------------------------------------------------

    def _saved(self) -> dict[str, Any]:
        self._bind()
        run = self._run.saved() | {
            "algo": self._algorithm.name,
            "sparsity": self._algorithm.sparsity,
        }
        plain = self._inner.state_dict()
        plain["state"] = dict(plain["state"])
        ids = dict(checkpoint.identifiers(plain["param_groups"]))
        for layer in self._layers:
            if ids[layer.key] in plain["state"]:
                entry = plain["state"][ids[layer.key]]
                plain["state"][ids[layer.key]] = self._storage.portable(layer, entry)
        return checkpoint.merge(plain, self._layers, run, self._run.dense)

    def _load(self, state_dict: dict[str, Any]) -> None:
        self._bind()
        plain, saved = checkpoint.split(state_dict)
        checkpoint.check(saved, self._layers, self._algorithm)
        if self._run.steps:
            checkpoint.refuse_lost_masks(saved, plain)
        self._inner.load_state_dict(plain)
        self._run.probed = False
        self._take_up(saved)

    @torch.no_grad()
    def _take_up(self, saved: checkpoint.Saved) -> None:
        if saved.entries:
            self._run.restore(saved.run, saved.steps)
        self._run.dense.clear()
        self._run.dense.update(saved.dense)
        for pool in self._pools:
            for layer in pool.layers:
                self._take_up_layer(layer, saved.of_layer(layer.key), pool.algorithm)
        self._hooks.forget()
        self._open_window()

    def _take_up_layer(self, layer: Layer, entry: dict[str, Tensor], algorithm: Algorithm) -> None:
        if "mask" not in entry:
            self._storage.clean(layer)
            return
        given = self._given.pop(layer.key, None)
        if given is not None and torch.equal(layer.weight, masked(given, layer.mask)):
            # the model's weights were loaded before wrapping masked them by another topology
            layer.weight.copy_(given)
        layer.set_mask(entry.pop("mask").to(layer.mask))
        found = {name: value.to(layer.mask.device).clone() for name, value in entry.items()}
        fresh = algorithm.extras(layer) | {"ever_active": layer.mask.clone()}
        layer.extras = fresh | found
        self._storage.take_up(layer)


def skips_step(due: Sequence[Pool]) -> bool:
    """Whether the update replaces the optimizer step, as in the original RigL code."""
    return any(pool.algorithm.skip_step_on_update for pool in due)


def masked(weight: Tensor, mask: Tensor) -> Tensor:
    return weight.masked_fill(~mask, 0.0)


def check_whole(name: str, value: Any, least: int | None, optional: bool = False) -> None:
    if optional and value is None:
        return
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or (least is not None and value < least):
        bound = f" of at least {least}" if least is not None else ""
        kind = ValueError if whole else TypeError
        raise kind(f"{name}={value!r} must be a whole number{bound}")
