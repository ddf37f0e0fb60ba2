"""Compact storage trains the same network as masked storage, with state for active weights only."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from common import (
    MORE_RECIPES,
    RECIPES,
    Inner,
    Recipe,
    assert_zeros,
    convnet,
    inner_named,
    loss_of,
    mlp,
    sparse,
    train,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.storage import ELEMENTWISE
from sparseopt.storage.compact import gather

ELEMENTWISE_INNERS = [
    "sgd", "sgd-nesterov", "sgd-fused", "adam-l2", "adam-amsgrad", "adam-foreach", "adamw",
    "adamw-fused", "rmsprop", "adagrad", "adadelta", "adamax", "nadam", "radam", "asgd", "rprop",
    "pytorch_optimizer.Lion",
]  # fmt: skip

CAST_ON_LOAD = ("nadam", "asgd")
"""torch casts their scalar state to the parameters' dtype on load: resuming differs without us."""


def assert_agree(one: tuple[nn.Module, SparseOptimizer], other: tuple[nn.Module, SparseOptimizer]):
    """Identical masks and history, weights to 1e-12."""
    for name, mask in one[1].masks.items():
        assert torch.equal(mask, other[1].masks[name]), name
    assert one[1].history == other[1].history
    for first, second in zip(one[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
@settings(max_examples=3, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(
    inner=st.sampled_from(ELEMENTWISE_INNERS),
    hidden=st.sampled_from([4, 8, 12]),
    every=st.integers(1, 4),
    seed=st.integers(0, 99),
    clip=st.sampled_from([None, 0.3]),
    closure=st.booleans(),
    switch=st.integers(1, 19),
)
def test_the_two_storages_train_the_same_network(
    recipe: Recipe, inner: str, hidden: int, every: int, seed: int, clip, closure, switch
):
    """Also when both are saved half-way and go on in the other storage."""
    options = {"update_every": every, "total_steps": 20, "seed": seed}
    pairs = {}
    for name in ("masked", "compact"):
        model = mlp((6, hidden, 5), seed=seed)
        pairs[name] = model, sparse(model, inner_named(inner), recipe, storage=name, **options)
        train(*pairs[name], switch, clip=clip, closure=closure)
    assert_agree(pairs["masked"], pairs["compact"])
    swapped = {}
    for name, other in (("masked", "compact"), ("compact", "masked")):
        model = copy.deepcopy(pairs[other][0])
        fresh = sparse(model, inner_named(inner), recipe, storage=name, **options | {"seed": 7})
        fresh.load_state_dict(through_a_file(pairs[other][1].state_dict()))
        swapped[name] = model, fresh
    for pair in (*pairs.values(), *swapped.values()):
        train(*pair, 20 - switch, first=switch, clip=clip, closure=closure)
        assert_zeros(pair[1])
    assert_agree(pairs["masked"], pairs["compact"])
    assert_agree(swapped["masked"], swapped["compact"])
    if inner not in CAST_ON_LOAD:
        assert_agree(pairs["masked"], swapped["masked"])


def through_a_file(state_dict: dict) -> dict:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("recipe", ["set", "rigl", "granet_g", "acdc"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_convolutions_agree_in_every_memory_format(recipe: str, memory: torch.memory_format):
    pairs = []
    for storage in ("masked", "compact"):
        model = convnet().to(memory_format=memory)
        pairs.append((model, sparse(model, inner_named("adamw"), recipe, storage=storage)))
        train(*pairs[-1], 25)
    assert_agree(*pairs)


@pytest.mark.parametrize("inner", ["adam-l2", "adamw", "adamw-fused"])
def test_a_clock_for_every_weight_agrees(inner: str):
    pairs = []
    for storage in ("masked", "compact"):
        model = mlp()
        optimizer = sparse(
            model, inner_named(inner), "rigl", storage=storage, grown_state="per_element_step"
        )
        pairs.append((model, optimizer))
        train(*pairs[-1], 30)
    assert_agree(*pairs)


@pytest.mark.parametrize("inner", ELEMENTWISE_INNERS)
def test_state_holds_the_active_weights_alone(inner: str):
    model = mlp()
    optimizer = sparse(model, inner_named(inner), "set", storage="compact")
    train(model, optimizer, 10)
    for layer in optimizer.layers:
        for key, value in optimizer.state.get(layer.weight, {}).items():
            if torch.is_tensor(value) and value.ndim:
                assert value.shape == (layer.nnz,), key


def test_adam_state_and_indices_take_a_quarter_of_dense_adam_at_most():
    model = mlp((200, 300, 100), dtype=torch.float32)
    optimizer = sparse(model, inner_named("adamw"), "set", sparsity=0.9, storage="compact")
    loss = model(torch.randn(4, 200)).square().mean()
    loss.backward()
    optimizer.step()
    held = sum(
        value.numel() * value.element_size()
        for layer in optimizer.layers
        for value in [*optimizer.state[layer.weight].values(), layer.index]
        if value.ndim
    )
    dense = 8 * sum(layer.numel for layer in optimizer.layers)
    assert held <= 0.25 * dense


def test_users_see_their_own_parameters_between_steps():
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), "rigl", storage="compact")
    own = list(model.parameters())
    seen_in_step = []
    optimizer.register_step_post_hook(lambda *_: seen_in_step.append(True))
    for step in range(8):
        train(model, optimizer, 1, first=step)
        assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], own, strict=True))
        assert set(optimizer.state) <= set(own)
        assert all(p.shape == q.shape for p, q in zip(own, mlp().parameters(), strict=True))
    assert len(seen_in_step) == 8


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_hooks_on_the_inner_optimizer_find_the_model_as_it_is(compute: str, closure: bool):
    """An average of the weights, gradients scaled before, weights shrunk after."""
    if compute == "sparse" and not torch.backends.mkl.is_available():
        pytest.skip("needs MKL")

    def run(storage: str, compute: str) -> list[torch.Tensor]:
        model = mlp()
        inner = inner_named("adamw")(model.parameters())
        more = {"model": model, "compute": compute, "sparsity": 0.8}
        optimizer = sparse(model, inner, "rigl", storage=storage, **more)
        average = [p.detach().clone() for p in model.parameters()]

        def before(*_: object) -> None:
            for p in model.parameters():
                if p.grad is not None:  # with a closure, those of the step before
                    p.grad.add_(p.detach(), alpha=0.5)

        def after(owner: torch.optim.Optimizer, *_: object) -> None:
            for mean, p in zip(average, owner.param_groups[0]["params"], strict=True):
                mean.lerp_(p.detach(), 0.3)
                p.data.mul_(0.9)

        inner.register_step_pre_hook(before)
        inner.register_step_post_hook(after)
        train(model, optimizer, 9, closure=closure)
        return [*average, *model.parameters()]

    found, expected = run("compact", compute), run("masked", "dense")
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_an_update_ranks_what_a_hook_on_the_inner_optimizer_left():
    """Written through .data, by which nothing is counted."""

    def turned_round(model: nn.Module) -> None:
        for p in model.parameters():
            p.data.copy_(torch.where(p == 0, 0.0, 0.01 / p))

    masks = []
    for storage in ("masked", "compact"):
        model = mlp()
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = sparse(model, inner, "set", storage=storage)
        inner.register_step_post_hook(lambda *_, model=model: turned_round(model))
        train(model, optimizer, 9)
        masks.append(optimizer.masks)
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.parametrize("where", ["hook", "step", "second layer"])
def test_a_step_that_fails_gives_the_parameters_back(where: str, monkeypatch):
    model = mlp()
    inner = inner_named("adamw")(model.parameters())
    optimizer = sparse(model, inner, "set", storage="compact")
    train(model, optimizer, 2)

    def broken(*_: object) -> None:
        raise RuntimeError("no power")

    handle = inner.register_step_pre_hook(broken)
    if where != "hook":
        handle.remove()
    if where == "step":
        inner.step = broken
    if where == "second layer":  # two calls for the first: its weight and its gradient
        calls = iter([gather, gather, broken])
        monkeypatch.setattr("sparseopt.storage.compact.gather", lambda *a: next(calls)(*a))
        _ = [p.data for p in model.parameters()]  # might be written: read again
    loss_of(model, 2).backward()
    with pytest.raises(RuntimeError, match="no power"):
        optimizer.step()
    own = list(model.parameters())
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], own, strict=True))
    assert set(optimizer.state) <= set(own)
    handle.remove()
    monkeypatch.undo()
    inner.__dict__.pop("step", None)
    train(model, optimizer, 3, first=2)
    assert_zeros(optimizer)


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_weights_written_between_steps_are_taken_up(storage: str):
    """Also through .data, which autograd does not count: the step starts from what is there."""
    model = mlp()
    optimizer = sparse(model, inner_named("sgd"), "static", storage=storage)
    train(model, optimizer, 2)
    for layer in optimizer.layers:
        layer.weight.data.mul_(0.5).add_(1.0)
    expected = [layer.weight.detach().clone() for layer in optimizer.layers]
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    gradients = [layer.weight.grad.clone() for layer in optimizer.layers]
    optimizer.step()
    for layer, before, gradient in zip(optimizer.layers, expected, gradients, strict=True):
        wanted = (before - 0.1 * gradient) * layer.mask
        torch.testing.assert_close(layer.weight.detach(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["muon-like", "shampoo-like", "adafactor", "lbfgs"])
def test_optimizers_that_mix_entries_are_refused_by_name(name: str):
    inner: Inner = inner_named(name)
    model = inner.model()
    optimizer = inner(model.parameters())
    with pytest.raises(ValueError, match=type(optimizer).__name__):
        sparse(model, optimizer, "set", storage="compact")
    assert "storage='masked'" in repr(sparse(model, optimizer, "set", storage="auto"))


def test_the_list_of_elementwise_optimizers_can_be_extended():
    class Mine(torch.optim.SGD):
        pass

    model = mlp()
    with pytest.raises(ValueError, match="ELEMENTWISE.add"):
        sparse(model, Mine(model.parameters(), lr=0.1), "set", storage="compact")
    ELEMENTWISE.add("Mine")
    try:
        optimizer = sparse(model, Mine(model.parameters(), lr=0.1), "set", storage="compact")
        train(model, optimizer, 5)
        assert_zeros(optimizer)
    finally:
        ELEMENTWISE.discard("Mine")


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_an_update_asked_for_ranks_weights_as_they_are(storage: str, compute: str):
    if storage == "masked" and compute == "sparse":
        pytest.skip("not held compactly")
    if compute == "sparse" and not torch.backends.mkl.is_available():
        pytest.skip("needs MKL")
    model = mlp((20, 30))
    optimizer = sparse(
        model, inner_named("sgd"), "set", sparsity=0.8, storage=storage, compute=compute,
        update_every=100, total_steps=None,
    )  # fmt: skip
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(4, 20, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    layer = optimizer.layers[0]
    active = layer.mask.view(-1).nonzero().view(-1)
    small, large = active[::4], active[torch.arange(len(active)) % 4 != 0]
    layer.weight.data.view(-1)[small] = 1e-9  # seen by no count of writes
    layer.weight.data.view(-1)[large] = 1.0
    record = optimizer.update_topology()
    assert record is not None and record.dropped > len(small)
    assert bool((layer.weight.view(-1)[large] == 1.0).sum() > len(large) * 0.9)
    assert layer.values is None


@pytest.mark.parametrize("read", ["nothing", "checkpoint", "update"])
@pytest.mark.parametrize("first", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_model_that_changes_its_memory_format_trains_on(first: torch.memory_format, read: str):
    then = {torch.contiguous_format: torch.channels_last}.get(first, torch.contiguous_format)
    runs = []
    for storage in ("masked", "compact"):
        model = convnet().to(memory_format=first)
        optimizer = sparse(model, inner_named("adamw"), "set", storage=storage)
        train(model, optimizer, 4)
        model.to(memory_format=then)
        if read == "update":
            optimizer.update_topology()
        saved = copy.deepcopy(optimizer.state_dict()) if read == "checkpoint" else None
        train(model, optimizer, 4, first=4)
        if saved is not None:
            optimizer.load_state_dict(saved)
        train(model, optimizer, 4, first=8)
        runs.append((model, optimizer))
    assert_agree(*runs)


def test_a_model_that_is_moved_to_another_device_trains_on():
    """Without a second device: what is packed is put elsewhere, which the weight has left."""
    runs = []
    for storage in ("masked", "compact"):
        model = mlp()
        optimizer = sparse(model, inner_named("adamw"), "set", storage=storage)
        for layer in optimizer.layers if storage == "compact" else ():
            packed = optimizer._storage.packed[layer.key]
            layer.index = packed.index = packed.index.to("meta")
            packed.values = nn.Parameter(packed.values.detach().to("meta"))
        train(model, optimizer, 8)
        runs.append((model, optimizer))
    assert_agree(*runs)


def test_a_weight_that_compact_storage_cannot_follow_is_refused_by_name():
    model = mlp()
    optimizer = sparse(model, inner_named("sgd"), "set", storage="compact")
    train(model, optimizer, 2)
    model[2].weight.data = torch.randn(5, 16, dtype=torch.float64)[:, ::2]
    loss_of(model, 2).backward()
    with pytest.raises(RuntimeError, match=r"'2\.weight'.*storage='masked'"):
        optimizer.step()
    assert all(
        p is q for p, q in zip(optimizer.param_groups[0]["params"], model.parameters(), strict=True)
    )
    model[2].weight.data = model[2].weight.data.contiguous()
    optimizer.step()


def test_an_unknown_storage_is_refused_with_the_names_that_exist():
    model = mlp()
    with pytest.raises(ValueError, match="'auto', 'masked', 'compact'"):
        sparse(model, inner_named("sgd"), "set", storage="csr")


def test_auto_keeps_small_networks_masked_and_packs_heavy_rules_on_large_ones():
    small, large = mlp(), mlp((300, 400), dtype=torch.float32)
    adam, sgd = inner_named("adamw"), inner_named("sgd")
    assert "'masked'" in repr(sparse(small, adam, "set", sparsity=0.9))
    assert "'compact'" in repr(sparse(large, adam, "set", sparsity=0.9))
    assert "'masked'" in repr(sparse(large, sgd, "set", sparsity=0.5))


def test_a_new_group_is_packed_too():
    model, more = mlp(), nn.Linear(6, 9).double()
    optimizer = sparse(model, inner_named("adamw"), "set", storage="compact")
    train(model, optimizer, 3)
    optimizer.add_param_group({"params": list(more.parameters())})
    more(torch.ones(2, 6).double()).square().sum().backward()
    optimizer.step()
    state = optimizer.state[more.weight]["exp_avg"]
    assert state.shape == (optimizer.layers[-1].nnz,)
    assert_zeros(optimizer)
