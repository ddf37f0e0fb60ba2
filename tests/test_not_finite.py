"""Gradients and weights that are not finite: ignored where inactive, else no update."""

import copy
import math

import pytest
import torch
from common import (
    COMMON_INNERS,
    UNKNOWN_STATE,
    assert_same,
    assert_zeros,
    batch,
    loss_of,
    mlp,
    sparse,
    train,
)
from torch.optim import SGD, Adam

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


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


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("algo", ["mest_g", "mest_r"])
def test_the_last_update_of_a_changing_density_is_made_a_step_later(algo, storage):
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.01), algo, sparsity=0.5, total_steps=20,
        update_every=2, storage=storage,
    )  # fmt: skip
    last = max(s for s in range(1, 21) if optimizer._pools[0].due(s, 20, 2))
    train(model, optimizer, last - 1)
    optimizer.zero_grad()
    loss = loss_of(model, last)
    layer = optimizer.layers[0]
    poison = torch.zeros_like(layer.weight)
    poison[tuple((~layer.mask).nonzero()[0])] = math.nan
    handle = layer.weight.register_hook(lambda grad: grad + poison)
    loss.backward()
    handle.remove()
    optimizer.step()
    assert optimizer.history[-1].skipped and optimizer.density > 0.5
    train(model, optimizer, 20 - last, first=last)
    assert optimizer.density == pytest.approx(0.5, abs=0.01)
    assert [record.step for record in optimizer.history[-2:]] == [last, last + 1]


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
