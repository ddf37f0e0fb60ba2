"""Learning-rate schedulers see an ordinary optimizer, whichever was built first (row 1)."""

import copy
import inspect
import warnings

import pytest
import torch
from common import assert_zeros, loss_of, mlp, sparse
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import SWALR


def sequential(optimizer):
    parts = [
        lr_scheduler.ConstantLR(optimizer, total_iters=3),
        lr_scheduler.ExponentialLR(optimizer, 0.8),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def chained(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, total_iters=5),
        lr_scheduler.ExponentialLR(optimizer, 0.9),
    ]
    return lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)


SCHEDULERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.95**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 6]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, total_iters=9, power=2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.2, step_size_up=3),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1),
    "SequentialLR": sequential,
    "ChainedScheduler": chained,
    "SWALR": lambda o: SWALR(o, swa_lr=0.02, anneal_epochs=6),
}
INNERS = {
    "sgd": lambda params: SGD(params, lr=0.1, momentum=0.9),
    "adamw": lambda params: AdamW(params, lr=0.1),
}


def trace(optimizer, scheduler, model, steps=12):
    course = []
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step([3.0, 2.0, 2.5, 2.6, 2.7][min(step, 4)])
        else:
            scheduler.step()
        course.append(
            [
                {key: copy.deepcopy(group.get(key)) for key in ("lr", "momentum", "betas")}
                for group in optimizer.param_groups
            ]
        )
    return course


def test_every_scheduler_of_torch_is_on_the_list():
    known = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler)
    }
    assert known - {"LRScheduler", "_LRScheduler"} <= set(SCHEDULERS)
    assert len(SCHEDULERS) == 16


@pytest.mark.parametrize("order", ["scheduler first", "wrapped first"])
@pytest.mark.parametrize("inner", INNERS)
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # older SequentialLR passes it itself
def test_schedulers_give_the_bare_optimizers_trace(name, inner, order):
    bare_model, model = mlp(), mlp()
    bare, given = INNERS[inner](bare_model.parameters()), INNERS[inner](model.parameters())
    expected = trace(bare, SCHEDULERS[name](bare), bare_model)
    if order == "scheduler first":
        scheduler = SCHEDULERS[name](given)
        optimizer = sparse(model, given, "rigl")
    else:
        optimizer = sparse(model, given, "rigl")
        scheduler = SCHEDULERS[name](optimizer)
    assert trace(optimizer, scheduler, model) == expected
    assert optimizer.steps == 12 and optimizer.updates > 0
    assert given.param_groups is optimizer.param_groups
    assert_zeros(optimizer)


@pytest.mark.parametrize("name", ["StepLR", "OneCycleLR", "SequentialLR"])
def test_a_scheduler_sees_that_steps_were_taken_and_warns_only_when_it_should(name):
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), "set")
    scheduler = SCHEDULERS[name](optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(optimizer, scheduler, model, 3)
    other = sparse(mlp(), lambda params: SGD(params, lr=0.1), "set")
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        lr_scheduler.StepLR(other, 2).step()


def test_the_wrapper_is_an_optimizer_with_a_bound_step():
    model = mlp()
    inner = SGD(model.parameters(), lr=0.1)
    optimizer = sparse(model, inner, "set")
    assert isinstance(optimizer, Optimizer)
    assert inspect.ismethod(optimizer.step) and optimizer.step.__self__ is optimizer
    assert optimizer.param_groups is inner.param_groups
    assert optimizer.state is inner.state and optimizer.defaults is inner.defaults
    assert "__eq__" not in vars(type(optimizer)) and optimizer == optimizer
    assert hash(optimizer) is not None


def test_groups_state_and_defaults_can_be_replaced():
    model = mlp()
    inner = SGD(model.parameters(), lr=0.1)
    optimizer = sparse(model, inner, "set")
    groups, state = [dict(group) for group in inner.param_groups], copy.copy(inner.state)
    optimizer.param_groups, optimizer.state = groups, state
    optimizer.defaults = {**inner.defaults, "lr": 0.5}
    assert inner.param_groups is groups and inner.state is state
    assert inner.defaults["lr"] == 0.5
    groups[0]["lr"] = 0.0
    before = model[0].bias.clone()
    loss_of(model, 0).backward()
    optimizer.step()
    assert torch.equal(model[0].bias, before)
