"""One network twice, trained with dense products and with sparse ones."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from common import RECIPES, Recipe
from old_torch import before
from torch import Tensor, nn
from torch.nn import functional as F

import sparseopt
from sparseopt import SparseOptimizer
from sparseopt.storage.deferred import Deferred

EXACT = {"rtol": 1e-10, "atol": 1e-10}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}
ALL_RECIPES = [
    *RECIPES,
    *(
        Recipe(name)
        for name in sparseopt.available()
        if name not in ("static", "set", "rigl", "nm")
    ),
    Recipe("nm", {"n": 1, "m": 4}),
]


@pytest.fixture(autouse=True)
def in_double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 24, bias=False), nn.Tanh(), nn.Linear(24, 6)
    )


def wrap(model: nn.Module, compute: Any = "sparse", algo: str = "rigl", **more: Any) -> Any:
    inner = OPTIMIZERS[more.pop("inner", "sgd")](model.parameters())
    sparsity = 0.75 if algo == "nm" else 0.8
    settings = {"sparsity": sparsity, "total_steps": 40, "update_every": 4} | more
    return SparseOptimizer(inner, algo, model=model, compute=compute, storage="compact", **settings)


def train(model: nn.Module, optimizer: Any, steps: int = 8, seed: int = 1, **how: Any) -> None:
    draw = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad(how.get("set_to_none", True))
        for _ in range(how.get("micro", 1)):
            rows = int(torch.randint(1, 12, (), generator=draw))
            inputs = torch.randn(rows, 20, generator=draw)
            loss(model, inputs).backward()
        if how.get("clip"):
            nn.utils.clip_grad_norm_(model.parameters(), how["clip"])
        optimizer.step()


def loss(model: nn.Module, inputs: Tensor) -> Tensor:
    outputs = model(inputs)
    return F.mse_loss(outputs, torch.ones_like(outputs)) * 3


def pair(**more: Any) -> tuple[tuple[nn.Module, Any], tuple[nn.Module, Any]]:
    one, other = network(), network()
    return (one, wrap(one, "dense", **more)), (other, wrap(other, "sparse", **more))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    for (name, p), (_, q) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(p, q, **EXACT, msg=lambda text, name=name: f"{name}: {text}")


def computes_sparsely(model: nn.Module, inputs: Tensor, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many sparse products one forward pass makes."""
    from sparseopt.compute.structure import Structure

    calls = []
    forward = Structure.forward

    def counted(self: Structure, *given: Any) -> Tensor:
        calls.append(self)
        return forward(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Structure, "forward", counted)
        model(inputs)
    return len(calls)


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def deferred_pair(**more: Any) -> tuple[tuple[nn.Module, Any], tuple[nn.Module, Any]]:
    """The same network trained densely, and sparsely with weights that wait to be written."""
    if before(2, 12):
        pytest.skip("torch cannot unlock memory before 2.12: weights are written after every step")
    (dense, one), (sparse, other) = pair(**({"algo": "static"} | more))
    train(dense, one, 5)
    train(sparse, other, 5)
    assert is_deferred(sparse)  # else these tests show nothing
    return (dense, one), (sparse, other)


def is_deferred(model: nn.Module) -> bool:
    return isinstance(model[0].weight, Deferred) and isinstance(model[2].weight, Deferred)


def dense_outputs(model: nn.Module, values: Tensor) -> Tensor:
    plain = network()
    plain.load_state_dict(model.state_dict())
    return plain(values)


def saved(value: Any) -> Any:
    memory = io.BytesIO()
    torch.save(value, memory)
    memory.seek(0)
    return torch.load(memory, weights_only=False)
