"""Any value of any argument, at the start or later, is taken or refused cleanly."""

import warnings

import pytest
import torch
from common import (
    assert_same,
    assert_zeros,
    batch,
    mlp,
    snapshot,
    sparse,
    train,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import SGD, Adam, AdamW

from sparseopt import SparseOptimizer
from sparseopt.schedules import Cosine

# --- settings changed later -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value",
    [("total_steps", 0), ("total_steps", "a"), ("update_every", 0), ("update_every", 1.5),
     ("on_update", 3)],
)  # fmt: skip
def test_a_setter_checks_like_the_constructor(name, value):
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    before = getattr(optimizer, name)
    with pytest.raises((ValueError, TypeError), match=name):
        setattr(optimizer, name, value)
    assert getattr(optimizer, name) == before


def test_a_density_that_changes_keeps_its_length_of_training():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "granet_r")
    with pytest.raises(ValueError, match="total_steps=None: algo='granet_r' changes its density"):
        optimizer.total_steps = None
    assert optimizer.total_steps == 40
    optimizer.total_steps = 60
    still = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    still.total_steps = None


def test_what_is_known_of_it_cannot_be_overwritten():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    for name in ("layers", "masks", "sparsity", "density", "steps", "updates", "history"):
        with pytest.raises(AttributeError):
            setattr(optimizer, name, 0.5)


# --- any value ------------------------------------------------------------------------------------

ANYTHING = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 200), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=2), st.just(Cosine(0.2)),
)  # fmt: skip
ARGUMENTS = st.sampled_from(
    ["sparsity", "total_steps", "update_every", "distribution", "topology", "storage", "seed",
     "drop_fraction", "stop", "start", "scope", "regrow_same", "grown_state", "rounding",
     "include", "exclude", "on_update", "signed", "skip_step_on_update"]
)  # fmt: skip


@settings(max_examples=150)
@given(ARGUMENTS, ANYTHING)
def test_any_value_of_any_argument_is_taken_or_refused_cleanly(name, value):
    model = mlp()
    optimizer = AdamW(model.parameters())
    before = snapshot(model, optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = SparseOptimizer(optimizer, **{"model": model, "update_every": 2, name: value})
        if name != "on_update":
            train(model, wrapped, 5)
        assert_zeros(wrapped)
    except (ValueError, TypeError) as error:
        assert len(str(error)) > 15
        assert_same(snapshot(model, optimizer), before)


def test_gradients_of_another_shape_or_type_are_torchs_business_not_ours():
    model = mlp()
    optimizer = sparse(model, Adam(model.parameters()), "set")
    with pytest.raises(RuntimeError):
        model[0].weight.grad = torch.ones(2, 2)
    inputs, _ = batch(model, 0)
    model(inputs).sum().backward()
    optimizer.step()
    assert_zeros(optimizer)
