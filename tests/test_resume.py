"""Checkpoints: an interrupted run goes on bit for bit; what does not fit is refused."""

import copy

import pytest
import torch
from common import (
    INNERS,
    MORE_RECIPES,
    RECIPES,
    UNKNOWN_STATE,
    Recipe,
    assert_same,
    assert_zeros,
    inner_named,
    mlp,
    snapshot,
    sparse,
    through_a_file,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import CosineAnnealingLR

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


def everything(model, optimizer):
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        if "exp_avg_var" in entry and "sparse_mask" in entry:
            entry["exp_avg_var"][~entry["sparse_mask"]] = 0  # AdaBelief adds its eps everywhere
    return copy.deepcopy(
        {
            "weights": dict(model.state_dict()),
            "masks": dict(optimizer.masks),
            "optimizer": saved,
            "steps": optimizer.steps,
            "updates": optimizer.updates,
            "history": [dict(record) for record in optimizer.history],
        }
    )


def resumed(inner, recipe, first, second, **options):
    """What a run of first + second steps ends in, uninterrupted and through a checkpoint."""
    model = inner.model(dtype=torch.float32)  # torch casts scalar state to the weights' type
    optimizer = sparse(model, inner, recipe, seed=1, **options)
    scheduler = CosineAnnealingLR(optimizer, 12)
    train_with(model, optimizer, scheduler, inner, first)
    saved = through_a_file([model.state_dict(), optimizer.state_dict(), scheduler.state_dict()])
    other = inner.model(seed=99, dtype=torch.float32)
    restored = sparse(other, inner, recipe, seed=77, **options)
    its_scheduler = CosineAnnealingLR(restored, 12)
    train_with(other, restored, its_scheduler, inner, 2, 50)  # its own past must not matter
    for what, state in zip((other, restored, its_scheduler), saved, strict=True):
        what.load_state_dict(state)
    assert_zeros(restored)
    assert_same(everything(model, optimizer), everything(other, restored))
    train_with(model, optimizer, scheduler, inner, second, first)
    train_with(other, restored, its_scheduler, inner, second, first)
    return everything(model, optimizer), everything(other, restored)


def train_with(model, optimizer, scheduler, inner, steps, first=0):
    train(
        model, optimizer, steps, first, closure=inner.needs_closure,
        after_step=lambda step: scheduler.step(),
    )  # fmt: skip


# --- bit-equal resume (row 4) ---------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
@pytest.mark.parametrize("first", [0, 1, 5, 6])
def test_a_resumed_run_is_bit_equal_for_every_recipe(recipe, first):
    assert_same(*resumed(inner_named("adamw"), recipe, first, 11 - first))


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_a_resumed_run_is_bit_equal_under_every_optimizer(inner):
    assert_same(*resumed(inner, Recipe("rigl"), 5, 6))


@pytest.mark.parametrize("inner", ["adam-l2", "adamw"])
@pytest.mark.parametrize("first", [1, 2, 4, 8])
def test_a_resumed_run_keeps_the_clock_of_every_weight(inner, first):
    recipe = Recipe("rigl", {"grown_state": "per_element_step"})
    assert_same(*resumed(inner_named(inner), recipe, first, 12 - first))


def test_resuming_with_an_update_on_request_still_to_come():
    model, other = mlp(), mlp(seed=9)
    one, two = (
        sparse(m, inner_named("adamw"), "rigl", total_steps=None, update_every=99)
        for m in (model, other)
    )
    train(model, one, 3)
    assert one.update_topology() is None
    other.load_state_dict(through_a_file(model.state_dict()))
    two.load_state_dict(through_a_file(one.state_dict()))
    for m, optimizer in ((model, one), (other, two)):
        train(m, optimizer, 3, first=3)
    assert one.updates == 1
    assert_same(everything(model, one), everything(other, two))


@pytest.mark.parametrize("policy", ["zero", "per_element_step"])
def test_going_back_to_an_earlier_checkpoint_of_the_same_object(policy):
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), Recipe("set", {"grown_state": policy}))
    train(model, optimizer, 2)
    saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, 8, first=2)
    there = everything(model, optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, 8, first=2)
    assert_same(everything(model, optimizer), there)


WAYS = {
    "load_state_dict": lambda model, weights: model.load_state_dict(weights),
    ".data": lambda model, weights: [
        p.data.copy_(weights[name]) for name, p in model.named_parameters()
    ],
    "no_grad": lambda model, weights: [
        torch.no_grad()(p.copy_)(weights[name]) for name, p in model.named_parameters()
    ],
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.7])
@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("steps", [0, 4])
def test_weights_loaded_before_the_optimizer_survive(way, seed, sparsity, storage, steps):
    """At low sparsity ERK makes small layers dense; another seed starts from other masks."""
    options = {"sparsity": sparsity, "storage": storage}
    model, other = mlp((6, 9, 8, 5)), mlp((6, 9, 8, 5), seed=5)
    optimizer = sparse(model, inner_named("adamw"), "set", seed=1, **options)
    restored = sparse(other, inner_named("adamw"), "set", seed=seed, **options)
    train(model, optimizer, steps)
    weights, saved = through_a_file([model.state_dict(), optimizer.state_dict()])
    WAYS[way](other, weights)
    restored.load_state_dict(saved)
    assert_same(everything(model, optimizer), everything(other, restored))


def test_a_checkpoint_taken_before_the_first_step():
    for inner in ("sgd", "adamw", "adagrad"):
        assert_same(*resumed(inner_named(inner), Recipe("set"), 0, 5))


def test_resume_from_a_copy_kept_in_memory_is_not_moved_by_training():
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), "set")
    train(model, optimizer, 5)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    again = mlp(seed=5)
    restored = sparse(again, inner_named("adamw"), "set", seed=3)
    again.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])
    before = copy.deepcopy(saved[1])
    train(again, restored, 5, first=5)
    assert_same(saved[1]["param_groups"], before["param_groups"])
    for position, entry in saved[1]["state"].items():  # torch itself shares its own state
        for key, value in entry.items():
            if key.startswith("sparse_"):
                assert_same(value, before["state"][position][key])


def test_a_layer_that_never_had_a_gradient_comes_back_with_its_mask():
    runs = []
    for seed in (0, 4):
        model = mlp((6, 8, 8, 5), seed=seed)
        optimizer = sparse(model, inner_named("adamw"), "rigl", seed=seed)
        runs.append((model, optimizer))
    (model, one), (other, two) = runs
    for step in range(4):
        one.zero_grad()
        model[4](torch.full((2, 8), step / 9, dtype=torch.float64)).square().sum().backward()
        one.step()
    other.load_state_dict(model.state_dict())
    saved = one.state_dict()
    two.load_state_dict(through_a_file(saved))
    assert_same(everything(model, one), everything(other, two))
    assert_same(one.state_dict(), saved)
    for pair in runs:
        train(*pair, 4, first=4)
    assert_same(everything(model, one), everything(other, two))


def test_groups_added_on_the_way_come_back():
    def build(seed):
        model = nn.ModuleList([mlp(seed=seed), mlp(seed=seed + 1)])
        return model, SGD(model[0].parameters(), lr=0.1, momentum=0.9)

    runs = []
    for seed in (0, 8):
        model, inner = build(seed)
        optimizer = SparseOptimizer(inner, "rigl", model=model, seed=seed, update_every=2)
        optimizer.add_param_group(
            {"params": list(model[1].parameters()), "lr": 0.2, "sparsity": 0.8}
        )
        runs.append((model, optimizer))
    (model, one), (other, two) = runs

    def both(pair, first, steps):
        for part in pair[0]:
            part.input_shape = (6,)
        for step in range(first, first + steps):
            pair[1].zero_grad()
            for part in pair[0]:
                part(torch.full((2, 6), step / 10, dtype=torch.float64)).square().sum().backward()
            pair[1].step()

    both(runs[0], 0, 5)
    other.load_state_dict(model.state_dict())
    two.load_state_dict(through_a_file(one.state_dict()))
    assert two.param_groups[1]["lr"] == 0.2 and two.param_groups[1]["sparsity"] == 0.8
    both(runs[0], 5, 5)
    both(runs[1], 5, 5)
    assert_same(everything(model, one), everything(other, two))


# --- round trips (row 5) --------------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNERS, ids=str)
def test_loading_ones_own_state_dict_changes_nothing(inner):
    model = inner.model(dtype=torch.float32)
    optimizer = sparse(model, inner, "rigl")
    train(model, optimizer, 4, closure=inner.needs_closure)
    before = everything(model, optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_same(everything(model, optimizer), before)
    optimizer.param_groups[0]["lr"] = 0.123
    assert optimizer.inner.param_groups[0]["lr"] == 0.123
    train(model, optimizer, 4, first=4, closure=inner.needs_closure)
    assert optimizer.steps == 8
    assert_zeros(optimizer)


def test_the_state_dict_has_dense_layout_boolean_masks_and_plain_values():
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), "rigl")
    train(model, optimizer, 4)
    saved = optimizer.state_dict()
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    assert set(saved) == {"state", "param_groups"}
    for layer in optimizer.layers:
        entry = saved["state"][next(i for i, p in enumerate(flat) if p is layer.weight)]
        masks = [value for value in entry.values() if value.dtype == torch.bool]
        assert any(torch.equal(mask, layer.mask) for mask in masks)
        assert entry["exp_avg"].shape == entry["exp_avg_sq"].shape == layer.weight.shape
        assert (entry["exp_avg"][~layer.mask] == 0).all()
    assert_same(through_a_file(saved), saved)


# --- dense and sparse -----------------------------------------------------------------------------


@pytest.mark.parametrize("inner", ["sgd-nesterov", "adamw", "rmsprop", "adagrad"])
def test_a_dense_checkpoint_loads_and_the_topology_stays(inner):
    inner = inner_named(inner)
    dense_model, model = mlp(), mlp(seed=3)
    dense = inner(dense_model.parameters())
    train(dense_model, dense, 4)
    optimizer = sparse(model, inner, "set")
    train(model, optimizer, 4)
    masks = copy.deepcopy(optimizer.masks)
    model.load_state_dict(dense_model.state_dict())
    optimizer.load_state_dict(through_a_file(dense.state_dict()))
    assert_same(dict(optimizer.masks), masks)
    assert_zeros(optimizer)
    assert optimizer.steps == 4
    saved, theirs = optimizer.state_dict(), dense.state_dict()
    for position, p in enumerate(model.parameters()):
        mask = next((o.mask for o in optimizer.layers if o.weight is p), torch.ones_like(p) > 0)
        for key, value in theirs["state"][position].items():
            if value.shape == p.shape:
                assert torch.equal(saved["state"][position][key][mask], value[mask])
                if key != "sum":
                    assert (saved["state"][position][key][~mask] == 0).all()
    train(model, optimizer, 5, first=4, after_step=lambda step: assert_zeros(optimizer))


@pytest.mark.parametrize("inner", ["sgd-nesterov", "adamw", "rmsprop", "adagrad", "rprop", "nadam"])
def test_a_sparse_checkpoint_loads_into_the_plain_optimizer(inner):
    inner = inner_named(inner)
    model, plain_model = mlp(), mlp(seed=3)
    optimizer, plain = sparse(model, inner, "set"), inner(plain_model.parameters())
    train(model, optimizer, 4)
    plain_model.load_state_dict(model.state_dict())
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    saved = optimizer.state_dict()["state"]
    for position, p in enumerate(plain_model.parameters()):
        for key, value in saved.get(position, {}).items():
            if not key.startswith("sparse_"):
                assert torch.equal(plain.state[p][key], value)
    train(plain_model, plain, 3)
    assert all(p.isfinite().all() for p in plain_model.parameters())


def test_a_parameter_that_never_had_a_gradient_may_get_one_after_loading_into_the_plain_one():
    model, plain_model = mlp(), mlp()
    model[0].weight.requires_grad_(False)
    optimizer = SparseOptimizer(AdamW(model.parameters()), include="2")
    train(model, optimizer, 2)
    plain = AdamW(plain_model.parameters())
    plain.load_state_dict(through_a_file(optimizer.state_dict()))
    train(plain_model, plain, 2)


# --- storages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [i for i in INNERS if i.elementwise], ids=str)
def test_a_checkpoint_of_one_storage_goes_on_in_the_other(inner):
    results = []
    for here, there in (("masked", "masked"), ("masked", "compact"), ("compact", "masked")):
        model, other = inner.model(), inner.model(seed=5)
        try:
            one = sparse(model, inner, "rigl", storage=here)
            two = sparse(other, inner, "rigl", storage=there, seed=9)
        except ValueError:
            pytest.skip("not held compactly")
        train(model, one, 4)
        other.load_state_dict(model.state_dict())
        two.load_state_dict(through_a_file(one.state_dict()))
        train(other, two, 6, first=4)
        results.append((dict(other.state_dict()), dict(two.masks)))
    for weights, masks in results[1:]:
        assert_same(masks, results[0][1])
        for name, value in weights.items():
            assert torch.allclose(value, results[0][0][name], rtol=0, atol=1e-12)


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("recipe", ["set", "rigl", "gmp"])
def test_a_model_loaded_before_it_is_wrapped_resumes_bit_equal(recipe, storage):
    """Wrapping masks by a topology of its own; the checkpoint's weights must survive that."""
    model = mlp()
    optimizer = sparse(model, AdamW, recipe, storage=storage)
    train(model, optimizer, 7)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, 8, first=7)

    later = mlp(seed=5)
    later.load_state_dict(weights)
    resumed = sparse(later, AdamW, recipe, storage=storage, seed=9)
    resumed.load_state_dict(state)
    train(later, resumed, 8, first=7)
    assert_same(snapshot(later, resumed), snapshot(model, optimizer))


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_one_checkpoint_in_memory_is_restored_any_number_of_times(storage):
    model = mlp()
    optimizer = sparse(model, AdamW, "rigl", storage=storage)
    train(model, optimizer, 7)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    ends = []
    for _ in range(2):
        model.load_state_dict(weights)
        optimizer.load_state_dict(state)
        train(model, optimizer, 8, first=7)
        ends.append(copy.deepcopy(snapshot(model, optimizer)))
    assert_same(*ends)
