"""Zeros stay zeros and counts stay exact, for every recipe under every optimizer."""

import copy
import math
import random
from fractions import Fraction

import numpy as np
import pytest
import torch
from by_hand import give_gradients, state_of, take_all, weights
from common import (
    COMMON_INNERS,
    DYNAMIC,
    INNERS,
    MORE_RECIPES,
    RECIPES,
    TORCH_INNERS,
    UNKNOWN_STATE,
    Recipe,
    assert_same,
    assert_zeros,
    convnet,
    inner_named,
    loss_of,
    mlp,
    numbers,
    sparse,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Optimizer

from sparseopt import SparseOptimizer, distributions

pytestmark = [
    pytest.mark.filterwarnings(UNKNOWN_STATE),
    pytest.mark.filterwarnings("ignore:the density leaves no weight to:UserWarning"),
]

SHAPES = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda s: math.prod(s) <= 200),
    min_size=1,
    max_size=4,
)
SPARSITIES = st.integers(0, 990).map(lambda thousandths: thousandths / 1000)


# --- zeros (row 2, invariant 6) -------------------------------------------------------------------


def test_every_torch_optimizer_is_on_the_list():
    known = {
        kind for kind in vars(torch.optim).values()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer
    }  # fmt: skip
    there = [one for one in TORCH_INNERS if one.name != "muon" or hasattr(torch.optim, "Muon")]
    tried = {type(inner.make([nn.Parameter(torch.ones(2, 2))])) for inner in there}
    assert known - tried == {torch.optim.SparseAdam}


@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("recipe", ["static", "set", "rigl"])
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_inactive_weights_are_exactly_zero_after_every_step(inner, recipe, storage):
    model = inner.model(sizes=(6, 8, 8, 5))
    optimizer = sparse(model, inner, recipe, storage=storage)
    before = numbers(optimizer)
    assert_zeros(optimizer)
    start = [p.detach().clone() for p in model.parameters()]
    train(
        model,
        optimizer,
        20,
        closure=inner.needs_closure,
        after_step=lambda step: assert_zeros(optimizer),
    )
    assert numbers(optimizer) == before and optimizer.steps == 20
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), start, strict=True))
    assert all(p.isfinite().all() for p in model.parameters())
    if recipe != "static":
        assert optimizer.updates == len(optimizer.history) > 0
        assert sum(record.grown for record in optimizer.history) > 0


@pytest.mark.parametrize("inner", [i for i in INNERS if not i.needs_closure], ids=str)
def test_every_optimizer_steps_through_a_closure_with_the_same_zeros(inner):
    model, other = inner.model(), inner.model()
    one, two = sparse(model, inner, "rigl"), sparse(other, inner, "rigl")
    train(model, one, 7)
    train(other, two, 7, closure=True)
    assert_zeros(two)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(one.masks, two.masks)


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
def test_convolutions_stay_sparse_in_every_memory_format(recipe):
    models = [convnet(), convnet().to(memory_format=torch.channels_last)]
    optimizers = [sparse(model, inner_named("adamw"), recipe) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer, 7, after_step=lambda step, o=optimizer: assert_zeros(o))
    assert_same(*[{name: m.contiguous() for name, m in o.masks.items()} for o in optimizers])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("recipe", DYNAMIC, ids=str)
def test_low_precision_keeps_zeros_and_counts(recipe, dtype):
    model = mlp((6, 8, 5), dtype=dtype)
    optimizer = sparse(model, inner_named("sgd-nesterov"), recipe)
    total = sum(numbers(optimizer))
    train(model, optimizer, 7, after_step=lambda step: assert_zeros(optimizer))
    assert sum(numbers(optimizer)) == total


def test_sparse_adam_is_refused_by_name_of_the_reason():
    model = mlp()
    optimizer = None
    with pytest.raises((TypeError, RuntimeError), match="(?i)sparse"):
        optimizer = sparse(model, torch.optim.SparseAdam)
        train(model, optimizer, 1)


# --- counts (row 3, invariants 1, 2, 3, 23) -------------------------------------------------------


@settings(max_examples=60)
@given(SHAPES, SPARSITIES, st.sampled_from(["uniform", "er", "erk"]))
def test_counts_at_the_start_are_those_of_the_distribution(shapes, sparsity, distribution):
    parameters = weights(shapes)
    optimizer = SparseOptimizer(
        SGD(parameters, lr=0.1), sparsity=sparsity, distribution=distribution, include=take_all
    )
    total = sum(math.prod(shape) for shape in shapes)
    assert numbers(optimizer) == getattr(distributions, distribution)(shapes, sparsity)
    expected = math.floor((1 - Fraction(str(sparsity))) * total + Fraction(1, 2))
    assert sum(numbers(optimizer)) == max(expected, len(shapes))
    assert [layer.nnz for layer in optimizer.layers] == numbers(optimizer)
    assert optimizer.density + optimizer.sparsity == pytest.approx(1)
    assert optimizer.density == sum(numbers(optimizer)) / total


@settings(max_examples=60)
@given(
    SHAPES,
    SPARSITIES,
    st.sampled_from(RECIPES),
    st.sampled_from(COMMON_INNERS),
    st.integers(1, 4),
    st.integers(4, 12),
    st.sampled_from(["masked", "auto"]),
)
def test_counts_zeros_and_state_hold_for_any_shapes(
    shapes, sparsity, recipe, inner, every, total_steps, storage
):
    """Invariants 1, 2, 3, 6, 7, 18 and 23 along a whole training."""
    parameters = weights(shapes)
    optimizer = SparseOptimizer(
        inner(parameters), recipe.algo, sparsity=sparsity, total_steps=total_steps,
        update_every=every, include=take_all, storage=storage, **recipe.options,
    ) if can_update(recipe, total_steps, every) else None  # fmt: skip
    if optimizer is None:
        return
    before = numbers(optimizer)
    expected = []
    for step in range(1, total_steps + 1):
        old = copy.deepcopy(optimizer.masks)
        give_gradients(parameters, step)
        optimizer.step()
        assert_zeros(optimizer)
        stop = recipe.options.get("stop", 0.75 if recipe.algo == "rigl" else 1.0)
        due = step % every == 0 and step < total_steps and step <= stop * total_steps
        if due and recipe.algo != "static":
            expected.append(step)
            record = optimizer.history[-1]
            assert record.dropped == record.grown >= record.regrown >= 0
            moved = sum(int((m & ~old[n]).sum()) for n, m in optimizer.masks.items())
            assert record.grown - record.regrown == moved
            for layer, state in state_of(optimizer):
                for key, value in state.items():
                    assert (value[~layer.mask] == 0).all(), key
        else:
            assert_same(dict(optimizer.masks), old)
        assert sum(numbers(optimizer)) == sum(before) and min(numbers(optimizer)) >= 1
        if recipe.layers_keep_counts:
            assert numbers(optimizer) == before
    assert [record.step for record in optimizer.history] == expected
    assert (optimizer.steps, optimizer.updates) == (total_steps, len(expected))


def can_update(recipe, total_steps, every):
    stop = recipe.options.get("stop", 0.75 if recipe.algo == "rigl" else 1.0)
    last = min(math.floor(stop * total_steps + 1e-9), total_steps - 1)
    return recipe.algo == "static" or last >= every


@pytest.mark.parametrize("recipe", DYNAMIC, ids=str)
def test_all_equal_bfloat16_weights_keep_their_counts_through_50_updates(recipe):
    p = nn.Parameter(torch.full((20, 30), 0.5, dtype=torch.bfloat16))
    q = nn.Parameter(torch.zeros(7, 11, dtype=torch.bfloat16))
    optimizer = SparseOptimizer(
        SGD([p, q], lr=0.25), recipe.algo, sparsity=0.8, update_every=1, **recipe.options
    )
    before = numbers(optimizer)
    for _ in range(50):
        p.grad, q.grad = torch.zeros_like(p), torch.ones_like(q)
        optimizer.step()
        assert_zeros(optimizer)
        assert sum(numbers(optimizer)) == sum(before)
        if recipe.layers_keep_counts:
            assert numbers(optimizer) == before
    assert optimizer.updates == 50


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.filterwarnings("ignore:nm. 0.weight stay dense:UserWarning")
@pytest.mark.parametrize("recipe", [*RECIPES, *MORE_RECIPES], ids=str)
@pytest.mark.parametrize("empty", [(5, 0), (0, 6)], ids=str)
def test_a_layer_without_weights_changes_nothing(empty, recipe):
    model = nn.ModuleList([nn.Linear(*empty), nn.Linear(6, 8)])
    optimizer = sparse(model, lambda params: SGD(params, lr=0.1), recipe)
    for _ in range(7):
        optimizer.zero_grad()
        sum(part(torch.ones(3, part.in_features)).sum() for part in model).backward()
        optimizer.step()
        assert_zeros(optimizer)
    assert 0.0 < optimizer.density <= 1.0


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize(
    ("algo", "more"),
    [("set", {}), ("rigl", {}), ("srigl", {}), ("set", {"scope": "global"}),
     ("mest_g", {"scope": "global"})],
)  # fmt: skip
def test_a_network_without_a_weight_is_dense(algo, more):
    model = nn.Linear(5, 0)
    optimizer = sparse(model, lambda params: SGD(params, lr=0.1), algo, update_every=1, **more)
    model(torch.ones(3, 5)).sum().backward()
    optimizer.step()
    assert optimizer.density == 1.0 and optimizer.history[0].exploration_rate == 1.0


def test_the_sum_over_layers_is_the_erk_budget():
    model = convnet()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.6)
    shapes = [tuple(layer.weight.shape) for layer in optimizer.layers]
    ideal = distributions.densities("erk", shapes, 0.6)
    train(model, optimizer, 9)
    for layer, density in zip(optimizer.layers, ideal, strict=True):
        assert abs(layer.nnz - density * layer.weight.numel()) <= 1
    total = sum(math.prod(shape) for shape in shapes)
    assert sum(numbers(optimizer)) == math.floor(0.4 * total + 0.5)


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
def test_random_streams_of_torch_numpy_and_python_are_untouched(recipe):
    model = mlp()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    optimizer = sparse(model, inner_named("adamw"), recipe)
    train(model, optimizer, 7)
    copy.deepcopy(optimizer).load_state_dict(optimizer.state_dict())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
def test_the_same_seed_gives_the_same_masks_and_another_seed_others(recipe):
    runs = []
    for seed in (3, 3, 4):
        model = mlp()
        torch.manual_seed(seed + len(runs))  # the global seed has no influence
        optimizer = sparse(model, inner_named("sgd"), recipe, seed=seed)
        train(model, optimizer, 7)
        runs.append(optimizer.masks)
    assert_same(runs[0], runs[1])
    if recipe.options.get("topology") != "magnitude" and recipe.algo not in ("gmp", "acdc"):
        assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


# --- the dense limit and the still topology (invariant 4) -----------------------------------------


@pytest.mark.parametrize("recipe", [Recipe("static"), Recipe("set"), Recipe("rigl")], ids=str)
@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_at_sparsity_zero_the_wrapper_is_the_inner_optimizer_bit_for_bit(inner, recipe):
    model, bare_model = inner.model(), inner.model()
    optimizer, bare = sparse(model, inner, recipe, sparsity=0.0), inner(bare_model.parameters())
    train(model, optimizer, 10, closure=inner.needs_closure)
    if recipe.algo == "static":
        train(bare_model, bare, 10, closure=inner.needs_closure)
        assert_same(dict(model.state_dict()), dict(bare_model.state_dict()))
        for p, q in zip(model.parameters(), bare_model.parameters(), strict=True):
            if p in optimizer.state:
                assert_same(dict(optimizer.state[p]), dict(bare.state[q]))
    assert optimizer.density == 1.0
    assert all(mask.all() for mask in optimizer.masks.values())


@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_at_sparsity_zero_updates_exchange_nothing_that_was_not_there(algo):
    """With every place taken, what is dropped comes straight back, and keeps its value."""
    model, bare_model = mlp(), mlp()
    inner = inner_named("adamw")
    train(model, sparse(model, inner, algo, sparsity=0.0), 10)
    train(bare_model, inner(bare_model.parameters()), 10)
    assert_same(dict(model.state_dict()), dict(bare_model.state_dict()))


@pytest.mark.parametrize("inner", [i for i in INNERS if i.elementwise], ids=str)
def test_a_still_topology_equals_masking_by_hand(inner):
    model, by_hand = inner.model(), inner.model()
    optimizer = sparse(model, inner, Recipe("set", {"drop_fraction": 0.0}))
    masks, bare = optimizer.masks, inner(by_hand.parameters())
    named = dict(by_hand.named_parameters())
    for name, mask in masks.items():
        named[name].data.masked_fill_(~mask, 0)
    for step in range(10):
        bare.zero_grad()
        loss_of(by_hand, step).backward()
        for name, mask in masks.items():
            named[name].grad.masked_fill_(~mask, 0)
        bare.step()
        for name, mask in masks.items():
            named[name].data.masked_fill_(~mask, 0)
    train(model, optimizer, 10)
    assert_same(dict(model.state_dict()), dict(by_hand.state_dict()))


# --- the exploration rate (invariant 23) ----------------------------------------------------------


def test_the_union_of_masks_never_shrinks_and_is_reported():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", update_every=1)
    union = copy.deepcopy(optimizer.masks)
    total = sum(mask.numel() for mask in union.values())
    rates = [optimizer.density]
    for step in range(10):
        train(model, optimizer, 1, first=step)
        for name, mask in optimizer.masks.items():
            union[name] |= mask
        seen = sum(int(mask.sum()) for mask in union.values()) / total
        assert optimizer.history[-1].exploration_rate == pytest.approx(seen)
        rates.append(optimizer.history[-1].exploration_rate)
    assert rates == sorted(rates) and rates[-1] > rates[0]
