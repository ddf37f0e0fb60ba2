"""The wrapper in other people's stacks: groups, proxies, hooks, compile, averages, the model."""

import copy
import warnings

import pytest
import torch
from common import (
    INNERS,
    UNKNOWN_STATE,
    MuonLike,
    assert_same,
    assert_zeros,
    batch,
    inner_named,
    loss_of,
    mlp,
    numbers,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


def importorskip(name):
    """Other people's packages may warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


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


# --- proxies (row 16) -----------------------------------------------------------------------------


def lightning_proxy(optimizer):
    importorskip("lightning.pytorch")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    class Strategy:
        def optimizer_step(self, optimizer, closure, **options):
            return optimizer.step(closure=closure)

    proxy = LightningOptimizer(optimizer)
    proxy._strategy = Strategy()
    return proxy


def fabric_proxy(optimizer):
    importorskip("lightning.fabric")
    from lightning.fabric.strategies import SingleDeviceStrategy
    from lightning.fabric.wrappers import _FabricOptimizer

    return _FabricOptimizer(optimizer, SingleDeviceStrategy(device=torch.device("cpu")))


@pytest.mark.parametrize("proxy", [lightning_proxy, fabric_proxy])
def test_setters_and_methods_called_through_a_proxy_reach_the_real_object(proxy):
    model = mlp()
    real = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), "rigl")
    seen = []
    stand_in = proxy(real)
    stand_in.update_every = 7
    stand_in.total_steps = 99
    stand_in.on_update = seen.append
    assert (real.update_every, real.total_steps, real.on_update) == (7, 99, seen.append)
    stand_in.param_groups[0]["lr"] = 0.25
    assert real.inner.param_groups[0]["lr"] == 0.25
    loss_of(model, 0).backward()
    real.step()
    assert stand_in.steps == real.steps == 1
    assert stand_in.update_topology() is None
    train(model, real, 1, first=1)
    assert real.updates == stand_in.updates == 1 and len(seen) == 1
    stand_in.apply_masks()
    stand_in.zero_grad()
    saved = copy.deepcopy(stand_in.state_dict())
    train(model, real, 2, first=2)
    stand_in.load_state_dict(saved)
    assert real.steps == stand_in.steps == 2
    extra = nn.Parameter(torch.randn(5, 6, dtype=torch.float64))
    stand_in.add_param_group({"params": [extra]})
    assert len(real.layers) == len(stand_in.layers) == 3 and (extra == 0).any()
    assert real.summary() == stand_in.summary() and stand_in.masks.keys() == real.masks.keys()
    for name in ("_run", "_storage", "_hooks", "_pools", "_layers"):
        assert name not in vars(stand_in)


@pytest.mark.parametrize("proxy", [lightning_proxy, fabric_proxy])
@pytest.mark.parametrize("storage", ["masked", "auto"])
def test_steps_through_a_proxy_equal_steps_without(proxy, storage):
    model, other = mlp(), mlp()
    one = sparse(model, AdamW(model.parameters(), lr=0.01), "rigl", storage=storage)
    two = sparse(other, AdamW(other.parameters(), lr=0.01), "rigl", storage=storage)
    train(model, one, 7)
    train(other, proxy(two), 7, closure=proxy is lightning_proxy)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(dict(one.masks), dict(two.masks))
    assert two.steps == 7 and two.updates == one.updates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip, accumulate", [(None, 1), (0.1, 1), (0.1, 2)])
def test_lightning_trainer_counts_its_global_steps_and_keeps_zeros(tmp_path, clip, accumulate):
    lightning = importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(dtype=torch.float32)

        def training_step(self, step, index):
            return loss_of(self.net, int(step[0]))

        def configure_optimizers(self):
            self.sparse = sparse(self, SGD(self.parameters(), lr=0.1, momentum=0.9), "rigl")
            return self.sparse

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        gradient_clip_val=clip, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.arange(16)))
    assert module.sparse.steps == trainer.global_step == 16 // accumulate
    assert module.sparse.updates == module.sparse.steps // 3
    assert_zeros(module.sparse)


# --- torch.compile (row 17) -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
def test_a_compiled_step_makes_at_most_two_graphs_in_30_steps(algo, storage):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, other = mlp(), mlp()
    lr = torch.tensor(0.01)
    optimizer = sparse(model, AdamW(model.parameters(), lr=lr), algo, storage=storage)
    eager = sparse(other, AdamW(other.parameters(), lr=lr.clone()), algo, storage=storage)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    its_scheduler = torch.optim.lr_scheduler.ExponentialLR(eager, 0.9)
    addresses = [mask.data_ptr() for mask in optimizer.masks.values()]
    step = torch.compile(optimizer.step, backend=counting)
    for number in range(30):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        step()
        scheduler.step()
        train(other, eager, 1, first=number)
        its_scheduler.step()
        assert_zeros(optimizer)
    assert [mask.data_ptr() for mask in optimizer.masks.values()] == addresses
    assert 1 <= len(graphs) <= 2
    assert optimizer.steps == 30
    assert_same(dict(optimizer.masks), dict(eager.masks))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # compiled, torch counts steps in float32 and corrects the bias with that
        assert torch.allclose(p, q, rtol=0, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_like_the_model():
    torch._dynamo.reset()
    model, other = mlp(), mlp()
    compiled = torch.compile(other, backend="aot_eager")
    compiled.input_shape = other.input_shape
    one = sparse(model, SGD(model.parameters(), lr=0.1), "rigl")
    two = sparse(compiled, SGD(compiled.parameters(), lr=0.1), "rigl")
    train(model, one, 7)
    train(compiled, two, 7)
    assert_same(dict(one.masks), dict(two.masks))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
    torch._dynamo.reset()


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


# --- averages and late loading (row 24) -----------------------------------------------------------


@pytest.mark.parametrize("average", ["ema", "swa"])
def test_masks_applied_to_an_average_give_it_the_target_density(average):
    model = mlp((6, 16, 5))
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", update_every=2)
    options = {"multi_avg_fn": get_ema_multi_avg_fn(0.9)} if average == "ema" else {}
    averaged = AveragedModel(model, **options)
    train(model, optimizer, 20, after_step=lambda step: averaged.update_parameters(model))

    def density():
        kept = [averaged.module.get_parameter(layer.name) for layer in optimizer.layers]
        return sum(int((p != 0).sum()) for p in kept) / sum(p.numel() for p in kept)

    assert density() > 1.5 * optimizer.density
    biases = averaged.module[0].bias.clone()
    optimizer.apply_masks(averaged)
    assert density() <= optimizer.density
    for layer in optimizer.layers:
        assert (averaged.module.get_parameter(layer.name)[~layer.mask] == 0).all()
    assert torch.equal(averaged.module[0].bias, biases)


def test_masks_apply_to_a_copy_by_order_where_names_are_unknown():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", model=None)
    copied = mlp(seed=4)
    optimizer.apply_masks(copied)
    for layer, p in zip(optimizer.layers, (copied[0].weight, copied[2].weight), strict=True):
        assert (p[~layer.mask] == 0).all() and (p[layer.mask] != 0).all()


@pytest.mark.parametrize("other", [lambda: mlp((6, 9, 5)), lambda: mlp((6, 8, 8, 5)), nn.Identity])
def test_masks_do_not_apply_to_another_model(other):
    model, other = mlp(), other()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", exclude="0")
    before = copy.deepcopy(dict(other.state_dict()))
    with pytest.raises(ValueError, match="2.weight"):
        optimizer.apply_masks(other)
    assert_same(dict(other.state_dict()), before)


WRITES = {
    "load_state_dict": lambda model: model.load_state_dict(mlp(seed=9).state_dict()),
    "under no_grad": lambda model: [torch.no_grad()(p.fill_)(1.0) for p in model.parameters()],
    "through .data": lambda model: [p.data.fill_(1.0) for p in model.parameters()],
    "a new .data": lambda model: [setattr(p, "data", p.data + 1) for p in model.parameters()],
    "through numpy": lambda model: [p.detach().numpy().fill(1.0) for p in model.parameters()],
}


@pytest.mark.parametrize("inner", ["sgd", "sgd-nesterov", "adamw", "adamw-fused", "muon-like"])
@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("how", WRITES)
def test_weights_written_late_are_zero_again_after_the_next_step(how, inner, storage):
    model = mlp()
    optimizer = sparse(model, inner_named(inner), "set", storage=storage)
    train(model, optimizer, 4)
    WRITES[how](model)
    train(model, optimizer, 1, first=4)
    assert_zeros(optimizer)
    WRITES[how](model)
    optimizer.apply_masks()
    assert_zeros(optimizer)
    WRITES[how](model)
    optimizer.load_state_dict(optimizer.state_dict())
    assert_zeros(optimizer)


@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("part", ["one weight", "one row", "everything"])
def test_a_large_layer_written_in_part_through_data_is_zero_again(part, storage):
    model = mlp((200, 300, 5), dtype=torch.float32)
    optimizer = sparse(model, AdamW(model.parameters()), "set", storage=storage, sparsity=0.9)
    weight = model[0].weight
    for step in range(3):
        model(torch.ones(2, 200)).sum().backward()
        optimizer.step()
        row = int((~optimizer.masks["0.weight"]).sum(1).argmax())
        column = int((~optimizer.masks["0.weight"][row]).nonzero()[step])
        target = {"one weight": weight.data[row, column], "one row": weight.data[row]}
        target.get(part, weight.data).fill_(1.0)
        optimizer.zero_grad()
        model(torch.ones(2, 200)).sum().backward()
        optimizer.step()
        assert_zeros(optimizer)


def clip_weights(model):  # of a Wasserstein critic (Arjovsky et al. 2017, algorithm 1)
    for p in model.parameters():
        p.data.clamp_(-0.25, 0.25)


def write_one_weight(model):
    row, column = (model[0].weight != 0).nonzero()[1]
    model[0].weight.data[row, column] = 0.75


@pytest.mark.parametrize("change", [clip_weights, write_one_weight])
@pytest.mark.parametrize("storage", ["compact", "auto"])
def test_active_weights_changed_through_data_keep_what_was_written(storage, change):
    results = []
    for kind in ("masked", storage):
        model = mlp((100, 150, 5))
        with torch.no_grad():
            model[0].weight.mul_(0.15)  # few lie beyond the clip
        optimizer = sparse(
            model, SGD(model.parameters(), lr=0.01, momentum=0.9), "set", storage=kind
        )
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, step).backward()
            optimizer.step()
            change(model)
        optimizer.zero_grad()
        loss_of(model, 6).backward()
        optimizer.step()
        assert_zeros(optimizer)
        results.append(model)
    for p, q in zip(*(model.parameters() for model in results), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


def test_a_model_moved_to_another_type_keeps_its_masks():
    model = mlp(dtype=torch.float32)
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), "rigl")
    masks = copy.deepcopy(optimizer.masks)
    model.double()
    assert_same(dict(optimizer.masks), masks)
    train(model, optimizer, 4, after_step=lambda step: assert_zeros(optimizer))
    assert optimizer.updates == 1


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
