"""Several backward passes for one step: the same masks and weights as one of the whole batch."""

import pytest
import torch
from common import (
    UNKNOWN_STATE,
    assert_same,
    batch,
    loss_of,
    mlp,
    sparse,
)
from torch import nn
from torch.optim import SGD, AdamW

from sparseopt import Algorithm, SparseOptimizer
from sparseopt.schedules import Constant
from sparseopt.scores import score

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)

EXACT = {"rtol": 0, "atol": 1e-12}
STORAGES = ["masked", "compact"]


def micro_batches(model, optimizer, step, parts, set_to_none=True, clip=None):
    inputs, targets = batch(model, step, 8)
    optimizer.zero_grad(set_to_none=set_to_none)
    for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
        ((model(x) - y).square().mean() / parts).backward()
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_micro_batches_give_the_masks_and_weights_of_one_big_batch(algo, clip, set_to_none):
    model, other = mlp(), mlp()
    one, two = (
        sparse(m, AdamW(m.parameters(), lr=0.02), algo, update_every=2) for m in (model, other)
    )
    for step in range(12):
        micro_batches(model, one, step, 1, set_to_none, clip)
        micro_batches(other, two, step, 4, set_to_none, clip)
        assert_same(dict(one.masks), dict(two.masks))
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert torch.allclose(p, q, **EXACT)
    assert one.steps == two.steps == 12 and one.updates == two.updates >= 4


def test_accumulation_with_the_models_own_zero_grad():
    model, other = mlp(), mlp()
    one, two = (sparse(m, SGD(m.parameters(), lr=0.1), "rigl") for m in (model, other))
    for step in range(9):
        micro_batches(model, one, step, 2)
        inputs, targets = batch(other, step, 8)
        other.zero_grad()
        for x, y in zip(inputs.chunk(2), targets.chunk(2), strict=True):
            ((other(x) - y).square().mean() / 2).backward()
        two.step()
    assert_same(dict(one.masks), dict(two.masks))
    assert_same(dict(model.state_dict()), dict(other.state_dict()))


def replace(p, factor):
    p.grad = p.grad * factor


BETWEEN = {
    "scaled": (0.25, lambda p: p.grad.mul_(0.25)),
    "turned around": (-3.0, lambda p: p.grad.mul_(-3.0)),
    "zeroed": (0.0, lambda p: p.grad.zero_()),
    "replaced": (0.25, lambda p: replace(p, 0.25)),
    "removed": (0.0, lambda p: setattr(p, "grad", None)),
}


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("way", BETWEEN)
def test_what_is_done_to_gradients_between_micro_batches_is_done_to_the_dense_ones(way, storage):
    """Growth sees what would have been summed up had nothing been masked."""
    seen = []

    @score(needs_gradient=True)
    def remembered(layer, context):
        seen.append(layer.gradient.clone())
        return layer.gradient.abs()

    model = mlp()
    recipe = Algorithm(0.5, drop_fraction=Constant(0.3), grow=remembered)
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), recipe, update_every=1, model=model, storage=storage
    )
    factor, change = BETWEEN[way]
    wanted = [torch.zeros_like(layer.weight) for layer in optimizer.layers]
    for part in range(3):
        if part:
            for layer, total in zip(optimizer.layers, wanted, strict=True):
                change(layer.weight)
                total *= factor
        weights = [layer.weight for layer in optimizer.layers]
        for total, g in zip(
            wanted, torch.autograd.grad(loss_of(model, part), weights), strict=True
        ):
            total += g
        loss_of(model, part).backward()
    optimizer.step()
    for total, found in zip(wanted, seen, strict=True):
        torch.testing.assert_close(found, total, **EXACT)


def test_hooks_between_micro_batches_are_gone_after_the_step():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl", update_every=2)
    for step in range(4):
        loss_of(model, step).backward()
        during = [len(layer.weight._backward_hooks or ()) for layer in optimizer.layers]
        assert during == [step % 2] * 2
        optimizer.step()
        optimizer.zero_grad()
        assert not any(layer.weight._backward_hooks for layer in optimizer.layers)


def test_gradients_never_zeroed_keep_adding_up_like_those_of_the_inner_optimizer():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.01), "static")
    plain = mlp()
    plain_optimizer = SGD(plain.parameters(), lr=0.01)
    for name, mask in optimizer.masks.items():
        plain.get_parameter(name).data.mul_(mask)
        plain.get_parameter(name).register_hook(lambda g, m=mask: g * m)
    for step in range(6):
        for m, o in ((model, optimizer), (plain, plain_optimizer)):
            loss_of(m, step).backward()
            o.step()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(p, q, **EXACT)
