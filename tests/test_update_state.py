"""What becomes of weights and optimizer state at an update: kept, dropped and grown ones."""

import copy
import dataclasses
import math

import pytest
import torch
from common import (
    COMMON_INNERS,
    Recipe,
    Still,
    assert_same,
    assert_zeros,
    inner_named,
    mlp,
    rng,
    sparse,
    train,
)
from references import (
    magnitude_drop,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW

from sparseopt import SparseOptimizer
from sparseopt.scores import score

NAME = "0.0"


# --- weights and state at an update (invariants 8, 9) ---------------------------------------------


def spied(algo, log):
    """The algorithm, with a look at weights and state between the step and the update."""

    @score(needs_gradient=algo.needs_gradient)
    def drop(layer, context):
        log(layer)
        return algo.drop(layer, context)

    return dataclasses.replace(algo, drop=drop)


def moments(optimizer, weight):
    saved = optimizer.state_dict()
    flat = [p for group in optimizer.param_groups for p in group["params"]]
    entry = saved["state"].get(next(i for i, p in enumerate(flat) if p is weight), {})
    return {
        key: value.clone()
        for key, value in entry.items()
        if torch.is_tensor(value) and value.shape == weight.shape and not key.startswith("sparse_")
    }


@pytest.mark.parametrize("policy", ["keep", "reset", "forbid"])
@pytest.mark.parametrize("inner", COMMON_INNERS, ids=str)
@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_survivors_are_untouched_and_grown_weights_start_at_zero(algo, inner, policy):
    model = inner.model()
    plain = sparse(mlp(), Still, algo, drop_fraction=0.5, regrow_same=policy, stop=1.0).algorithm
    before = {}

    def look(layer):
        state = moments(optimizer, layer.weight)
        before[layer.name] = layer.weight.detach().clone(), layer.mask.clone(), state

    optimizer = SparseOptimizer(
        inner(model.parameters()), spied(plain, look), sparsity=0.7, model=model, update_every=2
    )
    regrown = 0
    for step in range(12):
        before.clear()
        train(model, optimizer, 1, first=step)
        for layer in optimizer.layers if before else []:
            old, mask, state = before[layer.name]
            k = math.floor(0.5 * int(mask.sum()) + 1e-9)
            if policy == "forbid":
                k = min(k, int((~mask).sum()))
            kept = torch.from_numpy(magnitude_drop(old.abs().numpy(), mask.numpy(), k))
            again, new = layer.mask & mask & ~kept, layer.mask & ~mask
            regrown += int(again.sum())
            same = kept | again if policy == "keep" else kept
            fresh = new if policy == "keep" else new | again
            for value, was in zip(
                [layer.weight.detach(), *moments(optimizer, layer.weight).values()],
                [old, *state.values()],
                strict=True,
            ):
                assert torch.equal(value[same], was[same])
                assert (value[fresh | ~layer.mask] == 0).all()
    assert optimizer.updates == 6
    assert sum(record.regrown for record in optimizer.history) == regrown
    assert (regrown == 0) == (policy == "forbid")


def test_an_update_that_exchanges_nothing_changes_no_bit():
    model = mlp()
    optimizer = sparse(
        model, inner_named("adamw"), Recipe("set", {"drop_fraction": 0.01}), total_steps=None,
        update_every=10**6,
    )  # fmt: skip
    train(model, optimizer, 4)
    weights, state = dict(model.state_dict()), optimizer.state_dict()["state"]
    before = copy.deepcopy((weights, dict(optimizer.masks), state))
    record = optimizer.update_topology()
    assert (record.dropped, record.grown, record.regrown) == (0, 0, 0)
    assert_same((dict(model.state_dict()), dict(optimizer.masks), state), before)


def test_gradients_are_zero_at_inactive_places_after_an_update():
    model = mlp()
    optimizer = sparse(model, inner_named("sgd"), "rigl", update_every=1)
    train(model, optimizer, 3)
    for layer in optimizer.layers:
        assert (layer.weight.grad[~layer.mask] == 0).all()


def test_drop_uses_weights_after_the_step_and_growth_the_gradient_of_the_step():
    weight = torch.tensor([[1.0, 0.2, 0.5, 0.0, 0.0, 0.0]])
    mask = weight != 0
    p = nn.Parameter(weight.clone())
    optimizer = SparseOptimizer(
        SGD([p], lr=1.0), "rigl", sparsity=0.5, topology={NAME: mask}, update_every=1,
        drop_fraction=1 / 3, include=lambda name, weight: True,
    )  # fmt: skip
    # after the step: 0.1, -0.8, 0.5: the first is dropped, though it was the largest
    p.grad = torch.tensor([[0.9, 1.0, 0.0, 0.1, -3.0, 2.0]])
    optimizer.step()
    assert optimizer.masks[NAME].tolist() == [[False, True, True, False, True, False]]
    assert p.detach().flatten().tolist() == pytest.approx([0, -0.8, 0.5, 0, 0, 0])


@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_skip_step_on_update_leaves_the_optimizer_out_and_counts_the_step(algo):
    model, calls = mlp(), []
    inner = SGD(model.parameters(), lr=0.1, momentum=0.9)
    inner.register_step_post_hook(lambda *args: calls.append(1))
    optimizer = sparse(model, inner, algo, skip_step_on_update=True)
    for step in range(9):
        biases = [model[0].bias.detach().clone(), model[2].bias.detach().clone()]
        kept = {n: (m.clone(), model.get_parameter(n).clone()) for n, m in optimizer.masks.items()}
        train(model, optimizer, 1, first=step)
        update = (step + 1) % 3 == 0
        assert torch.equal(model[0].bias, biases[0]) == update
        if update:
            for name, (mask, weight) in kept.items():
                both = mask & optimizer.masks[name]
                assert torch.equal(model.get_parameter(name)[both], weight[both])
    assert optimizer.steps == 9 and len(calls) == 6 and optimizer.updates == 3
    assert_zeros(optimizer)


# --- grown_state ----------------------------------------------------------------------------------


def test_grown_state_mean_is_the_mean_over_the_layers_active_weights():
    model = mlp((6, 8, 5))
    optimizer = sparse(
        model, inner_named("adam-l2"), "set", grown_state="mean", update_every=10**6,
        total_steps=None,
    )  # fmt: skip
    train(model, optimizer, 5)
    for _ in range(2):
        old = {
            layer.name: (layer.mask.clone(), moments(optimizer, layer.weight))
            for layer in optimizer.layers
        }
        optimizer.update_topology()
        for layer in optimizer.layers:
            mask, state = old[layer.name]
            grown, kept = layer.mask & ~mask, layer.mask & mask
            assert grown.any()
            for key, value in moments(optimizer, layer.weight).items():
                mean = float(state[key][kept].mean())
                assert value[grown].tolist() == pytest.approx([mean] * int(grown.sum()))
                assert torch.equal(value[kept], state[key][kept])
                assert (value[~layer.mask] == 0).all()
            assert (layer.weight[grown] == 0).all()


def growth_trace(kind, policy, t0, steps, betas=(0.9, 0.999), eps=0.0, **options):
    """The moves of a weight grown after t0 steps under a constant gradient, in units of lr."""
    p = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    mask = torch.tensor([[True, True], [True, False]])
    lr = 1e-12
    optimizer = SparseOptimizer(
        kind([p], lr=lr, betas=betas, eps=eps, **options), "rigl", sparsity=0.25,
        topology={NAME: mask}, grown_state=policy, drop_fraction=0.34, regrow_same="forbid",
        update_every=t0,
    )  # fmt: skip
    moves = []
    for step in range(t0 + steps):
        p.grad = torch.ones_like(p)
        before = p.detach()[1, 1].item()
        optimizer.step()
        if step >= t0:
            moves.append(abs(p[1, 1].item() - before) / lr)
        elif step == t0 - 1:
            assert optimizer.masks[NAME][1, 1] and p[1, 1] == 0
            optimizer.update_every = 10**9
    return moves


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("t0, first", [(10, 0.48213), (100, 0.98039), (10_000, 3.16221)])
def test_golden_first_move_of_a_grown_weight_under_adam(kind, t0, first):  # G16
    if t0 <= 100:
        moves = growth_trace(kind, "zero", t0, 1, weight_decay=0.0)
        assert moves[0] == pytest.approx(first, abs=5e-6)
        assert growth_trace(kind, "per_element_step", t0, 40, weight_decay=0.0) == pytest.approx(
            [1.0] * 40, rel=1e-9
        )
    else:
        bias = [1 - beta ** (t0 + 1) for beta in (0.9, 0.999)]
        expected = (0.1 / bias[0]) / math.sqrt(0.001 / bias[1])
        assert expected == pytest.approx(first, abs=5e-6)


def test_per_element_step_equals_adam_with_a_clock_for_each_weight():
    """Against a literal Adam in which every weight counts its own steps, through 8 updates."""
    p = nn.Parameter(torch.randn(6, 7, generator=rng(), dtype=torch.float64))
    beta1, beta2, lr, eps, decay = 0.8, 0.9, 0.01, 1e-8, 0.1
    optimizer = SparseOptimizer(
        AdamW([p], lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay), "rigl",
        sparsity=0.5, update_every=3, grown_state="per_element_step",
    )  # fmt: skip
    weight, mask = p.detach().clone(), optimizer.masks[NAME].clone()
    m, v, clock = (torch.zeros_like(weight) for _ in range(3))
    for step in range(26):
        grad = torch.randn(p.shape, generator=rng(step), dtype=torch.float64)
        p.grad = grad.clone()
        optimizer.step()
        g = grad * mask
        clock += 1
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        weight = weight * (1 - lr * decay)
        weight -= lr * (m / (1 - beta1**clock)) / ((v / (1 - beta2**clock)).sqrt() + eps)
        weight *= mask
        new = optimizer.masks[NAME].clone()
        fresh = new & ~mask
        for tensor in (weight, m, v, clock):
            tensor[fresh | ~new] = 0
        mask = new
        assert torch.allclose(p.detach(), weight, rtol=0, atol=1e-13)
    assert optimizer.updates == 8
    state = moments(optimizer, p)
    assert torch.allclose(state["exp_avg"], m, rtol=0, atol=1e-13)
    assert torch.allclose(state["exp_avg_sq"], v, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "options",
    [{"weight_decay": 0.1}, {"maximize": True}, {"foreach": True}, {"fused": True},
     {"betas": (0.0, 0.9)}, {"lr": torch.tensor(0.01), "foreach": False}],
    ids=str,
)  # fmt: skip
def test_per_element_step_changes_nothing_before_the_first_growth(options):
    models = [mlp(), mlp()]
    for model, policy in zip(models, ("zero", "per_element_step"), strict=True):
        inner = Adam(model.parameters(), **{"lr": 0.01, **options})
        train(model, sparse(model, inner, "set", grown_state=policy, update_every=9), 9)
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
