"""A checkpoint that does not fit is refused, and nothing has changed."""

import copy

import pytest
import torch
from common import (
    assert_same,
    assert_zeros,
    mlp,
    snapshot,
    sparse,
    through_a_file,
    train,
)
from torch.optim import Adam, AdamW

OTHERS = {
    "another recipe": lambda: sparse(mlp(), AdamW, "rigl"),
    "another sparsity": lambda: sparse(mlp(), AdamW, "set", sparsity=0.6),
    "another shape": lambda: sparse(mlp((6, 9, 5)), AdamW, "set"),
    "more layers": lambda: sparse(mlp((6, 8, 8, 5)), AdamW, "set"),
    "other layers": lambda: sparse(mlp(), AdamW, "set", include="2"),
    "fewer masks": lambda: sparse(mlp(), AdamW, "set", exclude="0"),
    "another grouping": lambda: grouped(),
}


def grouped():
    model = mlp()
    groups = [{"params": list(layer.parameters())} for layer in (model[0], model[2])]
    return sparse(model, AdamW(groups), "set")


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("steps", [0, 4])
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(kind, steps):
    model = mlp()
    optimizer = sparse(model, AdamW, "set")
    train(model, optimizer, 4)
    theirs = OTHERS[kind]()
    flat = [p for group in theirs.param_groups for p in group["params"]]
    for _ in range(steps):
        for p in flat:
            p.grad = torch.ones_like(p)
        theirs.step()
    saved = through_a_file(theirs.state_dict())
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError) as caught:
        optimizer.load_state_dict(saved)
    assert len(str(caught.value)) > 20
    assert_same(snapshot(model, optimizer), before)
    train(model, optimizer, 4, first=4, after_step=lambda step: assert_zeros(optimizer))


def tampered(change):
    model = mlp()
    optimizer = sparse(model, AdamW, "set")
    train(model, optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    key = next(k for k, v in saved["state"][0].items() if v.dtype == torch.bool)
    change(saved["state"], key)
    return saved


@pytest.mark.parametrize(
    "change",
    [
        lambda state, key: state[0].update({key: torch.ones_like(state[0][key])}),
        lambda state, key: state[0].update({key: torch.zeros_like(state[0][key])}),
        lambda state, key: state[0].update({key: state[0][key].T.clone()}),
        lambda state, key: state[0].update({key: state[0][key][:4].clone()}),
        lambda state, key: state[0].pop(key),
    ],
    ids=["all active", "none active", "transposed", "cut", "missing"],
)
def test_a_checkpoint_with_masks_that_cannot_be_is_refused(change):
    model = mlp()
    optimizer = sparse(model, AdamW, "set")
    train(model, optimizer, 4)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="mask"):
        optimizer.load_state_dict(tampered(change))
    assert_same(snapshot(model, optimizer), before)


@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
def test_a_layer_that_was_given_no_weight_is_taken_up_without_one(algo):
    masks = {"0.weight": torch.zeros(8, 6, dtype=torch.bool), "2.weight": torch.ones(5, 8) > 0}
    given = {"topology": masks, "sparsity": 1 - 40 / 88}
    model = mlp()
    optimizer = sparse(model, AdamW, algo, **given)
    train(model, optimizer, 4)
    resumed = sparse(mlp(), AdamW, algo, **given)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert_same(dict(resumed.masks), dict(optimizer.masks))


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (torch.ones(2, dtype=torch.bool), r"ever_active of '0.weight' has shape \(2,\)"),
        ("all", "ever_active of '0.weight' has shape str"),
    ],
)
def test_a_checkpoint_with_extras_that_cannot_be_is_refused(extra, says):
    model = mlp()
    optimizer = sparse(model, AdamW, "set")
    train(model, optimizer, 4)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][0]["sparse_ever_active"] = extra
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match=says):
        optimizer.load_state_dict(saved)
    assert_same(snapshot(model, optimizer), before)


@pytest.mark.parametrize(
    "wrong", [{}, {"state": {}}, {"param_groups": []}, {"model": {}, "optimizer": {}}, [], None]
)
def test_something_else_than_a_state_dict_is_refused(wrong):
    model = mlp()
    optimizer = sparse(model, Adam, "set")
    train(model, optimizer, 2)
    before = snapshot(model, optimizer)
    with pytest.raises((ValueError, TypeError), match=r"state_dict\(\)"):
        optimizer.load_state_dict(wrong)
    assert_same(snapshot(model, optimizer), before)


@pytest.mark.parametrize(
    "algo, step, length",
    [("gmp", 11, 20), ("mest_r", 33, 34), ("acdc", 33, 35), ("granet_g", 9, 10)],
)
def test_a_falling_density_that_could_not_arrive_any_more_is_refused(algo, step, length):
    """Resumed with a shorter run than it was written in: the rest would be trained too dense."""
    options = {"sparsity": 0.8, "update_every": 2}
    model = mlp()
    optimizer = sparse(model, AdamW, algo, total_steps=40, **options)
    train(model, optimizer, step)
    saved = through_a_file(optimizer.state_dict())
    other = mlp()
    shorter = sparse(other, AdamW, algo, total_steps=length, **options)
    before = snapshot(other, shorter)
    with pytest.raises(
        ValueError, match=f"total_steps={length}.*after the checkpoint's step {step}"
    ):
        shorter.load_state_dict(saved)
    assert_same(snapshot(other, shorter), before)
    for enough in (40, 80):
        resumed = sparse(mlp(), AdamW, algo, total_steps=enough, **options)
        resumed.load_state_dict(saved)
