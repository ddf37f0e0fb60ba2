"""A gradient that holds active entries alone does what the dense one does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_pairs import (
    EXACT,
    assert_same,
    by_pickle,
    in_double,  # noqa: F401 - a fixture
    loss,
    network,
    pair,
    train,
    wrap,
)
from torch import Tensor

from sparseopt import SparseOptimizer
from sparseopt.storage.active_gradient import ActiveGradient, holds_active_only

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


# --- the gradient that holds active values --------------------------------------------------------


def held(values: list[float], index: list[int], shape: tuple[int, ...]) -> ActiveGradient:
    return ActiveGradient(torch.tensor(values), torch.tensor(index), torch.zeros(shape))


READS: dict[str, Callable[[Tensor], Any]] = {
    "sum": lambda g: g.sum(),
    "norm": lambda g: g.norm(),
    "norm 1": lambda g: torch.linalg.vector_norm(g, 1),
    "norm inf": lambda g: torch.linalg.vector_norm(g, float("inf")),
    "norm -inf": lambda g: torch.linalg.vector_norm(g, float("-inf")),
    "norm 0": lambda g: torch.linalg.vector_norm(g, 0),
    "norm with its dimensions": lambda g: torch.linalg.vector_norm(g, keepdim=True),
    "norm of rows": lambda g: torch.linalg.vector_norm(g, dim=1),
    "abs mean": lambda g: g.abs().mean(),
    "entry": lambda g: g[0, 2],
    "view": lambda g: g.view(-1),
    "product": lambda g: g @ g.t(),
    "double": lambda g: g.double() + g,
    "stack": lambda g: torch.stack([g, g]),
    "clone": lambda g: g.clone() + 1,
    "numpy": lambda g: torch.as_tensor(g.numpy()),
    "dlpack": lambda g: torch.from_dlpack(g.detach()),
    "list": lambda g: torch.tensor(g.tolist()),
    "out": lambda g: torch.mul(g, 2, out=torch.empty(g.shape)),
    "add to": lambda g: torch.ones(g.shape).add_(g),
    "deepcopy": lambda g: copy.deepcopy(g) * 1,
    "pickle": lambda g: by_pickle(g) * 1,
    "where": lambda g: torch.where(g > 0, g, -1.0),
    "foreach": lambda g: torch._foreach_mul([g, g], 2.0)[1],
    "sign": lambda g: g.detach().sign(),
}
CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "scale": lambda g: g.mul_(0.5),
    "scale by tensor": lambda g: g.mul_(torch.tensor(0.5)),
    "divide": lambda g: g.div_(4),
    "add number": lambda g: g.add_(1.0),
    "add tensor": lambda g: g.add_(torch.ones(g.shape), alpha=2),
    "add itself": lambda g: g.add_(g),
    "product": lambda g: g.mul_(torch.arange(6.0).view(2, 3)),
    "clamp": lambda g: g.clamp_(-1, 1),
    "clamp away from zero": lambda g: g.clamp_(0.5, 1),
    "zero": lambda g: g.zero_(),
    "fill": lambda g: g.fill_(2.0),
    "copy": lambda g: g.copy_(torch.ones(g.shape)),
    "entry": lambda g: g.__setitem__((1, 1), 7.0),
    "view": lambda g: g.view(-1).mul_(3),
    "foreach": lambda g: torch._foreach_mul_([g, torch.ones(2)], 3.0),
    "foreach by tensor": lambda g: torch._foreach_mul_([g], torch.tensor(3.0)),
    "through data": lambda g: g.data.mul_(2),
}


@pytest.mark.parametrize("read", READS)
def test_reading_the_gradient_gives_what_the_dense_one_gives(read: str) -> None:
    grad = held([3.0, -4.0], [2, 4], (2, 3))
    dense = torch.tensor([[0.0, 0, 3], [0, -4, 0]])
    torch.testing.assert_close(READS[read](grad), READS[read](dense))
    torch.testing.assert_close(grad + 0, dense)


@pytest.mark.parametrize("change", CHANGES)
def test_changing_the_gradient_does_what_it_does_to_the_dense_one(change: str) -> None:
    grad = held([3.0, -4.0], [2, 4], (2, 3))
    dense = torch.tensor([[0.0, 0, 3], [0, -4, 0]])
    alias = grad.detach()
    CHANGES[change](grad)
    CHANGES[change](dense)
    torch.testing.assert_close(alias + 0, dense)
    torch.testing.assert_close(grad + 0, dense)


def test_ordinary_steps_never_make_a_dense_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseopt.storage import active_gradient

    def refuse(grad: Tensor) -> Tensor:
        raise AssertionError("a dense gradient was made")

    model = network()
    optimizer = wrap(model, algo="static", exclude="4")
    monkeypatch.setattr(active_gradient, "as_dense", refuse)
    train(model, optimizer, 5, micro=2, clip=1.0)
    assert holds_active_only(model[0].weight.grad)


def test_all_entries_are_known_in_the_window_only() -> None:
    model = network()
    optimizer = wrap(model, algo="rigl", update_every=3)
    seen: list[bool] = []
    model[0].weight.register_hook(lambda grad: seen.append(not holds_active_only(grad)))
    for _ in range(9):
        optimizer.zero_grad()
        loss(model, torch.ones(3, 20)).backward()
        assert holds_active_only(model[0].weight.grad)  # masked, once the window has its copy
        optimizer.step()
    assert seen == [False, False, True] * 3


def test_the_rest_of_the_model_can_be_compiled() -> None:
    (dense, one), (sparse, other) = pair()
    train(dense, one, 9)
    torch._dynamo.reset()
    compiled = torch.compile(sparse, backend="eager")
    train(compiled, other, 9)
    assert_same(dense, sparse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_traces_and_exported_programs_are_those_of_the_dense_model() -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    values = torch.linspace(-1, 1, 60).view(3, 20)
    traced = torch.jit.trace(model, values)
    program = torch.export.export(model, (values,), strict=False).module()
    train(model, optimizer, 3)
    torch.testing.assert_close(traced(values), model(values), **EXACT)  # shares its weights
    torch.testing.assert_close(program(values), model(values), **EXACT)


def test_operations_are_counted_as_in_the_dense_model() -> None:
    pytest.importorskip("fvcore")
    from sparseopt import flops

    model = network()
    optimizer = wrap(model)
    assert (
        flops.count(model, torch.ones(1, 20)).macs == flops.count(network(), torch.ones(1, 20)).macs
    )
    assert optimizer.steps == 0


def test_auto_leaves_the_rest_alone_where_nothing_is_to_be_gained() -> None:
    class Unknown(torch.optim.SGD):
        """Not known to be element-wise."""

    for sparsity, kind in ((0.5, torch.optim.SGD), (0.9, Unknown)):
        model = network()
        inner = kind(model.parameters(), lr=0.1)
        optimizer = SparseOptimizer(inner, "set", sparsity=sparsity, model=model, compute="auto")
        assert "storage='masked'" in repr(optimizer)
        assert not any("forward" in m.__dict__ for m in model.modules())
        with optimizer.dense_compute():
            train(model, optimizer, 2)
