"""One topology update: what is dropped, what is grown, and what becomes of weights and state."""

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
from references import (
    best,
    gradient_growth,
    magnitude_drop,
    mest_score,
    number_to_drop,
    rigl_update,
    signed_set_drop,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW

from sparseopt import Algorithm, SparseOptimizer
from sparseopt.algorithms import rigl
from sparseopt.layers import Layer
from sparseopt.schedules import Constant, Cosine, Linear, Polynomial
from sparseopt.scores import Context, MagnitudeGradient, gradient, magnitude, score
from sparseopt.select import top_k

NAME = "0.0"
# few distinct values: ties, zeros and signs are common
VALUES = st.sampled_from([-2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0])


@st.composite
def layers(draw):
    """A weight, a gradient and a mask with at least one active weight, full of ties."""
    shape = draw(st.lists(st.integers(1, 6), min_size=2, max_size=4))
    size = math.prod(shape)

    def tensor(values):
        flat = draw(st.lists(values, min_size=size, max_size=size))
        return torch.tensor(flat).view(shape)

    mask = tensor(st.booleans())
    mask.view(-1)[draw(st.integers(0, size - 1))] = True
    weight = tensor(VALUES).double() * mask
    return weight, tensor(VALUES).double(), mask


FRACTIONS = st.integers(0, 100).map(lambda percent: percent / 100)


def updated(weight, gradients, mask, algo, **options):
    """Weight, mask and record after one update that follows a step which changes nothing."""
    p, optimizer = single(weight, mask, algo, **options)
    p.grad = gradients.clone()
    optimizer.step()
    return p.detach(), optimizer.masks[NAME], optimizer.history[-1] if optimizer.history else None


# --- against the slow literal versions ------------------------------------------------------------


@given(layers(), FRACTIONS, st.sampled_from(["floor", "ceil"]))
def test_rigl_equals_the_literal_reference(layer, fraction, rounding):
    weight, gradients, mask = layer
    k = number_to_drop(fraction, int(mask.sum()), rounding)
    _, new, record = updated(*layer, "rigl", drop_fraction=fraction, rounding=rounding)
    expected = rigl_update(weight.numpy(), gradients.numpy(), mask.numpy(), k)
    assert new.tolist() == expected.tolist()
    if fraction:
        assert record.dropped == record.grown == k
        assert record.grown - record.regrown == int((new & ~mask).sum())


@given(layers(), FRACTIONS)
def test_rigl_without_regrowth_equals_the_literal_reference(layer, fraction):
    weight, gradients, mask = layer
    k = number_to_drop(fraction, int(mask.sum()))
    _, new, record = updated(*layer, "rigl", drop_fraction=fraction, regrow_same="forbid")
    expected = rigl_update(weight.numpy(), gradients.numpy(), mask.numpy(), k, forbid=True)
    assert new.tolist() == expected.tolist()
    if fraction:
        assert record.dropped == record.grown == min(k, int((~mask).sum()))
        assert record.regrown == 0


@given(layers(), FRACTIONS, st.integers(0, 50))
def test_set_drops_like_the_literal_reference_and_grows_anywhere(layer, fraction, seed):
    weight, gradients, mask = layer
    k = number_to_drop(fraction, int(mask.sum()))
    _, new, _ = updated(*layer, "set", drop_fraction=fraction, seed=seed)
    kept = torch.from_numpy(magnitude_drop(weight.numpy(), mask.numpy(), k))
    assert (new[kept]).all() and int(new.sum()) == int(mask.sum())
    _, strict, _ = updated(*layer, "set", drop_fraction=fraction, seed=seed, regrow_same="forbid")
    k = min(k, int((~mask).sum()))
    kept = torch.from_numpy(magnitude_drop(weight.numpy(), mask.numpy(), k))
    assert torch.equal(strict & mask, kept) and int(strict.sum()) == int(mask.sum())


@given(layers(), FRACTIONS)
def test_signed_set_drops_like_the_literal_reference(layer, fraction):
    weight, gradients, mask = layer
    _, new, record = updated(
        *layer, "set", signed=True, drop_fraction=fraction, regrow_same="reset"
    )
    kept = torch.from_numpy(signed_set_drop(weight.numpy(), mask.numpy(), fraction))
    assert (new[kept]).all() and int(new.sum()) == int(mask.sum())
    if fraction:
        assert record.dropped == int(mask.sum() - kept.sum())


@given(layers(), st.floats(0, 2), st.integers(0, 30))
def test_mest_score_equals_the_literal_reference(layer, gradient_weight, k):
    weight, gradients, mask = layer
    one = Layer("w", nn.Parameter(weight), (0, 0))
    one.gradient = gradients
    worth = MagnitudeGradient(gradient_weight)(one, Context())
    expected = mest_score(weight.numpy(), gradients.numpy(), gradient_weight)
    assert worth.numpy() == pytest.approx(expected)
    k = min(k, int(mask.sum()))
    kept = top_k(worth.masked_fill(~mask, -math.inf), k)
    assert kept.tolist() == best(worth.numpy(), mask.numpy(), k).tolist()


@settings(max_examples=50)
@given(layers(), layers(), FRACTIONS, st.booleans())
def test_global_scope_ranks_all_layers_together(one, other, fraction, forbid):
    parameters = [nn.Parameter(layer[0].clone()) for layer in (one, other)]
    masks = {"0.0": one[2], "0.1": other[2]}
    total = sum(mask.numel() for mask in masks.values())
    active = sum(int(mask.sum()) for mask in masks.values())
    optimizer = SparseOptimizer(
        Still(parameters), "rigl", sparsity=1 - active / total, topology=masks, update_every=1,
        drop_fraction=fraction, scope="global", include=lambda name, weight: True,
        regrow_same="forbid" if forbid else "keep",
    )  # fmt: skip
    for p, layer in zip(parameters, (one, other), strict=True):
        p.grad = layer[1].clone()
    optimizer.step()

    def flat(position):
        return torch.cat([one[position].flatten(), other[position].flatten()])

    weight, gradients, mask = flat(0), flat(1), flat(2)
    k = number_to_drop(fraction, active)
    k = min(k, total - active if forbid else k, active - 2)
    size = one[2].numel()
    rank = weight.abs()
    for part in (slice(0, size), slice(size, total)):  # no layer is emptied
        first = best(rank[part].numpy(), mask[part].numpy(), 1)
        rank[part][torch.from_numpy(first)] = math.inf
    kept = torch.from_numpy(best(rank.numpy(), mask.numpy(), active - k))
    among = ~(mask | kept) if forbid else ~kept
    expected = kept | torch.from_numpy(gradient_growth(gradients.numpy(), among.numpy(), k))
    new = torch.cat([m.flatten() for m in optimizer.masks.values()])
    assert new.tolist() == expected.tolist()
    assert min(numbers(optimizer)) >= 1


@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_global_scope_keeps_the_total_and_moves_weights_between_layers(algo):
    model = mlp((6, 8, 8, 5))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    optimizer = sparse(model, SGD(model.parameters(), lr=0.01), algo, scope="global")
    before = numbers(optimizer)
    train(model, optimizer, 12, after_step=lambda step: assert_zeros(optimizer))
    assert sum(numbers(optimizer)) == sum(before)
    assert numbers(optimizer)[0] < before[0]


# --- golden cases ---------------------------------------------------------------------------------


def test_golden_rounding_of_the_number_to_drop():  # G14
    for active, fraction, rounding, k in (
        (9, 0.1, "floor", 0), (9, 0.1, "ceil", 1), (100, 0.29, "floor", 29),
        (100, 0.29, "ceil", 29), (10, 0.3, "floor", 3), (10, 0.3, "ceil", 3), (7, 1.0, "floor", 7),
    ):  # fmt: skip
        mask = torch.arange(200).view(10, 20) < active
        weight = torch.arange(1, 201).view(10, 20).double() * mask
        _, new, record = updated(
            weight, weight, mask, "set", drop_fraction=fraction, rounding=rounding,
            regrow_same="forbid",
        )  # fmt: skip
        assert (record.dropped, record.grown) == (k, k)
        assert int((mask & ~new).sum()) == k


def test_golden_signed_set():  # G22
    active = [-1, -0.6, -0.3, -0.1, 0.05, 0.2, 0.4, 0.7, 0.8, 0.9]
    weight = torch.tensor([active, [0.0] * 10], dtype=torch.float64)
    mask = weight != 0

    def dropped(**options):
        _, new, _ = updated(
            weight, weight, mask, "set", drop_fraction=0.3, regrow_same="forbid", **options
        )
        return sorted(weight[mask & ~new].tolist())

    assert dropped(signed=True) == [-0.1, 0.05]
    assert dropped() == [-0.1, 0.05, 0.2]


def test_golden_mest_score():  # G17
    one = Layer("w", nn.Parameter(torch.tensor([[0.5, -0.2, 0.3, 0.25]])), (0, 0))
    one.gradient = torch.tensor([[0.0, 5.0, -1.0, 20.0]])
    worth = MagnitudeGradient(0.01)(one, Context())
    assert worth.tolist() == [pytest.approx([0.5, 0.25, 0.31, 0.45])]
    assert worth.flatten().argsort().tolist() == [1, 2, 3, 0]
    assert MagnitudeGradient(0.0)(one, Context()).flatten().argsort().tolist() == [1, 3, 2, 0]
    assert (~top_k(worth, 2)).flatten().nonzero().flatten().tolist() == [1, 2]


@pytest.mark.parametrize(
    "stop, expected",
    [(0.75, range(10, 71, 10)), (1.0, range(10, 91, 10)), (0.8, range(10, 81, 10))],
)
@pytest.mark.parametrize("fraction", [0.1, Polynomial(0.1), Constant(0.1)])
def test_golden_update_times(stop, expected, fraction):  # G30
    p = nn.Parameter(torch.randn(9, 9, generator=rng()))
    optimizer = SparseOptimizer(
        Still([p]), "rigl", total_steps=100, update_every=10, stop=stop, drop_fraction=fraction
    )
    for _ in range(120):  # training may go on for longer than was said
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert [record.step for record in optimizer.history] == [*expected]


@given(st.integers(1, 60), st.integers(1, 20), st.floats(0, 1), st.floats(0, 1), st.integers(0, 20))
def test_updates_come_exactly_when_they_are_due(total, every, start, stop, late):
    """Invariant 18; and never at the last step, after which nothing trains what was grown."""
    start, stop = sorted((start, stop))
    algorithm = rigl(0.5, start=start, stop=stop)
    due = [t for t in range(1, total + late + 1) if algorithm.due(t, total, every)]
    end = math.floor(stop * total + 1e-9)
    expected = range(every, total, every)
    assert due == [t for t in expected if start * total <= t <= end]


def test_without_total_steps_updates_never_stop_and_the_fraction_stays():
    p = nn.Parameter(torch.randn(10, 20, generator=rng()))
    optimizer = SparseOptimizer(Still([p]), "rigl", update_every=2, regrow_same="forbid")
    for step in range(20):
        p.grad = torch.randn(p.shape, generator=rng(step))
        optimizer.step()
    assert [record.step for record in optimizer.history] == [*range(2, 21, 2)]
    assert {record.dropped for record in optimizer.history} == {30}


def test_the_drop_fraction_follows_its_schedule():
    for schedule, stop in ((Cosine(0.4), 0.5), (Linear(0.4), 1.0), (Constant(0.2), 1.0)):
        p = nn.Parameter(torch.randn(20, 20, generator=rng()))
        optimizer = SparseOptimizer(
            Still([p]), "set", total_steps=40, update_every=4, drop_fraction=schedule, stop=stop
        )
        for _ in range(40):
            p.grad = torch.ones_like(p)
            optimizer.step()
        for record in optimizer.history:
            fraction = schedule(record.step / (stop * 40))
            assert record.dropped == math.floor(fraction * 200 + 1e-9)
        assert optimizer.history


def test_a_number_for_drop_fraction_is_the_start_of_the_recipes_own_schedule():
    assert sparse(mlp(), Still, "rigl", drop_fraction=0.2).algorithm.drop_fraction == Cosine(0.2)
    assert sparse(mlp(), Still, "set", drop_fraction=0.2).algorithm.drop_fraction == Constant(0.2)


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


# --- on demand ------------------------------------------------------------------------------------


def test_update_topology_updates_set_at_once_and_rigl_after_the_next_step():
    for algo in ("set", "rigl"):
        model = mlp()
        optimizer = sparse(model, inner_named("adamw"), algo, update_every=1000, total_steps=None)
        train(model, optimizer, 2)
        record = optimizer.update_topology()
        assert (record is None) == (algo == "rigl")
        train(model, optimizer, 2, first=2)
        assert [r.step for r in optimizer.history] == [3 if algo == "rigl" else 2]
        assert_zeros(optimizer)


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("inner", ["sgd-nesterov", "adamw"])
def test_update_topology_with_dense_gradients_at_hand(inner, storage):
    """Asked for twice: the first request keeps the dense gradients that the second one uses."""
    model = mlp()
    optimizer = sparse(
        model, inner_named(inner), "rigl", update_every=99, total_steps=None, storage=storage
    )
    train(model, optimizer, 2)
    assert optimizer.update_topology() is None
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    record = optimizer.update_topology()
    own = [p for group in optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(own, model.parameters(), strict=True))
    optimizer.step()
    train(model, optimizer, 2, first=3)
    assert optimizer.updates == len(optimizer.history) == 1
    assert record is None or record == optimizer.history[0]
    assert_zeros(optimizer)


def test_update_topology_between_backward_and_step_waits_for_dense_gradients():
    """The gradients at hand are masked already: growing by them would follow positions."""
    model = mlp()
    seen = {}

    @score(needs_gradient=True)
    def grow(layer, context):
        seen[layer.name] = layer.gradient.clone()
        return gradient(layer, context)

    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), dataclasses.replace(rigl(0.7), grow=grow), model=model
    )
    train(model, optimizer, 2)
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    optimizer.update_topology()
    optimizer.step()
    train(model, optimizer, 2, first=3)
    assert optimizer.updates == 1
    for layer in optimizer.layers:
        # a masked gradient would have as many entries as there are active weights
        assert int((seen[layer.name] != 0).sum()) > 1.5 * layer.nnz


def test_an_update_made_more_often_between_backward_and_step_waits_for_dense_gradients():
    model = mlp()
    seen = {}

    @score(needs_gradient=True)
    def grow(layer, context):
        seen.setdefault(layer.name, layer.gradient.clone())
        return gradient(layer, context)

    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), dataclasses.replace(rigl(0.7), grow=grow), model=model
    )
    train(model, optimizer, 2)
    optimizer.zero_grad()
    loss_of(model, 2).backward()
    optimizer.update_every = 1
    optimizer.step()
    train(model, optimizer, 2, first=3)
    assert optimizer.updates >= 1
    for layer in optimizer.layers:
        # a masked gradient would have as many entries as there are active weights
        assert int((seen[layer.name] != 0).sum()) > 1.5 * layer.nnz


def test_an_algorithm_of_ones_own_is_used_as_it_is():
    @score(elementwise=True)
    def largest_first(layer, context):
        return -layer.weight.detach().abs()

    mine = Algorithm(0.5, name="mine", drop=largest_first, drop_fraction=Constant(0.25))
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]])
    _, new, _ = updated(weight, weight, weight != 0, mine, regrow_same="forbid")
    assert new[0, :4].tolist() == [False, True, True, True]
    assert magnitude(Layer("w", nn.Parameter(weight), (0, 0)), Context()).equal(weight)


def test_the_mask_keeps_its_address_through_updates():
    model = mlp()
    optimizer = sparse(model, inner_named("sgd"), "rigl", update_every=1)
    addresses = [mask.data_ptr() for mask in optimizer.masks.values()]
    train(model, optimizer, 5)
    assert [mask.data_ptr() for mask in optimizer.masks.values()] == addresses
    assert optimizer.updates == 5
