"""Weights written when somebody reads them: memory of others, and what does not ask."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from old_torch import before
from sparse_pairs import (
    EXACT,
    assert_same,
    computes_sparsely,
    deferred_pair,
    in_double,  # noqa: F401 - a fixture
    is_deferred,
    loss,
    network,
    pair,
    saved,
    train,
    wrap,
)
from torch import Tensor, nn

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


# --- memory that others hold ----------------------------------------------------------------------


ALIASES: dict[str, Callable[[nn.Module], Any]] = {
    "state dict": lambda m: m.state_dict()["0.weight"],
    "data": lambda m: m[0].weight.data,
    "detach": lambda m: m[0].weight.detach(),
    "view": lambda m: m[0].weight.detach().view(-1),
    "row": lambda m: m[0].weight.data[2],
    "numpy": lambda m: m[0].weight.detach().numpy(),
    "shared memory": lambda m: m[0].weight.data.share_memory_(),
    "dlpack": lambda m: np.from_dlpack(m[0].weight.detach()),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("alias", ALIASES)
def test_memory_that_others_hold_follows_every_step(alias: str, early: bool) -> None:
    held = []
    (dense, one), (sparse, other) = pair(algo="static") if early else deferred_pair()
    held = [ALIASES[alias](model) for model in (dense, sparse)]
    for _ in range(3):
        train(dense, one, 2)
        train(sparse, other, 2)
        torch.testing.assert_close(*(torch.as_tensor(one) + 0 for one in held), **EXACT)
    del held
    gc.collect()
    train(dense, one, 2)
    train(sparse, other, 2)
    assert is_deferred(sparse) or alias == "shared memory" or before(2, 12)
    assert_same(dense, sparse)


def test_weights_in_shared_memory_are_written_after_every_step() -> None:
    (dense, one), (sparse, other) = deferred_pair()
    sparse.share_memory()
    train(dense, one, 2)
    train(sparse, other, 2)
    assert type(sparse[0].weight) is nn.Parameter
    assert_same(dense, sparse)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_traced_model_follows_every_step() -> None:
    (dense, one), (sparse, other) = deferred_pair()
    values = torch.ones(2, 20)
    traced = torch.jit.trace(sparse, values)
    for _ in range(2):
        train(dense, one, 2)
        train(sparse, other, 2)
        torch.testing.assert_close(traced(values), dense(values), **EXACT)
    with other.dense_compute():
        train(sparse, other, 1)
    train(dense, one, 1)
    train(sparse, other, 1)
    train(dense, one, 1)
    torch.testing.assert_close(traced(values), dense(values), **EXACT)


# --- what does not ask ----------------------------------------------------------------------------


PAST_PYTHON: dict[str, Callable[[Tensor], Any]] = {
    "torch.func": lambda weight: torch.func.grad(lambda given: given.pow(2).sum())(weight),
    "vjp": lambda weight: torch.func.vjp(torch.sin, weight),
    "tensor": lambda weight: torch.tensor(weight),
    "script": lambda weight: scripted()(weight),
    "capsule": lambda weight: torch.utils.dlpack.to_dlpack(weight),
    "nested": lambda weight: torch.nested.nested_tensor([weight, weight]),
    "torch functions off": lambda weight: without_torch_functions(weight),
}


def scripted() -> Any:
    def double(given: Tensor) -> Tensor:
        return given * 2

    return torch.jit.script(double)


def without_torch_functions(weight: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return weight + 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("read", PAST_PYTHON)
def test_what_reads_past_torch_functions_is_refused_not_given_old_values(read: str) -> None:
    (dense, _), (sparse, other) = deferred_pair()
    with pytest.raises((RuntimeError, BufferError), match="'0.weight'.*apply_masks"):
        PAST_PYTHON[read](sparse[0].weight)
    other.apply_masks()
    PAST_PYTHON[read](sparse[0].weight)
    assert_same(dense, sparse)


def test_backward_refuses_weights_that_were_stepped_since_forward() -> None:
    (_, _), (model, optimizer) = deferred_pair()
    value = loss(model, torch.ones(3, 20))
    train(model, optimizer, 1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_without_the_lock_of_torch_weights_are_written_after_every_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from sparseopt.storage import deferred

    monkeypatch.setattr(deferred, "unlock", None)
    (dense, one), (sparse, other) = pair(algo="static")
    train(dense, one, 5)
    train(sparse, other, 5)
    assert not is_deferred(sparse)
    assert_same(dense, sparse)


# --- the optimizer's own --------------------------------------------------------------------------


OWN: dict[str, Callable[[nn.Module, Any], Any]] = {
    "state_dict": lambda m, o: o.state_dict(),
    "apply_masks": lambda m, o: o.apply_masks(),
    "dense_compute": lambda m, o: o.dense_compute(),
    "update_topology": lambda m, o: o.update_topology(),
}


@pytest.mark.parametrize("call", OWN)
def test_the_optimizer_brings_weights_up_to_date(call: str) -> None:
    (dense, one), (sparse, other) = deferred_pair()
    OWN[call](sparse, other)
    assert not is_deferred(sparse)
    assert_same(dense, sparse)


def test_a_model_keeps_its_newest_weights_when_the_optimizer_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (dense, _), (sparse, other) = deferred_pair()
    del other
    gc.collect()
    assert is_deferred(sparse)
    values = torch.ones(2, 20)
    assert computes_sparsely(sparse, values, monkeypatch) == 0
    torch.testing.assert_close(sparse(values), dense(values), **EXACT)
    assert_same(dense, sparse)


def test_an_error_within_the_step_leaves_current_weights() -> None:
    (_, _), (model, optimizer) = deferred_pair()
    before = copy.deepcopy(model.state_dict())

    def fails(*given: Any) -> None:
        raise KeyError

    handle = optimizer.inner.register_step_pre_hook(fails)
    with pytest.raises(KeyError):
        train(model, optimizer, 1)
    handle.remove()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    train(model, optimizer, 1)


def test_a_checkpoint_of_deferred_weights_resumes_to_the_last_bit() -> None:
    (_, _), (model, optimizer) = deferred_pair(algo="rigl")
    weights, state = saved(model.state_dict()), saved(optimizer.state_dict())
    later = network(9)
    again = wrap(later)
    later.load_state_dict(weights)
    again.load_state_dict(state)
    train(model, optimizer, 7, seed=3)
    train(later, again, 7, seed=3)
    for one, other in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(one, other)


def test_weights_loaded_into_a_deferred_model_are_trained_on() -> None:
    results = []
    for model, optimizer in deferred_pair():
        model.load_state_dict(network(5).state_dict())
        assert torch.equal(model[0].weight, network(5)[0].weight)
        train(model, optimizer, 4)
        results.append(model)
    assert_same(*results)


def test_a_second_optimizer_takes_over_with_current_weights() -> None:
    results = []
    for compute, (model, first) in zip(("dense", "sparse"), deferred_pair(), strict=True):
        second = wrap(model, compute, algo="set", sparsity=0.9)
        train(model, second, 4)
        results.append((model, first))
    assert_same(results[0][0], results[1][0])


def read_in_a_child(model: nn.Module, answers: Any) -> None:
    answers.put([float(p.detach().sum()) for p in model.parameters()])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_process_reads_newest_weights() -> None:
    (dense, _), (sparse, _) = deferred_pair()
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = context.Process(target=read_in_a_child, args=(sparse, answers))
        child.start()
        found = answers.get()
        child.join()
    assert found == pytest.approx([float(p.detach().sum()) for p in dense.parameters()])


def test_the_rest_of_a_compiled_model_is_compiled_once() -> None:
    (dense, one), (sparse, other) = pair()
    torch._dynamo.reset()
    frames: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        frames.append(graph)
        return graph.forward

    model = torch.compile(sparse, backend=counting, dynamic=True)
    train(dense, one, 4)
    train(model, other, 4)
    first = len(frames)
    for seed in range(3):
        train(dense, one, 3, seed)
        train(model, other, 3, seed)
        sparse[0].weight.sum()
    assert_same(dense, sparse)
    assert len(frames) == first
    pickle.dumps(sparse.state_dict())
