"""Copies and pickles of (model, optimizer), also with a scheduler attached (row 15)."""

import copy
import io
import pickle

import pytest
import torch
from common import (
    INNERS,
    MORE_RECIPES,
    RECIPES,
    UNKNOWN_STATE,
    assert_same,
    assert_zeros,
    inner_named,
    loss_of,
    mlp,
    sparse,
    train,
)
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


def pickled(value):
    return pickle.loads(pickle.dumps(value))


def saved(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIERS = {"deepcopy": copy.deepcopy, "pickle": pickled, "torch.save": saved}


def steps(bundle, number, first):
    model, optimizer, scheduler = bundle
    train(model, optimizer, number, first, after_step=lambda step: scheduler.step())


@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)
@pytest.mark.parametrize("inner", ["sgd-nesterov", "adamw", "adamw-fused", "muon-like"])
@pytest.mark.parametrize("storage", ["masked", "auto"])
def test_a_copy_steps_alone_and_the_original_goes_on(copier, inner, storage):
    model = inner_named(inner).model()
    optimizer = sparse(model, inner_named(inner), "rigl", storage=storage)
    bundle = (model, optimizer, OneCycleLR(optimizer, 0.1, total_steps=30, cycle_momentum=False))
    steps(bundle, 4, 0)
    twin = copier(bundle)
    before = copy.deepcopy([dict(model.state_dict()), dict(optimizer.masks)])
    steps(twin, 5, 4)
    assert_same([dict(model.state_dict()), dict(optimizer.masks)], before)
    assert (optimizer.steps, twin[1].steps) == (4, 9)
    assert_zeros(twin[1])
    assert [p is q for p, q in zip(
        (p for group in twin[1].param_groups for p in group["params"]),
        twin[0].parameters(), strict=True,
    )].count(False) == 0  # fmt: skip
    steps(bundle, 5, 4)
    assert_same(dict(model.state_dict()), dict(twin[0].state_dict()))
    assert_same(dict(optimizer.masks), dict(twin[1].masks))
    assert_same(optimizer.state_dict(), twin[1].state_dict())
    assert_same(bundle[2].state_dict(), twin[2].state_dict())


@pytest.mark.parametrize("recipe", RECIPES + MORE_RECIPES, ids=str)
def test_every_recipe_copies_and_pickles(recipe):
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), recipe)
    train(model, optimizer, 4)
    for copier in COPIERS.values():
        twin_model, twin = copier((model, optimizer))
        twin_model.input_shape = model.input_shape
        assert twin.algorithm == optimizer.algorithm
        assert repr(twin) == repr(optimizer) and twin.summary() == optimizer.summary()
        train(twin_model, twin, 4, first=4)
        assert_zeros(twin)
        reference = copy.deepcopy((model, optimizer))
        train(*reference, 4, first=4)
        assert_same(dict(reference[1].masks), dict(twin.masks))


# torch's own LBFGS loses its list of parameters when it is copied
COPIED = [inner for inner in INNERS if inner.package == "torch" and inner.name != "lbfgs"]


@pytest.mark.parametrize("inner", COPIED, ids=str)
def test_every_torch_optimizer_copies(inner):
    model = inner.model()
    optimizer = sparse(model, inner, "set")
    train(model, optimizer, 4)
    twin = copy.deepcopy((model, optimizer))
    for pair in (twin, (model, optimizer)):
        train(*pair, 4, first=4)
    assert_same(dict(model.state_dict()), dict(twin[0].state_dict()))
    assert_same(dict(optimizer.masks), dict(twin[1].masks))


def test_a_copy_of_the_optimizer_alone_has_parameters_of_its_own():
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), "set")
    train(model, optimizer, 4)
    before = copy.deepcopy(dict(model.state_dict()))
    twin = copy.deepcopy(optimizer)
    for group in twin.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    twin.step()
    assert_zeros(twin)
    assert_same(dict(model.state_dict()), before)


def test_the_copy_masks_gradients_at_accumulation_too():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "static")
    twin_model, twin = copy.deepcopy((model, optimizer))
    loss_of(twin_model, 0).backward()
    for layer in twin.layers:
        assert (layer.weight.grad[~layer.mask] == 0).all()


@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("copier", COPIERS.values(), ids=COPIERS)
def test_a_copy_made_between_backward_and_step_does_not_disturb_the_original(algo, copier):
    """Copies of parameters have no gradients, as with torch; the original keeps its own."""
    runs = []
    for copied in (False, True):
        model = mlp()
        optimizer = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), algo)
        train(model, optimizer, 2)
        optimizer.zero_grad()
        loss_of(model, 2).backward()
        if copied:
            twin_model, twin = copier((model, optimizer))
            twin.zero_grad()
            twin.step()
            assert_zeros(twin)
        optimizer.step()
        runs.append((dict(model.state_dict()), dict(optimizer.masks)))
    assert_same(*runs)


def test_a_copied_scheduler_drives_the_copied_optimizer():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    scheduler = CosineAnnealingLR(optimizer, 10)
    train(model, optimizer, 2, after_step=lambda step: scheduler.step())
    twin, twin_scheduler = copy.deepcopy((optimizer, scheduler))
    assert twin_scheduler.optimizer is twin
    twin_scheduler.optimizer.param_groups[0]["lr"] = 0.5
    assert twin.inner.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["lr"] == scheduler.get_last_lr()[0] != 0.5


def test_callbacks_and_history_come_along():
    model, seen = mlp(), []
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", on_update=seen.append)
    train(model, optimizer, 4)
    twin_model, twin = copy.deepcopy((model, optimizer))
    assert twin.history == optimizer.history and twin.history is not optimizer.history
    train(twin_model, twin, 4, first=4)
    assert len(twin.history) == 2 and len(optimizer.history) == 1
