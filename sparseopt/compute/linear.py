"""A Linear layer that multiplies by its active weights only, behind an unchanged module."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..layers import Layer
from ..storage.deferred import awaits
from ..watched import untouched
from .sequences import Path, seen_by_hooks

if TYPE_CHECKING:
    from .engine import Engine
    from .structure import Structure

__all__ = ["Forward", "Product", "Watcher"]


class Watcher:
    """What a product asks in its backward pass; by itself: a topology that rests."""

    def wants_dense(self) -> bool:
        """Whether the gradient of every weight is asked for."""
        return False


class Product(torch.autograd.Function):
    """``torch.nn.functional.linear`` on active values; its gradients too.

    With ``stay`` the result keeps the feature-major memory order in which it is made: the next
    sparse layer reads it so.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        structure: Structure,
        engine: Watcher,
        stay: bool,
    ) -> Tensor:
        rows = samples(inputs)
        columns = feature_major(rows, structure.block)
        ctx.structure, ctx.engine, ctx.values = structure, engine, structure.version()
        ctx.turned = rows.t().is_contiguous()  # the inputs are feature-major
        ctx.save_for_backward(inputs, weight, *columns)  # backward refuses a weight changed since
        products = [structure.forward(block, bias) for block in columns]
        return no_view(as_given(products, inputs, stay))

    @staticmethod
    @torch.compiler.disable
    def backward(ctx: Any, slopes: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return Product.backward(ctx, slopes)
        inputs, weight, *columns = ctx.saved_tensors
        # create_graph=True, vmap: by operators that can be derived again, and know batches; or the
        # weight was saved apart from the parameter (saved_tensors_hooks), which has changed since
        changed = ctx.values != ctx.structure.version()
        if torch.is_grad_enabled() or batched(slopes) or changed:
            return dense_gradients(inputs, weight, slopes, ctx.needs_input_grad)
        needs = ctx.needs_input_grad
        rows = samples(slopes)
        turned = feature_major(rows, ctx.structure.block)
        of_inputs = of_weight = of_bias = None
        if needs[0]:
            products = [ctx.structure.backward(block) for block in turned]
            # what comes before is slow where gradients and values differ in memory order
            of_inputs = as_given(products, inputs, stay=ctx.turned)
        if needs[1]:
            if not ctx.engine.wants_dense():
                of_weight = ctx.structure.gradient(turned, columns, weight)
            elif ctx.structure.keeps_factors(len(rows)):
                of_weight = ctx.structure.factored_gradient(turned, columns, weight)
            else:
                of_weight = rows.t() @ samples(inputs)
        if needs[2]:
            of_bias = sum_of_samples(turned)
        return of_inputs, of_weight, of_bias, None, None, None


def feature_major(rows: Tensor, block: int) -> list[Tensor]:
    """Features in rows, samples in columns; a contiguous matrix for each ``block`` of samples."""
    number = -(-len(rows) // block)
    return [transposed(part) for part in (rows.chunk(number) if number > 1 else [rows])]


def sum_of_samples(blocks: list[Tensor]) -> Tensor:
    """For each feature; by products, which are faster than sums along short rows."""
    sums = [block.mv(block.new_ones(block.shape[1])) for block in blocks]
    return sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)


def transposed(matrix: Tensor) -> Tensor:
    """The transpose as a contiguous matrix."""
    turned = matrix.t()
    if min(matrix.shape) > NARROW or turned.is_contiguous():
        return turned.contiguous()
    return torch.cat([turned], 1)  # copies run by run; tiles, of which few are full, take twice


NARROW = 16  # rows or columns: with more, tiles that stay in the cache are the faster way


def as_given(blocks: list[Tensor], like: Tensor, stay: bool) -> Tensor:
    """The inverse: features last, with the leading dimensions of ``like``."""
    if stay:
        rows = (blocks[0] if len(blocks) == 1 else torch.cat(blocks, 1)).t()
    elif len(blocks) == 1:
        rows = transposed(blocks[0])
    else:
        sizes = [block.shape[1] for block in blocks]
        rows = blocks[0].new_empty(sum(sizes), len(blocks[0]))
        for part, block in zip(rows.split(sizes), blocks, strict=True):
            part.copy_(block.t())
    return rows if like.ndim == 2 else rows.view(*like.shape[:-1], -1)


def samples(values: Tensor) -> Tensor:
    """A matrix with a sample in each row."""
    return values if values.ndim == 2 else values.reshape(-1, values.shape[-1])


def batched(values: Tensor) -> bool:
    """Whether the backward pass runs under vmap (``is_grads_batched=True`` has one of its own)."""
    return transformed() is not None or torch._C._functorch.is_legacy_batchedtensor(values)


def no_view(values: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: autograd lets users write into such outputs."""
    return values.new_empty(0).set_(values)  # type: ignore[call-overload]


def dense_gradients(
    inputs: Tensor, weight: Tensor, slopes: Tensor, needs: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    rows, columns = samples(slopes), samples(inputs)
    of_inputs = slopes @ weight if needs[0] else None
    of_weight = rows.t() @ columns if needs[1] else None
    return of_inputs, of_weight, rows.sum(0) if needs[2] else None, None, None, None


class Forward:
    """Stands in for ``module.forward``; where active values cannot serve, calls the original.

    It holds module and optimizer weakly. A copy of the module gets its ordinary ``forward``: it
    belongs to no optimizer, so that nobody would tell it of new topologies.
    """

    def __init__(self, module: nn.Linear, engine: Engine, layer: Layer, after: Path) -> None:
        self.path = [weakref.ref(one) for one in (module, *after)] if after else []
        self.module = weakref.ref(module)
        self.engine = weakref.ref(engine)
        self.layer = layer
        self.obstacle: str | None = "its module was not called yet"
        self.found: Found | None = None

    @torch.compiler.disable
    def __call__(self, input: Tensor) -> Tensor:
        module, engine = self.module(), self.engine()
        assert module is not None  # its own forward is being called
        layer, found = self.layer, self.found
        if engine is None or module._parameters.get("weight") is not layer.weight:
            return nn.Linear.forward(module, input)
        traced = torch.jit.is_tracing()  # then nothing may be asked that a trace would record
        if not traced and layer.dense:
            self.obstacle = "all weights are active"
            return nn.Linear.forward(module, input)
        if not traced and found is not None and found.holds(layer.weight, module, input):
            self.obstacle = engine.refusal(layer, found.structure, module, input)
            if self.obstacle is None:
                return self._multiply(module, engine, input, found.structure)
        else:
            self.obstacle = obstacle(module, input)
        self.found = None
        if self.obstacle is None:
            if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:
                outputs = self._under_autocast(module, engine, input)
            else:
                outputs = self._product(module, engine, input)
            if outputs is not None:
                return outputs
        engine.settle(self.layer)
        return nn.Linear.forward(module, input)

    def _product(
        self, module: nn.Linear, engine: Engine, input: Tensor, lower: torch.dtype | None = None
    ) -> Tensor | None:
        structure = engine.structure(self.layer, module, input, lower)
        if isinstance(structure, str):
            self.obstacle = structure
            return None
        if lower is None:
            self.found = Found(structure, module, input)
        return self._multiply(module, engine, input, structure)

    def _multiply(
        self, module: nn.Linear, engine: Engine, input: Tensor, structure: Structure
    ) -> Tensor:
        stay = self._goes_to_sparse()
        return Product.apply(input, self.layer.weight, module.bias, structure, engine, stay)

    def _under_autocast(self, module: nn.Linear, engine: Engine, input: Tensor) -> Tensor | None:
        """In float32, for which there are sparse products; the result has autocast's precision."""
        lower = torch.get_autocast_dtype("cpu")
        with torch.autocast("cpu", enabled=False):
            outputs = self._product(module, engine, input.float(), lower)
        return None if outputs is None else outputs.to(lower)

    def _goes_to_sparse(self) -> bool:
        """Whether a sparse product reads the output next, and no hook sees it before."""
        last = self.path[-1]() if self.path else None
        forward = None if last is None else last.__dict__.get("forward")
        sparse = isinstance(forward, Forward) and forward.layer.density <= SPARSE
        return sparse and not seen_by_hooks(self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[[Tensor], Tensor]:
        module = self.module()
        return original_forward(memo.get(id(module), module))

    def __reduce__(self) -> tuple[Any, ...]:
        return original_forward, (self.module(),)


class Found:
    """What the last call of a module found out, so that the next need not ask it all again."""

    def __init__(self, structure: Structure, module: nn.Linear, values: Tensor) -> None:
        self.structure = structure
        self.shape, self.dtype, self.bias = values.shape, values.dtype, module.bias

    def holds(self, weight: Tensor, module: nn.Linear, values: Any) -> bool:
        """Whether it is true of these inputs too: nobody has asked for the weight meanwhile."""
        packed = self.structure.packed
        return (
            type(values) is Tensor
            and awaits(weight, packed.values, packed.index)
            and is_strided(values)
            and values.shape == self.shape
            and values.dtype is self.dtype
            and values.is_cpu
            and module.bias is self.bias
            and (self.bias is None or self.bias.dtype is self.dtype)
            and not torch.is_autocast_enabled("cpu")
            and transformed() is None
        )


def is_strided(values: Tensor) -> bool:
    """Whether it is an ordinary tensor, neither sparse nor nested."""
    return values.layout is torch.strided and not values.is_nested


def original_forward(module: Any) -> Callable[[Tensor], Tensor]:
    return types.MethodType(type(module).forward, module)


def obstacle(module: nn.Linear, values: Any) -> str | None:
    """Why these inputs cannot be multiplied by active values with the same result."""
    if type(values) is not Tensor:
        return f"inputs are {type(values).__name__}"
    if torch.jit.is_tracing():  # before anything is asked that a trace would record
        return "traced"
    inside = transformed()
    if inside is not None:
        return inside
    if not is_strided(values):
        return "inputs are sparse or nested"
    weight, bias = module.weight, module.bias
    with untouched():  # asks for no values
        dtype, here = weight.dtype, weight.is_cpu
        fits = values.dim() > 0 and values.shape[-1] == weight.shape[1] and values.numel() > 0
        if bias is not None:
            fits = fits and bias.shape == weight.shape[:1] and bias.dtype == dtype
    if not (here and values.is_cpu):
        return "not on the CPU"
    if not fits:
        return "inputs are empty, or do not fit"
    if dtype != values.dtype and not casts(dtype, values.dtype):
        return f"inputs are {values.dtype}, weights {dtype}"
    if dtype not in (torch.float32, torch.float64):
        return f"weights are {dtype}"
    return None


def casts(dtype: torch.dtype, given: torch.dtype) -> bool:
    """Whether autocast brings inputs to the precision in which weights are multiplied."""
    half = given in (torch.bfloat16, torch.float16)
    return half and dtype == torch.float32 and torch.is_autocast_enabled("cpu")


SPARSE = 0.3  # density up to which the next layer is taken to compute sparsely


def transformed() -> str | None:
    """What we run inside that the product cannot follow: ``torch.func`` (vmap, grad, jvp) or so."""
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return "inside torch.func"
    dual = getattr(forward_ad, "_current_level", -1) >= 0
    return "inside forward-mode differentiation" if dual else None
