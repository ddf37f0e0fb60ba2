"""What the tests of the core share: recipes, inner optimizers, small models, a training loop."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparseopt import SparseOptimizer

UNKNOWN_STATE = "ignore:state .* is not known to hold one value per weight:UserWarning"
"""For ``pytest.mark.filterwarnings``: optimizers that mix entries say so once, as they should."""

# --- recipes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A recipe with options, and what is promised of it."""

    algo: str
    options: dict[str, Any] = field(default_factory=dict)
    layers_keep_counts: bool = True

    def __str__(self) -> str:
        return "-".join([self.algo, *(f"{key}={value}" for key, value in self.options.items())])


RECIPES = [
    Recipe("static"),
    Recipe("set"),
    Recipe("set", {"signed": True}),
    Recipe("set", {"regrow_same": "reset", "distribution": "er"}),
    Recipe("set", {"regrow_same": "forbid", "rounding": "ceil"}),
    Recipe("set", {"scope": "global"}, layers_keep_counts=False),
    Recipe("set", {"skip_step_on_update": True}),
    Recipe("rigl"),
    Recipe("rigl", {"distribution": "uniform", "topology": "magnitude"}),
    Recipe("rigl", {"regrow_same": "forbid", "stop": 1.0}),
    Recipe("rigl", {"scope": "global"}, layers_keep_counts=False),
    Recipe("rigl", {"grown_state": "mean", "regrow_same": "reset"}),
    Recipe("rigl", {"skip_step_on_update": True}),
]
MORE_RECIPES = [
    Recipe("snfs", layers_keep_counts=False),
    Recipe("mest_r", layers_keep_counts=False),
    Recipe("mest_g", {"variant": "em", "bound": 0.5}),
    Recipe("mest_g", {"bound": 0.5, "regrow_same": "reset"}, layers_keep_counts=False),
    Recipe("granet_r", {"drop_fraction": 0.5}, layers_keep_counts=False),
    Recipe("granet_g", {"distribution": "uniform"}, layers_keep_counts=False),
    Recipe("gmp", layers_keep_counts=False),
    Recipe("acdc", layers_keep_counts=False),
    Recipe("acdc", {"scope": "layer", "keep_dense": True}, layers_keep_counts=False),
    Recipe("cht"),
    Recipe("cht", {"soft": True, "early_stop": None, "grow": "ch3_l3n"}),
    Recipe("chts"),
    Recipe("chtss", layers_keep_counts=False),
    Recipe("srigl", {"drop_fraction": 0.5}, layers_keep_counts=False),
    Recipe("nm", {"n": 1, "m": 2, "sparsity": 0.5, "drop_fraction": 0.5}),
]
"""The recipes whose density changes or that structure the topology; ``sparse`` takes them too."""
DYNAMIC = [recipe for recipe in RECIPES if recipe.algo != "static"]


# --- inner optimizers -----------------------------------------------------------------------------


class OneByOne(Optimizer):
    """Calls ``_one(p, group)`` for every parameter with a gradient."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._one(p, group)
        return loss


class MuonLike(OneByOne):
    """Momentum made orthogonal: every entry of the update depends on every gradient."""

    def __init__(self, params: Iterable[Any], lr: float = 0.05, weight_decay: float = 0.1):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def _one(self, p: Tensor, group: dict[str, Any]) -> None:
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.mul_(0.9).add_(p.grad)
        update = buffer
        if p.ndim > 1:
            left, _, right = torch.linalg.svd(buffer.flatten(1) + 1e-6, full_matrices=False)
            update = (left @ right).view_as(p)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


class ShampooLike(OneByOne):
    """Preconditions with matrices; those of a square weight have the weight's own shape."""

    def __init__(self, params: Iterable[Any], lr: float = 0.05):
        super().__init__(params, {"lr": lr})

    def _one(self, p: Tensor, group: dict[str, Any]) -> None:
        grad, state = p.grad.flatten(1) if p.ndim > 1 else p.grad.unsqueeze(0), self.state[p]
        if not state:
            state["left"] = torch.eye(grad.shape[0], dtype=p.dtype)
            state["right"] = torch.eye(grad.shape[1], dtype=p.dtype)
        state["left"].add_(grad @ grad.T)
        state["right"].add_(grad.T @ grad)
        update = power(state["left"], -0.25) @ grad @ power(state["right"], -0.25)
        p.sub_(update.view_as(p) + 1e-3, alpha=group["lr"])


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=1e-12) ** exponent) @ vectors.T


class Still(Optimizer):
    """Leaves the weights as they are: what changes then is the topology's doing."""

    def __init__(self, params: Iterable[Any]):
        super().__init__(params, {})

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return None if closure is None else closure()


@dataclass(frozen=True)
class Inner:
    """An optimizer to wrap, and what it needs."""

    name: str
    make: Callable[[Iterable[Any]], Optimizer]
    elementwise: bool = True
    needs_closure: bool = False
    matrices_only: bool = False
    package: str = "torch"

    def __str__(self) -> str:
        return self.name

    def __call__(self, params: Iterable[Any]) -> Optimizer:
        pytest.importorskip(self.package)
        if self.name == "muon" and not hasattr(torch.optim, "Muon"):
            pytest.skip("this torch has no Muon")
        return self.make(params)

    def model(self, **options: Any) -> nn.Sequential:
        return mlp(bias=not self.matrices_only, **options)


def torch_inner(name: str, kind: str, **options: Any) -> Inner:
    mixing = {
        "Muon": {"elementwise": False, "matrices_only": True},
        "Adafactor": {"elementwise": False},
        "LBFGS": {"elementwise": False, "needs_closure": True},
    }
    return Inner(
        name, lambda params: getattr(torch.optim, kind)(params, **options), **mixing.get(kind, {})
    )


def other_inner(package: str, kind: str, elementwise: bool = True, **options: Any) -> Inner:
    def make(params: Iterable[Any]) -> Optimizer:
        optimizer = getattr(__import__(package), kind)(params, **options)
        if package == "schedulefree":
            optimizer.train()
        return optimizer

    return Inner(f"{package}.{kind}", make, elementwise, package=package)


TORCH_INNERS = [
    torch_inner("sgd", "SGD", lr=0.1),
    torch_inner("sgd-nesterov", "SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    torch_inner("sgd-fused", "SGD", lr=0.05, momentum=0.9, fused=True),
    torch_inner("adam-l2", "Adam", lr=0.01, weight_decay=0.1),
    torch_inner("adam-amsgrad", "Adam", lr=0.01, amsgrad=True),
    torch_inner("adam-foreach", "Adam", lr=0.01, foreach=True),
    torch_inner("adamw", "AdamW", lr=0.01, weight_decay=0.1),
    torch_inner("adamw-fused", "AdamW", lr=0.01, weight_decay=0.1, fused=True),
    torch_inner("rmsprop", "RMSprop", lr=0.01, momentum=0.9, centered=True, weight_decay=0.01),
    torch_inner("adagrad", "Adagrad", lr=0.05, initial_accumulator_value=0.1, weight_decay=0.01),
    torch_inner("adadelta", "Adadelta", lr=1.0, weight_decay=0.01),
    torch_inner("adamax", "Adamax", lr=0.01, weight_decay=0.01),
    torch_inner("nadam", "NAdam", lr=0.01, weight_decay=0.01),
    torch_inner("radam", "RAdam", lr=0.01, weight_decay=0.01),
    torch_inner("asgd", "ASGD", lr=0.05, t0=3, weight_decay=0.01),
    torch_inner("rprop", "Rprop", lr=0.01),
    torch_inner("adafactor", "Adafactor", lr=0.05, weight_decay=0.01),
    torch_inner("muon", "Muon", lr=0.05, weight_decay=0.1),
    torch_inner("lbfgs", "LBFGS", lr=0.5, max_iter=3, history_size=4),
]
OTHER_INNERS = [
    Inner("muon-like", MuonLike, elementwise=False),
    Inner("shampoo-like", ShampooLike, elementwise=False),
    other_inner("schedulefree", "SGDScheduleFree", lr=0.1, weight_decay=0.01),
    other_inner("schedulefree", "AdamWScheduleFree", lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "Lion", lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "Lamb", elementwise=False, lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "AdaBelief", lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "AdEMAMix", lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "Adan", lr=0.01, weight_decay=0.1),
    other_inner("pytorch_optimizer", "Prodigy", elementwise=False, lr=1.0),
    other_inner("pytorch_optimizer", "SOAP", elementwise=False, lr=0.01),
]
INNERS = TORCH_INNERS + OTHER_INNERS
COMMON_INNERS = [
    inner for inner in INNERS if inner.name in ("sgd-nesterov", "adam-l2", "adamw", "muon-like")
]


def inner_named(name: str) -> Inner:
    return next(inner for inner in INNERS if inner.name == name)


# --- models and data ------------------------------------------------------------------------------


def rng(seed: int = 0) -> torch.Generator:
    """A private random stream: tests leave the global one alone."""
    return torch.Generator().manual_seed(seed)


def fill(model: nn.Module, seed: int) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng(seed + 7 * p.numel()), dtype=p.dtype) / 2)


def seeded(model: nn.Sequential, seed: int, input_shape: Sequence[int], dtype: Any) -> Any:
    model = model.to(dtype)
    fill(model, seed)
    model.input_shape = tuple(input_shape)
    return model


def mlp(
    sizes: Sequence[int] = (6, 8, 5),
    bias: bool = True,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> nn.Sequential:
    """Linear layers with a Tanh between them."""
    parts: list[nn.Module] = []
    for wide, narrow in zip(sizes, sizes[1:], strict=False):
        parts += [nn.Linear(wide, narrow, bias=bias), nn.Tanh()]
    return seeded(nn.Sequential(*parts[:-1]), seed, sizes[:1], dtype)


def convnet(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions, a norm, a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 3, 3, stride=2),
        nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip
    return seeded(model, seed, (2, 7, 7), dtype)


def batch(model: Any, step: int, size: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs and targets of one step, the same whenever they are asked for."""
    dtype = next(model.parameters()).dtype
    source = rng(1000 + step)
    inputs = torch.randn(size, *model.input_shape, generator=source, dtype=torch.float64)
    targets = torch.randn(size, 5, generator=source, dtype=torch.float64)
    return inputs.to(dtype), targets.to(dtype)


def loss_of(model: Any, step: int, size: int = 4) -> Tensor:
    inputs, targets = batch(model, step, size)
    return (model(inputs) - targets).square().mean()


def train(
    model: Any,
    optimizer: Optimizer,
    steps: int,
    first: int = 0,
    clip: float | None = None,
    closure: bool = False,
    after_step: Callable[[int], Any] | None = None,
) -> None:
    """An ordinary training loop over the batches ``first`` to ``first + steps``."""

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss

    for step in range(first, first + steps):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
        if after_step is not None:
            after_step(step)


def sparse(
    model: nn.Module,
    inner: Optimizer | Callable[[Iterable[Any]], Optimizer],
    recipe: Recipe | str = "set",
    /,
    **options: Any,
) -> SparseOptimizer:
    """The model's parameters under an inner optimizer, made sparse; updates every 3 steps."""
    if isinstance(recipe, str):
        recipe = Recipe(recipe)
    if not isinstance(inner, Optimizer):
        inner = inner(model.parameters())
    given = {"sparsity": 0.7, "total_steps": 40, "update_every": 3, "model": model}
    return SparseOptimizer(inner, recipe.algo, **given | recipe.options | options)


def single(
    weight: Tensor, mask: Tensor | None = None, algo: Any = "set", **options: Any
) -> tuple[nn.Parameter, SparseOptimizer]:
    """One weight under an optimizer that does nothing, sparse with this mask."""
    p = nn.Parameter(weight.clone())
    if mask is not None:
        options["topology"] = {"0.0": mask}
        options["sparsity"] = float(1 - mask.double().mean())
    given = {"update_every": 1, "include": lambda name, weight: True}
    return p, SparseOptimizer(Still([p]), algo, **given | options)


# --- what holds of every optimizer ----------------------------------------------------------------


def assert_zeros(optimizer: SparseOptimizer) -> None:
    """Inactive weights are exactly zero, and the counts are those of the masks."""
    for layer in optimizer.layers:
        mask = optimizer.masks[layer.name]
        assert mask.dtype == torch.bool and mask.shape == layer.weight.shape
        assert (layer.weight.detach()[~mask] == 0).all(), layer
        assert layer.nnz == int(mask.sum())
    total = sum(layer.weight.numel() for layer in optimizer.layers)
    assert optimizer.density == sum(layer.nnz for layer in optimizer.layers) / total


def numbers(optimizer: SparseOptimizer) -> list[int]:
    return [int(mask.sum()) for mask in optimizer.masks.values()]


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Equal to the last bit, through dicts and lists."""
    if torch.is_tensor(one) or torch.is_tensor(other):
        assert one.dtype == other.dtype, where
        assert (
            torch.equal(one, other)
            or (one.isnan() == other.isnan()).all()
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        ), where
    elif isinstance(one, dict):
        assert set(one) == set(other), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for position, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}[{position}]")
    else:
        assert one == other, f"{where}: {one!r} != {other!r}"


def snapshot(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """All that an operation could have changed, copied."""
    return copy.deepcopy(
        {
            "weights": dict(model.state_dict()),
            "grads": [p.grad for p in model.parameters()],
            "requires_grad": [p.requires_grad for p in model.parameters()],
            "modules": [(name, type(module)) for name, module in model.named_modules()],
            "hooks": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
            "defaults": optimizer.defaults,
            "optimizer": optimizer.state_dict(),
            "group_keys": [sorted(group) for group in optimizer.param_groups],
        }
    )


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)
