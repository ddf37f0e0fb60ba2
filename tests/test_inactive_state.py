"""The optimizer state of inactive weights is that of weights which never saw a gradient."""

import copy
import warnings

import pytest
import torch
from by_hand import state_of, take_all
from common import (
    INNERS,
    UNKNOWN_STATE,
    assert_same,
    inner_named,
    loss_of,
    mlp,
    rng,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


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
