"""Zeros stay zeros and counts stay exact, for every recipe under every optimizer."""

import copy
import math
import random
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch
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
    batch,
    convnet,
    inner_named,
    loss_of,
    mlp,
    numbers,
    rng,
    single,
    sparse,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

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


def weights(shapes, seed=0, dtype=torch.float64):
    return [
        nn.Parameter(torch.randn(shape, generator=rng(seed + i), dtype=torch.float64).to(dtype))
        for i, shape in enumerate(shapes)
    ]


def give_gradients(parameters, seed):
    for i, p in enumerate(parameters):
        p.grad = torch.randn(p.shape, generator=rng(1000 * seed + i), dtype=torch.float64).to(p)


def take_all(name, weight):
    return True


def state_of(optimizer: SparseOptimizer):
    """Per layer: the optimizer state with one value per weight, in the layout of the weight."""
    saved = optimizer.state_dict()
    ids = [i for group in saved["param_groups"] for i in group["params"]]
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    for layer in optimizer.layers:
        position = next(i for i, p in enumerate(flat) if p is layer.weight)
        entries = saved["state"].get(ids[position], {})
        yield layer, {
            key: value for key, value in entries.items()
            if torch.is_tensor(value) and value.shape == layer.weight.shape
            and not key.startswith("sparse_")
        }  # fmt: skip


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
@pytest.mark.parametrize("algo", ["set", "rigl", "srigl"])
def test_a_network_without_a_weight_is_dense(algo):
    model = nn.Linear(5, 0)
    optimizer = sparse(model, lambda params: SGD(params, lr=0.1), algo, update_every=1)
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


# --- state (invariant 7, row 7) -------------------------------------------------------------------


@pytest.mark.parametrize("recipe", ["static", "set", "rigl"])
@pytest.mark.parametrize("inner", [i for i in INNERS if i.elementwise], ids=str)
def test_state_of_inactive_weights_is_that_of_a_weight_that_saw_no_gradient(inner, recipe):
    model = inner.model()
    optimizer = sparse(model, inner, recipe)

    def check(step):
        for layer, state in state_of(optimizer):
            for key, value in state.items():
                neutral = neutral_value(key, optimizer.param_groups[0])
                # Adamax and AdaBelief add their eps at every step
                slack = 1e-7 if key in ("exp_inf", "exp_avg_var") else 0.0
                assert ((value - neutral)[~layer.mask].abs() <= slack).all(), key

    train(model, optimizer, 20, after_step=check)


def neutral_value(key, group):
    named = {"sum": "initial_accumulator_value", "step_size": "lr"}
    return group[named[key]] if key in named else 0.0


@pytest.mark.parametrize("kind, options", [(SGD, {"momentum": 0.9}), (AdamW, {})])
def test_a_weight_dropped_and_grown_again_with_zero_gradient_stays_at_zero(kind, options):
    p = nn.Parameter(torch.ones(4, 4, dtype=torch.float64))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[0, 0] = False
    optimizer = SparseOptimizer(
        kind([p], lr=0.1, **options), "rigl", sparsity=1 / 16, topology={"0.0": mask},
        update_every=1, drop_fraction=1 / 15, include=take_all,
    )  # fmt: skip
    gradients = torch.full((4, 4), 0.5, dtype=torch.float64)
    gradients[3, 3] = 20.0 if kind is SGD else 1.0

    def step(grow_at, small):
        p.grad = gradients.clone()
        p.grad[small] = 0.0
        p.grad[grow_at] = 1e3 if not optimizer.masks["0.0"][grow_at] else 0.0
        with torch.no_grad():
            p[small] = p[small] * 1e-9
        optimizer.step()

    step((0, 0), (3, 3))  # drops (3, 3), which has momentum; grows (0, 0)
    assert optimizer.masks["0.0"][0, 0] and not optimizer.masks["0.0"][3, 3]
    step((3, 3), (1, 1))  # grows (3, 3) again
    assert optimizer.masks["0.0"][3, 3] and p[3, 3] == 0
    optimizer.update_every = 10**6
    p.grad = torch.zeros_like(p)
    optimizer.step()
    assert p[3, 3] == 0


def test_preconditioners_with_the_shape_of_a_square_weight_are_left_alone():
    inner = inner_named("shampoo-like")
    model = mlp((6, 6, 5))
    optimizer = sparse(model, inner, "set", update_every=10**6, total_steps=None)
    train(model, optimizer, 3)
    before = copy.deepcopy([dict(optimizer.state[layer.weight]) for layer in optimizer.layers])
    with pytest.warns(UserWarning, match="'left' of ShampooLike.*left alone"):
        optimizer.update_topology()
    assert_same([dict(optimizer.state[layer.weight]) for layer in optimizer.layers], before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.update_topology()  # named once


def test_rprop_keeps_positive_step_sizes():
    model = mlp()
    optimizer = sparse(model, inner_named("rprop"), "set")
    train(model, optimizer, 20)
    for layer in optimizer.layers:
        assert (optimizer.state[layer.weight]["step_size"] > 0).all()


def test_gradient_noise_written_behind_autograd_reaches_no_state():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), "static")
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for p in model.parameters():
            p.grad.data.add_(torch.randn(p.shape, generator=rng(step), dtype=p.dtype))
        optimizer.step()
    for layer, state in state_of(optimizer):
        assert (state["momentum_buffer"][~layer.mask] == 0).all()


# --- selection by a score: scaling, signs, permutations (invariants 10, 11, 12) -------------------


def masks_after(weight, gradient, mask, algo, **options):
    p, optimizer = single(weight, mask, algo, drop_fraction=0.4, **options)
    p.grad = gradient.clone()
    optimizer.step()
    return optimizer.masks["0.0"].clone(), optimizer


@st.composite
def trained(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    size = math.prod(shape)
    seed = draw(st.integers(0, 2**20))
    magnitudes = torch.randperm(size, generator=rng(seed)).double() + 1
    signs = torch.randint(2, (size,), generator=rng(seed + 1)) * 2 - 1
    gradient = (torch.randperm(size, generator=rng(seed + 2)).double() + 1) * signs.flip(0)
    active = draw(st.integers(1, size))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=rng(seed + 3))[:active]] = True
    return [t.view(shape) for t in (magnitudes * signs * mask, gradient, mask)]


@given(trained(), st.sampled_from([0.25, 3.0, 1024.0]), st.sampled_from([0.5, 1e3]))
def test_masks_do_not_depend_on_the_scale_of_weights_or_gradients(layer, c, d):
    weight, gradient, mask = layer
    for algo in ("set", "rigl"):
        one, _ = masks_after(weight, gradient, mask, algo)
        other, _ = masks_after(c * weight, d * gradient, mask, algo)
        assert torch.equal(one, other)


@given(trained(), st.integers(0, 2**20))
def test_masks_do_not_depend_on_signs(layer, seed):
    weight, gradient, mask = layer
    flips = torch.randint(2, weight.shape, generator=rng(seed)) * 2 - 1
    for algo in ("set", "rigl"):
        one, _ = masks_after(weight, gradient, mask, algo)
        other, _ = masks_after(weight * flips, gradient * flips.flip(0), mask, algo)
        assert torch.equal(one, other)


@given(trained(), st.integers(0, 2**20))
def test_permuted_positions_give_a_permuted_mask(layer, seed):
    order = torch.randperm(layer[0].numel(), generator=rng(seed))
    permuted = [t.flatten()[order].view(t.shape) for t in layer]
    one, _ = masks_after(*layer, "rigl")
    other, _ = masks_after(*permuted, "rigl")
    assert torch.equal(one.flatten()[order].view(one.shape), other)


@given(trained())
def test_rigl_grows_the_largest_gradients_and_drops_the_smallest_weights(layer):
    weight, gradient, mask = layer
    new, optimizer = masks_after(weight, gradient, mask, "rigl", regrow_same="forbid")
    dropped, kept, grown = mask & ~new, mask & new, new & ~mask
    if dropped.any() and kept.any():
        assert weight[dropped].abs().max() <= weight[kept].abs().min()
    left = ~(mask | grown)
    if grown.any() and left.any():
        assert gradient[grown].abs().min() >= gradient[left].abs().max()
    k = math.floor(0.4 * int(mask.sum()) + 1e-9)
    assert int(grown.sum()) == min(k, int((~mask).sum())) == optimizer.history[0].grown


def test_another_layer_has_no_influence_layerwise_and_has_globally():
    results = {}
    for scope in ("layer", "global"):
        for scale in (1.0, 100.0):
            parameters = weights([(8, 8), (8, 8)])
            parameters[1].data.mul_(scale)
            optimizer = SparseOptimizer(
                SGD(parameters, lr=1e-9), "rigl", sparsity=0.5, update_every=1, scope=scope
            )
            give_gradients(parameters, 1)
            optimizer.step()
            results[scope, scale] = optimizer.masks["0.0"].clone()
    assert torch.equal(results["layer", 1.0], results["layer", 100.0])
    assert not torch.equal(results["global", 1.0], results["global", 100.0])


def test_random_growth_is_uniform_over_the_candidates():
    """Chi-square with 35 cells over 1200 seeds: 66.6 is passed once in a thousand times."""
    weight = torch.arange(1, 41, dtype=torch.float64).view(5, 8)
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[0, :] = True
    seen = torch.zeros(5, 8)
    for seed in range(1200):
        new, _ = masks_after(weight, weight, mask, "set", seed=seed)
        assert new[0, 3:].all()  # the kept are never touched
        seen += new
    seen[0, 3:] = 0
    cells = torch.cat([seen[0, :3], seen[1:].flatten()])
    expected = 1200 * 3 / 35
    assert float(((cells - expected) ** 2 / expected).sum()) < 66.6


def test_random_growth_of_a_layer_does_not_depend_on_the_other_layers():
    masks = []
    for others in (1, 3):
        parameters = weights([(8, 8)] * (1 + others))
        optimizer = SparseOptimizer(
            SGD(parameters, lr=1e-9), "set", update_every=1, distribution="uniform"
        )
        for step in range(3):
            give_gradients(parameters, step)
            optimizer.step()
        masks.append(optimizer.masks["0.0"].clone())
    assert torch.equal(*masks)


# --- numbers that are not finite (row 23, invariant 21) -------------------------------------------


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("inner", [i for i in COMMON_INNERS if i.elementwise], ids=str)
def test_bad_gradients_of_inactive_weights_are_ignored(inner, bad):
    models = [mlp(), mlp()]
    optimizers = [sparse(model, inner, "static") for model in models]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            loss_of(model, step).backward()
        for layer in optimizers[0].layers:
            layer.weight.grad[~layer.mask] = bad
        for optimizer in optimizers:
            optimizer.step()
    assert_same(dict(models[0].state_dict()), dict(models[1].state_dict()))
    assert_same(optimizers[0].state_dict(), optimizers[1].state_dict())


@pytest.mark.parametrize("active", [False, True])
def test_an_update_with_bad_gradients_is_skipped_counted_and_visible(active):
    model = mlp()
    seen = []
    optimizer = sparse(model, Adam(model.parameters()), "rigl", on_update=seen.append)
    train(model, optimizer, 2)
    before = copy.deepcopy(optimizer.masks)
    optimizer.zero_grad()
    loss = loss_of(model, 2)
    weight = optimizer.layers[0].weight
    where = optimizer.layers[0].mask if active else ~optimizer.layers[0].mask
    poison = torch.zeros_like(weight)
    poison[tuple(where.nonzero()[0])] = math.nan
    handle = weight.register_hook(lambda grad: grad + poison)
    loss.backward()
    handle.remove()
    if active:  # a scaler would have skipped the step; by hand only the topology is protected
        weight.grad = torch.where(weight.grad.isnan(), math.inf, weight.grad)
    optimizer.step()
    assert_same(dict(optimizer.masks), before)
    assert (optimizer.steps, optimizer.updates) == (3, 0)
    assert optimizer.history[-1].skipped and optimizer.history[-1].step == 3
    assert seen == optimizer.history
    assert "1 skipped" in optimizer.summary()
    if not active:
        train(model, optimizer, 4, first=3)
        assert optimizer.updates == 1 and not optimizer.history[-1].skipped


def test_set_skips_its_update_when_a_weight_is_not_finite():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    before = copy.deepcopy(optimizer.masks)
    train(model, optimizer, 2)
    with torch.no_grad():
        model[0].weight[tuple(optimizer.masks["0.weight"].nonzero()[0])] = math.nan
    train(model, optimizer, 1, first=2)
    assert_same(dict(optimizer.masks), before)
    assert optimizer.history[-1].skipped


def test_a_layer_without_gradient_keeps_its_topology_under_gradient_growth():
    model = mlp((6, 8, 8, 5))
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl")
    before = copy.deepcopy(optimizer.masks)
    for step in range(3):
        optimizer.zero_grad()
        hidden = model[0](batch(model, step)[0]).detach()
        model[4](model[2](hidden.tanh()).tanh()).sum().backward()
        optimizer.step()
    assert torch.equal(optimizer.masks["0.weight"], before["0.weight"])
    assert not torch.equal(optimizer.masks["2.weight"], before["2.weight"])
    assert_zeros(optimizer)


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
