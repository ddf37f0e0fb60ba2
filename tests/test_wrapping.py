"""The wrapper beside what surrounds it: added groups, hooks, other attributes, the model."""

import copy
import functools

import old_torch
import pytest
import torch
from common import (
    INNERS,
    UNKNOWN_STATE,
    MuonLike,
    assert_same,
    assert_zeros,
    batch,
    mlp,
    numbers,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


class Pair(nn.Module):
    """Two networks whose outputs are added."""

    input_shape = (6,)

    def __init__(self):
        super().__init__()
        self.first, self.second = mlp(), mlp((6, 9, 5), seed=3)

    def forward(self, inputs):
        return self.first(inputs) + self.second(inputs)


# --- add_param_group (row 14) ---------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
@pytest.mark.parametrize("inner", [i for i in INNERS if not i.needs_closure], ids=str)
def test_an_added_group_is_sparse_and_trained(inner, algo, storage):
    if inner.name == "adagrad" and old_torch.before(2, 12):
        pytest.skip("torch's own Adagrad steps no added group (KeyError) before torch 2.12")
    model = nn.Module()
    model.first, model.second = inner.model(), inner.model(sizes=(5, 9, 5), seed=3)
    model.input_shape = (6,)
    model.forward = lambda x: model.second(model.first(x))
    optimizer = sparse(model, inner(model.first.parameters()), algo, storage=storage)
    train(model, optimizer, 2)
    before = copy.deepcopy(dict(model.second.state_dict()))
    optimizer.add_param_group({"params": list(model.second.parameters())})
    assert [layer.name for layer in optimizer.layers] == [
        "first.0.weight", "first.2.weight", "second.0.weight", "second.2.weight",
    ]  # fmt: skip
    assert_zeros(optimizer)
    assert sum(numbers(optimizer)[2:]) == round(0.3 * (45 + 45))
    train(model, optimizer, 7, first=2, after_step=lambda step: assert_zeros(optimizer))
    for name, value in model.second.state_dict().items():
        assert not torch.equal(value, before[name])
    assert len(optimizer.param_groups) == 2 and optimizer.steps == 9


def test_a_scheduler_made_later_sees_both_groups():
    model = Pair()
    optimizer = sparse(model, SGD(model.first.parameters(), lr=0.1), "set")
    optimizer.add_param_group({"params": list(model.second.parameters()), "lr": 0.5})
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(model, optimizer, 1)
    scheduler.step()
    assert scheduler.get_last_lr() == [0.05, 0.25]


def test_an_added_group_may_have_a_sparsity_of_its_own_or_stay_dense():
    model = Pair()
    optimizer = sparse(model, SGD(model.first.parameters(), lr=0.1), "set", sparsity=0.5)
    optimizer.add_param_group({"params": list(model.second[0].parameters()), "sparsity": 0.75})
    optimizer.add_param_group({"params": list(model.second[2].parameters()), "sparsity": 0.0})
    assert numbers(optimizer)[2:] == [round(0.25 * 54)]
    before = model.second[2].weight.detach().clone()
    assert (before != 0).all()
    train(model, optimizer, 4, after_step=lambda step: assert_zeros(optimizer))
    assert not torch.equal(model.second[2].weight, before)


def test_a_group_without_a_sparse_weight_may_be_added():
    model = Pair()
    optimizer = sparse(model, SGD(model.first.parameters(), lr=0.1), "set")
    optimizer.add_param_group({"params": [model.second[0].bias]})
    assert len(optimizer.layers) == 2
    train(model, optimizer, 4)


@pytest.mark.parametrize(
    "group, error",
    [
        ({"params": [torch.ones(3, 3)], "sparsity": 2.0}, ValueError),
        ({"params": [nn.Parameter(torch.ones(3, 3))], "sparsity": 90}, ValueError),
        ({"params": [nn.Parameter(torch.ones(3, 3))], "sparsity": "a"}, TypeError),
        ({"params": "twice"}, ValueError),
        ({"params": [1, 2]}, TypeError),
        ([], TypeError),
    ],
    ids=str,
)
def test_a_group_that_is_refused_leaves_everything_as_it_was(group, error):
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl")
    train(model, optimizer, 2)
    if isinstance(group, dict) and group["params"] == "twice":
        group = {"params": [model[0].weight]}
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(error):
        optimizer.add_param_group(group)
    assert_same(optimizer.state_dict(), before)
    assert len(optimizer.layers) == 2
    train(model, optimizer, 4, first=2)


def test_groups_with_names_take_named_groups_and_keep_their_names():
    model = Pair()
    optimizer = SparseOptimizer(SGD(model.first.named_parameters(), lr=0.1), "set")
    optimizer.add_param_group(
        {"params": [(f"second.{name}", p) for name, p in model.second.named_parameters()]}
    )
    assert list(optimizer.masks) == ["0.weight", "2.weight", "second.0.weight", "second.2.weight"]


# --- hooks on the optimizer (row 18) --------------------------------------------------------------


def test_hooks_of_every_kind_fire_once():
    model = mlp()
    optimizer = sparse(model, AdamW(model.parameters()), "set")
    calls = []

    def note(name, value=None):
        return lambda *args, **kwargs: calls.append(name) or value

    optimizer.register_step_pre_hook(note("step_pre"))
    optimizer.register_step_post_hook(note("step_post"))
    optimizer.register_state_dict_pre_hook(note("state_dict_pre"))
    optimizer.register_state_dict_post_hook(note("state_dict_post"))
    optimizer.register_load_state_dict_pre_hook(note("load_pre"))
    optimizer.register_load_state_dict_post_hook(note("load_post"))
    train(model, optimizer, 1)
    assert calls == ["step_pre", "step_post"]
    saved = optimizer.state_dict()
    assert calls[2:] == ["state_dict_pre", "state_dict_post"]
    optimizer.load_state_dict(saved)
    assert calls[4:] == ["load_pre", "load_post"]


def test_hooks_may_replace_the_arguments_and_results():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "static")
    optimizer.register_state_dict_post_hook(lambda o, saved: {**saved, "note": "mine"})
    saved = optimizer.state_dict()
    assert saved["note"] == "mine"
    train(model, optimizer, 2)
    newer = copy.deepcopy(optimizer.state_dict())
    optimizer.register_load_state_dict_pre_hook(lambda o, given: newer)
    optimizer.load_state_dict(saved)
    assert optimizer.steps == 2
    seen = []
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o.steps))
    train(model, optimizer, 1)
    assert seen == [3]


def test_hooks_of_the_inner_optimizer_fire_once_per_step():
    model, calls = mlp(), []
    inner = SGD(model.parameters(), lr=0.1)
    inner.register_step_pre_hook(lambda *args: calls.append("pre"))
    inner.register_step_post_hook(lambda *args: calls.append("post"))
    train(model, sparse(model, inner, "set"), 2)
    assert calls == ["pre", "post"] * 2


def test_hooks_on_all_optimizers_see_both_of_them():
    model, calls = mlp(), []
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    handles = [
        register(lambda one, *_, name=name: calls.append((name, type(one).__name__)))
        for name, register in (
            ("pre", register_optimizer_step_pre_hook),
            ("post", register_optimizer_step_post_hook),
        )
    ]
    train(model, optimizer, 1)
    for handle in handles:
        handle.remove()
    train(model, optimizer, 1)
    ours, inner = "SparseOptimizer", "SGD"
    assert calls == [("pre", ours), ("pre", inner), ("post", inner), ("post", ours)]


def test_hooks_of_a_subclass_with_a_step_of_its_own_fire_once():
    class Counting(SparseOptimizer):
        def step(self, closure=None):
            calls.append("step")
            return super().step(closure)

    model, calls = mlp(), []
    optimizer = Counting(SGD(model.parameters(), lr=0.1), "set", model=model)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    train(model, optimizer, 1)
    assert calls == ["pre", "step", "post"]


def test_a_profile_shows_the_steps_of_both_optimizers():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        train(model, optimizer, 2)
    counts = {event.key: event.count for event in profile.key_averages()}
    assert counts["Optimizer.step#SparseOptimizer.step"] == 2
    assert counts["Optimizer.step#SGD.step"] == 2
    assert counts["Optimizer.zero_grad#SGD.zero_grad"] == 2


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("place", ["class", "object"])
def test_what_somebody_put_in_the_place_of_the_inner_step_is_called(place, storage, monkeypatch):
    model, calls = mlp(), []
    inner = SGD(model.parameters(), lr=0.1)
    optimizer = sparse(model, inner, "set", storage=storage)
    holder = SGD if place == "class" else inner
    original = holder.step

    @functools.wraps(original)  # which makes it look like torch's own
    def counting(*args, **options):
        calls.append("step")
        return original(*args, **options)

    monkeypatch.setattr(holder, "step", counting)
    train(model, optimizer, 3)
    assert calls == ["step"] * 3


# --- delegation (row 22) --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SGDScheduleFree", "AdamWScheduleFree", "RAdamScheduleFree"])
def test_a_schedule_free_optimizer_keeps_zeros_in_train_and_eval_mode(kind):
    schedulefree = pytest.importorskip("schedulefree")
    model = mlp()
    inner = getattr(schedulefree, kind)(model.parameters(), lr=0.05)
    optimizer = sparse(model, inner, "rigl")
    assert hasattr(optimizer, "train") and hasattr(optimizer, "eval")
    for epoch in range(4):
        optimizer.train()
        assert_zeros(optimizer)
        train(model, optimizer, 4, first=4 * epoch, after_step=lambda s: assert_zeros(optimizer))
        optimizer.eval()
        assert_zeros(optimizer)
    assert optimizer.updates >= 4


def test_unknown_attributes_are_the_inner_optimizers():
    class WithMore(MuonLike):
        colour = "blue"

        def consolidate_state_dict(self, to=0):
            return f"consolidated to {to}"

    model = mlp()
    optimizer = sparse(model, WithMore(model.parameters()), "set")
    assert optimizer.colour == "blue"
    assert optimizer.consolidate_state_dict(to=3) == "consolidated to 3"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = optimizer.nothing
    assert not hasattr(optimizer, "__array__")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_zero_redundancy_optimizer_consolidates(tmp_path):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = mlp()
        inner = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1, momentum=0.9)
        optimizer = sparse(model, inner, "set")
        train(model, optimizer, 4, after_step=lambda step: assert_zeros(optimizer))
        optimizer.consolidate_state_dict()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        assert optimizer.steps == 4
    finally:
        torch.distributed.destroy_process_group()


# --- the model is not touched (row 25) ------------------------------------------------------------


@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
def test_the_model_keeps_its_keys_modules_and_parameters(algo):
    model = mlp()
    keys, modules = list(model.state_dict()), [*model.named_modules()]
    parameters, attributes = [*model.parameters()], [set(vars(m)) for m in model.modules()]
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), algo)
    train(model, optimizer, 4)
    assert list(model.state_dict()) == keys and [*model.named_modules()] == modules
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert all(not m._forward_hooks and not m._backward_hooks for m in model.modules())
    fresh = mlp(seed=8)
    fresh.load_state_dict(model.state_dict())
    assert (fresh[0].weight == 0).double().mean() > 0.5


@pytest.mark.filterwarnings("ignore")
def test_the_model_exports_as_before():
    model = mlp(dtype=torch.float32)
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl")
    train(model, optimizer, 4)
    inputs, _ = batch(model, 0)
    exported = torch.export.export(model, (inputs,))
    assert torch.equal(exported.module()(inputs), model(inputs))
