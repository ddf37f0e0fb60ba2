"""Gradients see the sparse model: clipping, scaling and closures stay exact."""

import copy
import math

import pytest
import torch
from common import (
    UNKNOWN_STATE,
    assert_same,
    assert_zeros,
    batch,
    inner_named,
    loss_of,
    mlp,
    rng,
    sparse,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from references import TrulySparse
from torch import nn
from torch.func import functional_call, grad
from torch.optim import LBFGS, SGD, Adam, AdamW

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)

EXACT = {"rtol": 0, "atol": 1e-12}
STORAGES = ["masked", "compact"]


def makers():
    return {
        "sgd": lambda params: SGD(params, lr=0.1, weight_decay=0.01),
        "momentum": lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
        "adam": lambda params: Adam(params, lr=0.02, weight_decay=0.1),
        "adamw": lambda params: AdamW(params, lr=0.02, weight_decay=0.1),
        "adamw-fused": lambda params: AdamW(params, lr=0.02, weight_decay=0.1, fused=True),
    }


def reference_loss(model, step, size=4):
    inputs, targets = batch(model, step, size)
    return lambda forward: (forward(inputs) - targets).square().mean()


def assert_close(model, reference):
    for p, q in zip(model.parameters(), reference.weights(), strict=True):
        assert torch.allclose(p, q, **EXACT), float((p - q).abs().max())


# --- clipping (row 8) -----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("kind", makers())
def test_training_equals_the_truly_sparse_network_also_at_growth_steps(kind, clip, storage):
    model = mlp((6, 8, 7, 5))
    make = makers()[kind]
    optimizer = SparseOptimizer(
        make(model.parameters()), "rigl", sparsity=0.7, model=model, update_every=4,
        drop_fraction=0.3, storage=storage,
    )  # fmt: skip
    reference = TrulySparse(mlp((6, 8, 7, 5)), optimizer.masks, make)
    for step in range(40):
        train(model, optimizer, 1, first=step, clip=clip)
        reference.step(reference_loss(model, step), clip)
        if (step + 1) % 4 == 0:
            reference.rigl(0.3)
        assert_same(dict(optimizer.masks), reference.masks)
        assert_close(model, reference)
        assert_zeros(optimizer)
    assert optimizer.updates == 10 and sum(r.grown - r.regrown for r in optimizer.history) > 20


@settings(max_examples=20)
@given(
    st.lists(st.integers(2, 8), min_size=1, max_size=3),
    st.floats(0.1, 0.9),
    st.integers(1, 5),
    st.floats(0.01, 10),
    st.sampled_from([*makers()]),
)
def test_clipped_training_equals_the_truly_sparse_network_for_any_network(
    widths, sparsity, every, clip, kind
):
    sizes = (6, *widths, 5)
    model, make = mlp(sizes), makers()[kind]
    optimizer = SparseOptimizer(
        make(model.parameters()), "rigl", sparsity=sparsity, model=model, update_every=every,
        drop_fraction=0.4,
    )  # fmt: skip
    reference = TrulySparse(mlp(sizes), optimizer.masks, make)
    for step in range(10):
        train(model, optimizer, 1, first=step, clip=clip)
        reference.step(reference_loss(model, step), clip)
        if (step + 1) % every == 0:
            reference.rigl(0.4)
    assert_same(dict(optimizer.masks), reference.masks)
    assert_close(model, reference)


@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("every", [1, 2, 100])
def test_the_norm_seen_after_backward_is_that_of_the_sparse_model(algo, every):
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.1), algo, update_every=every, total_steps=None
    )
    for step in range(4):
        dense = mlp()
        dense.load_state_dict(model.state_dict())
        loss_of(dense, step).backward()
        for name, mask in optimizer.masks.items():
            dense.get_parameter(name).grad.mul_(mask)
        expected = math.sqrt(sum(float(p.grad.square().sum()) for p in dense.parameters()))
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for layer in optimizer.layers:
            assert (layer.weight.grad[~layer.mask] == 0).all()
        assert float(nn.utils.get_total_norm(p.grad for p in model.parameters())) == (
            pytest.approx(expected, rel=1e-12)
        )
        optimizer.step()


def test_gradients_set_by_hand_are_masked_and_grow():
    """torch.func bypasses every hook; the dense gradient is p.grad itself."""
    model, other = mlp(), mlp()
    one = sparse(model, AdamW(model.parameters()), "rigl")
    two = sparse(other, AdamW(other.parameters()), "rigl")
    train(model, one, 7)
    for step in range(7):
        inputs, targets = batch(other, step)

        def loss(weights, inputs=inputs, targets=targets):
            return (functional_call(other, weights, (inputs,)) - targets).square().mean()

        weights = {name: p.detach() for name, p in other.named_parameters()}
        for name, value in grad(loss)(weights).items():
            other.get_parameter(name).grad = value
        two.step()
        assert_zeros(two)
    assert_same(dict(one.masks), dict(two.masks))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, **EXACT)


# --- GradScaler (row 10) --------------------------------------------------------------------------


def scaled_step(model, optimizer, scaler, step, bad=False, clip=None):
    optimizer.zero_grad()
    scaler.scale(loss_of(model, step)).backward()
    if bad:
        model[0].weight.grad[0, 0] = math.inf
        model[0].bias.grad[0] = math.inf
    if clip is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    scaler.step(optimizer)
    scaler.update()


SCALED = ["sgd", "sgd-fused", "adamw", "adamw-fused", "adam-foreach"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("inner", SCALED)
def test_a_step_skipped_by_the_scaler_counts_nothing_and_changes_nothing(
    inner, algo, clip, storage
):
    model = mlp(dtype=torch.float32)
    optimizer = sparse(model, inner_named(inner), algo, update_every=3, storage=storage)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(6):
        before = copy.deepcopy((dict(model.state_dict()), dict(optimizer.masks)))
        state = copy.deepcopy(optimizer.state_dict())
        scaled_step(model, optimizer, scaler, step, bad=step == 2, clip=clip)
        if step == 2:
            assert_same((dict(model.state_dict()), dict(optimizer.masks)), before)
            assert_same(optimizer.state_dict(), state)
        assert all(p.isfinite().all() for p in model.parameters())
        assert_zeros(optimizer)
    assert optimizer.steps == 5
    assert [record.step for record in optimizer.history] == [3]


@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("inner", SCALED)
def test_scaling_by_a_power_of_two_changes_no_mask_and_no_weight(inner, algo):
    model, other = mlp(), mlp()
    one, two = (sparse(m, inner_named(inner), algo, update_every=2) for m in (model, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(8):
        train(model, one, 1, first=step)
        scaled_step(other, two, scaler, step)
    assert one.steps == two.steps == 8
    assert_same(dict(one.masks), dict(two.masks))
    assert_same(dict(model.state_dict()), dict(other.state_dict()))


@pytest.mark.parametrize("inner", ["sgd-fused", "adamw-fused"])
def test_amp_names_are_never_offered(inner):
    model = mlp()
    optimizer = sparse(model, inner_named(inner), "set")
    assert optimizer.inner._step_supports_amp_scaling
    assert not getattr(optimizer, "_step_supports_amp_scaling", False)
    assert not hasattr(optimizer, "grad_scale") and not hasattr(optimizer, "found_inf")


# --- closures (row 11) ----------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_a_closure_is_masked_and_its_loss_returned(storage):
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.1, momentum=0.9), "rigl", storage=storage
    )
    for step in range(9):
        seen = []

        def closure(step=step, seen=seen):
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(model, step)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            seen.append(loss)
            return loss

        loss = optimizer.step(closure)
        assert loss is seen[0] and len(seen) == 1
        assert_zeros(optimizer)
        for layer in optimizer.layers:
            assert (layer.weight.grad[~layer.mask] == 0).all()
    assert optimizer.steps == 9 and optimizer.updates == 3


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_lbfgs_equals_the_truly_sparse_network(line_search):
    def make(params):
        return LBFGS(params, lr=0.5, max_iter=5, history_size=5, line_search_fn=line_search)

    model = mlp((6, 8, 7, 5))
    optimizer = SparseOptimizer(make(model.parameters()), "static", sparsity=0.7, model=model)
    reference = TrulySparse(mlp((6, 8, 7, 5)), optimizer.masks, make)
    for step in range(4):
        train(model, optimizer, 1, first=step, closure=True)

        def closure(step=step):
            reference.optimizer.zero_grad()
            loss = reference_loss(model, step)(reference.forward)
            loss.backward()
            return loss

        reference.optimizer.step(closure)
        assert_zeros(optimizer)
        for p, q in zip(model.parameters(), reference.weights(), strict=True):
            assert torch.allclose(p, q, rtol=0, atol=1e-10)
    assert optimizer.steps == 4


@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_lbfgs_keeps_zeros_and_lowers_the_loss_through_updates(algo):
    model = mlp((6, 8, 7, 5))
    inner = LBFGS(model.parameters(), lr=0.5, max_iter=4)
    optimizer = sparse(model, inner, algo, update_every=3)
    first = loss_of(model, 0).item()

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(15):
        optimizer.step(closure)
        assert_zeros(optimizer)
    assert optimizer.updates >= 3 and loss_of(model, 0).item() < first


# --- hooks on parameters --------------------------------------------------------------------------


def test_the_users_own_hooks_still_run_and_see_what_autograd_made():
    model = mlp()
    before, after = [], []
    weight = model[0].weight
    weight.register_hook(lambda g: before.append(g.clone()))
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "static")
    weight.register_post_accumulate_grad_hook(lambda p: after.append(p.grad.clone()))
    loss_of(model, 0).backward()
    inactive = ~optimizer.masks["0.weight"]
    assert (before[0][inactive] != 0).any() and (after[0][inactive] == 0).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("algo", ["rigl", "set"])
def test_a_second_phase_is_not_held_back_by_the_optimizer_of_the_first(algo, storage):
    """The first one is still there, held by a scheduler or a list: its masks have had their day."""

    def run(kept):
        model = mlp()
        first = sparse(model, SGD, algo, storage=storage)
        train(model, first, 4)
        second = sparse(model, AdamW, algo, storage=storage, seed=5, topology=dict(first.masks))
        kept = [first] if kept else []
        del first
        train(model, second, 12, first=4)
        return model, second, kept

    (model, optimizer, _), (other, alone, _) = run(kept=True), run(kept=False)
    assert_same(dict(optimizer.masks), dict(alone.masks))
    assert_same(model.state_dict(), other.state_dict())


def test_an_optimizer_goes_on_when_another_one_on_its_weights_is_gone():
    model = mlp()
    optimizer = sparse(model, SGD, "static")
    del_me = sparse(model, SGD, "static", topology=dict(optimizer.masks))
    del del_me
    loss_of(model, 0).backward()
    for layer in optimizer.layers:
        assert not layer.weight.grad[~layer.mask].any()


def test_wrapping_the_same_model_anew_leaves_no_old_mask_at_work():
    model = mlp()
    first = sparse(model, SGD(model.parameters(), lr=0.1), "static", seed=1)
    old = copy.deepcopy(first.masks)
    del first
    second = sparse(model, SGD(model.parameters(), lr=0.1), "rigl", seed=2, sparsity=0.2)
    train(model, second, 9)
    grown = [second.masks[name] & ~old[name] for name in old]
    assert all((model.get_parameter(n)[g] != 0).any() for n, g in zip(old, grown, strict=True))


def test_gradients_kept_for_double_backward_do_not_break_the_step():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "static")
    optimizer.zero_grad()
    loss = loss_of(model, 0)
    with pytest.warns(UserWarning, match="create_graph"):
        loss.backward(create_graph=True)
    optimizer.step()
    optimizer.zero_grad()
    assert_zeros(optimizer)


def test_activation_checkpointing_and_retained_graphs_give_the_same_masks():
    from torch.utils.checkpoint import checkpoint

    model, other = mlp(), mlp()
    one, two = (sparse(m, SGD(m.parameters(), lr=0.1), "rigl") for m in (model, other))
    train(model, one, 7)
    for step in range(7):
        inputs, targets = batch(other, step)
        two.zero_grad()
        outputs = checkpoint(other, inputs.requires_grad_(), use_reentrant=False)
        (outputs - targets).square().mean().backward()
        two.step()
    assert_same(dict(one.masks), dict(two.masks))


def test_noise_on_gradients_between_backward_and_step_is_masked():
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.1, momentum=0.9), "static", storage="masked"
    )
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        for p in model.parameters():
            p.grad.add_(torch.randn(p.shape, generator=rng(step), dtype=p.dtype))
        optimizer.step()
        assert_zeros(optimizer)
        for layer in optimizer.layers:
            buffer = optimizer.state[layer.weight]["momentum_buffer"]
            assert (buffer[~layer.mask] == 0).all()
