"""One topology update: what is dropped, what is grown, and when."""

import dataclasses
import math

import pytest
import torch
from common import (
    Still,
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
from torch.optim import SGD

from sparseopt import Algorithm, SparseOptimizer
from sparseopt.algorithms import rigl
from sparseopt.layers import Layer
from sparseopt.schedules import Constant, Cosine, Linear, Polynomial
from sparseopt.scores import Context, MagnitudeGradient, gradient, magnitude, score
from sparseopt.select import top_k
from sparseopt.update import drop_each, grow_each, lacking

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


def with_places_that_were_not_active(layers, settled, algorithm, levels, context):
    """An exchange that counts some of what it grows among what it kept."""
    kept = []
    dropped = drop_each(layers, settled, algorithm, levels, context)
    for layer, mask in zip(layers, dropped, strict=True):
        free = (~(mask | layer.mask)).view(-1).nonzero().view(-1)
        kept.append(mask.view(-1).index_fill(0, free[:2], True).view(mask.shape))
    return kept, grow_each(layers, kept, lacking(layers, settled, kept), algorithm, context)


@pytest.mark.parametrize("regrow", ["keep", "reset"])
def test_what_an_exchange_calls_kept_without_being_active_is_grown(regrow):
    algorithm = Algorithm(
        0.7, drop_fraction=Constant(0.4), exchange=with_places_that_were_not_active,
        regrow_same=regrow,
    )  # fmt: skip
    results = []
    for storage in ("masked", "compact"):
        model = mlp()
        inner = SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer = SparseOptimizer(
            inner, algorithm, model=model, storage=storage, update_every=2, total_steps=40
        )
        train(model, optimizer, 7)
        assert_zeros(optimizer)
        results.append([layer.weight.detach().clone() for layer in optimizer.layers])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_masks_written_in_place_are_refused_before_weights_move():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", storage="compact")
    train(model, optimizer, 1)
    layer = optimizer.layers[0]
    before, free = layer.weight.detach().clone(), (~layer.mask).nonzero()[0]
    layer.mask[tuple(free)] = True
    with pytest.raises(RuntimeError, match="mask of '0.weight' was written in place"):
        optimizer.update_topology()
    assert torch.equal(layer.weight, before)
