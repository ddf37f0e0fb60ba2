"""Weights written when somebody reads them: nobody sees old ones."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from common import Recipe
from sparse_pairs import (
    ALL_RECIPES,
    EXACT,
    assert_same,
    by_pickle,
    deferred_pair,
    in_double,  # noqa: F401 - a fixture
    is_deferred,
    loss,
    network,
    pair,
    saved,
    train,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.nn import functional as F

from sparseopt.storage import deferred
from sparseopt.storage.deferred import Deferred, defer, settle, stamp

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("recipe", ALL_RECIPES, ids=str)
def test_training_is_the_same_where_nobody_reads_the_weights(recipe: Recipe) -> None:
    (dense, one), (sparse, other) = pair(algo=recipe.algo, **recipe.options)
    train(dense, one, 24, micro=2, clip=1.0)
    train(sparse, other, 24, micro=2, clip=1.0)
    assert all(torch.equal(one.masks[name], other.masks[name]) for name in one.masks)
    assert_same(dense, sparse)


@pytest.mark.parametrize("algo", ["rigl", "set"])
def test_steps_without_a_forward_pass_between_them_are_computed_with_the_new_topology(
    algo: str,
) -> None:
    """An update in the first of two steps, and the weight waits again after the second."""
    (dense, one), (sparse, other) = pair(algo=algo)
    for seed in range(9):
        for model, optimizer in ((dense, one), (sparse, other)):
            train(model, optimizer, 1, seed)
            if seed:
                optimizer.step()
        values = torch.full((3, 20), 0.5)
        torch.testing.assert_close(sparse(values), dense(values), **EXACT)
    assert one.steps == other.steps == 17
    assert_same(dense, sparse)


def test_a_training_loop_never_writes_the_dense_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from sparseopt.storage import compact, deferred

    (_, _), (model, optimizer) = deferred_pair(exclude="4")
    scaler = torch.amp.GradScaler("cpu")
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    written: list[Any] = []
    monkeypatch.setattr(compact, "scatter", lambda *given: written.append(given))
    monkeypatch.setattr(deferred, "settle", written.append)
    for step in range(6):
        model.train()
        (optimizer if step % 2 else model).zero_grad()
        with torch.autograd.set_detect_anomaly(False):
            scaler.scale(loss(model, torch.ones(3, 20))).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        norms = [p.grad.norm() for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in model.parameters())
        kind = next(model.parameters()).dtype, next(model.parameters()).device
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        model.eval()
        with torch.no_grad():
            model(torch.ones(2, 20))
    assert len(norms) == 5 and count == 20 * 32 + 32 + 32 * 24 + 24 * 6 + 6
    assert kind == (torch.float64, torch.device("cpu"))
    assert not written and is_deferred(model)


# --- every way to read ----------------------------------------------------------------------------


def averaged(model: nn.Module) -> list[Tensor]:
    average = torch.optim.swa_utils.AveragedModel(model)
    average.update_parameters(model)
    return list(average.parameters())


def updated_average(model: nn.Module, **how: Any) -> list[Tensor]:
    average = torch.optim.swa_utils.AveragedModel(network(4), **how)
    for _ in range(2):
        average.update_parameters(model)
    return list(average.parameters())


def by_hand(model: nn.Module) -> list[Tensor]:
    average = [torch.zeros_like(p) for p in model.parameters()]
    with torch.no_grad():
        for mean, p in zip(average, model.parameters(), strict=True):
            mean.mul_(0.9).add_(p, alpha=0.1)
    return average


def lerped(model: nn.Module) -> list[Tensor]:
    average = [torch.zeros_like(p) for p in network().parameters()]
    torch._foreach_lerp_(average, [*model.parameters()], 0.5)
    return average


def hooked(model: nn.Module) -> list[Tensor]:
    """What a hook of another module reads during a forward pass."""
    seen: list[Tensor] = []
    handle = model[4].register_forward_pre_hook(lambda *given: seen.append(model[0].weight + 0))
    model(torch.ones(1, 20))
    handle.remove()
    return seen


def functional(model: nn.Module) -> Tensor:
    weights = {name: p for name, p in model.named_parameters()}
    return torch.func.functional_call(model, weights, (torch.ones(2, 20),))


def functional_gradient(model: nn.Module) -> Tensor:
    weights = {name: p.detach() for name, p in model.named_parameters()}

    def value(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (torch.ones(2, 20),)).sum()

    return torch.func.grad(value)(weights)["4.weight"]


def compiled(model: nn.Module) -> Tensor:
    torch._dynamo.reset()
    reading = torch.compile(lambda: sum((p**2).sum() for p in model.parameters()), backend="eager")
    return reading()


class Doubling(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        return weight * 2

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope * 2


def in_a_thread(model: nn.Module) -> Tensor:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: model[0].weight.detach().clone()).result()


def mode_is_left_alone(model: nn.Module) -> Tensor:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watching(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            assert "scatter" not in str(func)
            return func(*args, **(kwargs or {}))

    with Watching():
        return model[0].weight + 1


READS: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda m: list(m.state_dict().values()),
    "state dict with parameters": lambda m: [p + 0 for p in m.state_dict(keep_vars=True).values()],
    "checkpoint api": lambda m: [*get_model_state_dict(m).values()],
    "weight": lambda m: m[0].weight + 0,
    "item": lambda m: [m[0].weight[0, 0].item(), float(m[0].weight[3, 2])],
    "list": lambda m: m[0].weight.tolist(),
    "row": lambda m: m[0].weight[3],
    "rows": lambda m: [row.sum() for row in m[0].weight],
    "text": lambda m: [len(str(m[0].weight)), hash(repr(m[2].weight) + f"{m[0].weight}")],
    "deepcopy": lambda m: list(copy.deepcopy(m).parameters()),
    "deepcopy of a weight": lambda m: copy.deepcopy(m[0].weight),
    "copy of a weight": lambda m: copy.copy(m[0].weight) + 0,
    "pickle": lambda m: list(by_pickle(m).parameters()),
    "pickle of a weight": lambda m: by_pickle(m[0].weight),
    "save": lambda m: list(saved(m).parameters()),
    "save weights": lambda m: list(saved(dict(m.named_parameters())).values()),
    "save state": lambda m: list(saved(m.state_dict()).values()),
    "AveragedModel": averaged,
    "AveragedModel, updated": updated_average,
    "AveragedModel, EMA": lambda m: updated_average(
        m, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    ),
    "average by hand": by_hand,
    "average by foreach": lerped,
    "named_parameters": lambda m: [p.detach().clone() for _, p in m.named_parameters()],
    "norms": lambda m: [p.norm() for p in m.parameters()],
    "norms by foreach": lambda m: torch._foreach_norm([*m.parameters()]),
    "gradient norm of weights": lambda m: nn.utils.get_total_norm([*m.parameters()]),
    "data": lambda m: m[0].weight.data.clone(),
    "detach": lambda m: m[0].weight.detach().clone(),
    "clone": lambda m: m[0].weight.clone(),
    "numpy": lambda m: torch.from_numpy(m[0].weight.detach().numpy().copy()),
    "numpy by force": lambda m: torch.from_numpy(m[0].weight.numpy(force=True).copy()),
    "array": lambda m: torch.from_numpy(np.array(m[0].weight.detach())),
    "dlpack": lambda m: torch.from_dlpack(m[0].weight.detach()).clone(),
    "memory": lambda m: ctypes.c_double.from_address(m[0].weight.data_ptr()).value,
    "storage": lambda m: m[0].weight.untyped_storage().tolist()[:64],
    "view": lambda m: m[0].weight.view(-1).sum(),
    "transposed": lambda m: m[0].weight.T @ m[0].weight,
    "to": lambda m: m[0].weight.to(torch.float32),
    "parameters_to_vector": lambda m: nn.utils.parameters_to_vector(m.parameters()),
    "stack and concatenate": lambda m: torch.cat([torch.stack([m[0].weight]).view(-1)]),
    "nonzero": lambda m: m[0].weight.count_nonzero() + (m[0].weight != 0).sum(),
    "comparison": lambda m: torch.equal(m[0].weight, network()[0].weight),
    "out": lambda m: torch.add(m[0].weight.detach(), 1, out=torch.empty(32, 20)),
    "copied from": lambda m: torch.zeros(32, 20).copy_(m[0].weight),
    "assigned from": lambda m: torch.zeros(32, 20).index_put((torch.tensor(1),), m[0].weight[1]),
    "linear": lambda m: F.linear(torch.ones(2, 20), m[0].weight),
    "operator": lambda m: torch.ops.aten.mul.Tensor(m[0].weight, 2),
    "function of autograd": lambda m: Doubling.apply(m[0].weight),
    "penalty": lambda m: torch.autograd.grad(m[0].weight.pow(2).sum(), m[0].weight)[0],
    "dense product": lambda m: m(torch.ones(2, 20).requires_grad_()).sum(),
    "vmap": lambda m: torch.func.vmap(m)(torch.ones(2, 20)),
    "second derivatives": lambda m: torch.autograd.functional.hessian(
        lambda values: m(values).tanh().sum(), torch.ones(1, 20)
    ),
    "hook of another module": hooked,
    "functional_call": functional,
    "functional gradient": functional_gradient,
    "compiled": compiled,
    "thread": in_a_thread,
    "dispatch mode": mode_is_left_alone,
    "inference mode": lambda m: torch.inference_mode()(lambda: m[0].weight * 2)(),
    "no torch functions": lambda m: [p * 2 for p in m.parameters()],
    "traced": lambda m: torch.jit.trace(m, torch.ones(2, 20))(torch.ones(2, 20)),
    "exported": lambda m: torch.export.export(m, (torch.ones(2, 20),)).module()(torch.ones(2, 20)),
    "other precision": lambda m: list(copy.deepcopy(m).float().parameters()),
    "sparse": lambda m: m[0].weight.to_sparse_csr().values(),
    "spectral norm": lambda m: torch.linalg.matrix_norm(m[0].weight, 2),
    "parametrization": lambda m: nn.utils.parametrizations.weight_norm(copy.deepcopy(m)[0]).weight,
    "iterated": lambda m: [float(one) for one in m[0].weight.flatten()],
    "new like": lambda m: torch.empty_like(m[0].weight).copy_(m[0].weight),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("read", READS)
def test_who_reads_a_weight_sees_its_newest_values(read: str) -> None:
    (dense, one), (sparse, other) = deferred_pair()
    expected, found = READS[read](dense), READS[read](sparse)
    for _ in range(2):  # what was read does not go stale, nor does training go astray
        torch.testing.assert_close(found, expected, **EXACT)
        train(dense, one, 2)
        train(sparse, other, 2)
        assert_same(dense, sparse)
        train(dense, one, 1)
        train(sparse, other, 1)
        if read in ("memory", "storage", "text", "item", "list"):
            break


def test_reading_makes_an_ordinary_parameter_of_it_until_the_next_step() -> None:
    (_, _), (model, optimizer) = deferred_pair()
    weight = model[0].weight
    assert isinstance(weight, nn.Parameter) and weight is optimizer.param_groups[0]["params"][0]
    before = weight._version
    weight.sum()
    assert type(weight) is nn.Parameter and weight._version == before
    assert type(model[2].weight) is Deferred and weight.__dict__ == {}
    train(model, optimizer, 1)
    assert type(weight) is Deferred and weight is model[0].weight


# --- every way to write ---------------------------------------------------------------------------


def assigned(model: nn.Module) -> None:
    model[0].weight[1] = 3.0
    model[0].weight[:, 4] = -1.0


def largest(values: Tensor) -> Tensor:
    """A view of the entry with the largest magnitude."""
    entries = values.view(-1)
    return entries[entries.abs().argmax()]


WRITES: dict[str, Callable[[nn.Module], Any]] = {
    "load_state_dict": lambda m: m.load_state_dict(network(3).state_dict()),
    "in place": lambda m: [p.mul_(2).add_(0.1) for p in m.parameters()],
    "one weight": lambda m: m[0].weight.mul_(0.5),
    "entries": assigned,
    "foreach": lambda m: torch._foreach_mul_([*m.parameters()], 0.5),
    "copied": lambda m: [p.copy_(torch.full_like(p, 0.1)) for p in m.parameters()],
    "through data": lambda m: [p.data.zero_().add_(0.2) for p in m.parameters()],
    "scaled through data": lambda m: [p.data.mul_(3) for p in m.parameters()],
    "one active weight through data": lambda m: largest(m[0].weight.data).fill_(0.5),
    "one active weight through numpy": lambda m: largest(
        torch.from_numpy(m[0].weight.detach().numpy())
    ).fill_(0.5),
    "another memory": lambda m: [
        setattr(p, "data", torch.full_like(p, 0.3)) for p in m.parameters()
    ],
    "vector_to_parameters": lambda m: nn.utils.vector_to_parameters(
        torch.linspace(-1, 1, sum(p.numel() for p in m.parameters())), m.parameters()
    ),
    "initialised": lambda m: [nn.init.constant_(p, 0.05) for p in m.parameters()],
    "numpy": lambda m: m[0].weight.detach().numpy().__imul__(0.5),
    "clamped": lambda m: [p.clamp_(-0.05, 0.05) for p in m.parameters()],
    "precision": lambda m: m.double(),
    "other optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.5, weight_decay=0.1).step(),
}


@pytest.mark.parametrize("write", WRITES)
def test_who_writes_a_weight_writes_over_its_newest_values(write: str) -> None:
    results = []
    for model, optimizer in deferred_pair():
        with torch.no_grad():
            WRITES[write](model)
            outputs = model(torch.linspace(-1, 1, 60).view(3, 20))
        train(model, optimizer, 3, seed=2)
        results.append((model, outputs))
    torch.testing.assert_close(results[0][1], results[1][1], **EXACT)
    assert_same(results[0][0], results[1][0])


def test_a_weight_that_another_thread_has_written_meanwhile_keeps_its_stamp(monkeypatch) -> None:
    weight, ordinary = nn.Parameter(torch.zeros(2, 3)), deferred.untouched
    if not defer(weight, "weight", torch.ones(1), torch.tensor([4])):
        pytest.skip("this torch cannot lock memory")
    expected = stamp(weight)

    def after_the_other() -> Any:
        monkeypatch.setattr(deferred, "untouched", ordinary)
        settle(weight)
        return ordinary()

    monkeypatch.setattr(deferred, "untouched", after_the_other)
    assert stamp(weight) == expected
    assert not isinstance(weight, Deferred) and float(weight.detach().sum()) == 1.0
