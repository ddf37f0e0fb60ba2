"""Weights that tell when somebody may write them: no write is lost, and nobody reads in vain."""

import copy
import ctypes
import pickle
import threading

import numpy as np
import pytest
import torch
from common import assert_same, inner_named, loss_of, mlp, sparse, train
from torch import nn
from torch.nn import functional as F

from sparseopt import watched
from sparseopt.storage import compact
from sparseopt.watched import Watched

pytestmark = pytest.mark.skipif(watched.holders is None, reason="this torch does not count holders")


def pair(**options):
    """The same network under masked and under compact storage, three steps old."""
    made = []
    for storage in ("masked", "compact"):
        model = mlp()
        inner = inner_named("adamw")(model.parameters())
        optimizer = sparse(model, inner, "set", storage=storage, update_every=7, **options)
        train(model, optimizer, 3)
        made.append((model, optimizer))
    return made


def is_watched(model):
    return type(model[0].weight) is Watched and type(model[2].weight) is Watched


def active(values):
    """A view of the entry with the largest magnitude: it is active."""
    entries = values.view(-1)
    return entries[entries.abs().argmax()]


def in_a_thread(call):
    thread = threading.Thread(target=call)
    thread.start()
    thread.join()


def by_address(weight):
    place = int(weight.detach().abs().argmax()) * weight.element_size()
    ctypes.c_double.from_address(weight.data_ptr() + place).value = 0.5


@torch.no_grad()
def without_grad(weight):
    weight.view(-1).numpy()[int(weight.abs().argmax())] = 0.5


def compiled(weight):
    torch._dynamo.reset()
    torch.compile(lambda: weight.data.mul_(0.5), backend="eager")()


class Box:
    def __init__(self, weight):
        self.weight = weight


@torch.overrides.wrap_torch_function(lambda box: (box.weight,))
def halve(box):
    box.weight.data.mul_(0.5)


WRITES = {
    "data": lambda w: active(w.data).fill_(0.5),
    "clamped data": lambda w: w.data.clamp_(-0.05, 0.05),
    "another data": lambda w: setattr(w, "data", w.data * 2),
    "data of a row": lambda w: w[1].data.mul_(2),
    "data of a transpose": lambda w: w.T.data.mul_(2),
    "data of an alias": lambda w: active(w.detach().data).fill_(0.5),
    "numpy": lambda w: active(torch.from_numpy(w.detach().numpy())).fill_(0.5),
    "numpy of a view": without_grad,
    "array": lambda w: np.asarray(w.detach()).__imul__(0.5),
    "dlpack": lambda w: active(torch.from_dlpack(w.detach())).fill_(0.5),
    "storage": lambda w: w.untyped_storage().copy_((w * 2).detach().untyped_storage()),
    "address": by_address,
    "in place": lambda w: torch.no_grad()(w.mul_)(0.5),
    "foreach": lambda w: torch.no_grad()(torch._foreach_mul_)([w], 0.5),
    "out": lambda w: torch.no_grad()(torch.mul)(w, 2.0, out=w),
    "initialised": lambda w: nn.init.constant_(w, 0.1),
    "chunks": lambda w: torch.no_grad()(lambda: [c.data.mul_(2) for c in w.chunk(2)])(),
    "iterated": lambda w: [row.data.mul_(2) for row in w],
    "thread": lambda w: in_a_thread(lambda: w.data.mul_(2)),
    "compiled": compiled,
    "in an object of the caller's": lambda w: halve(Box(w)),
    "renormalised embedding": lambda w: F.embedding(torch.tensor([0, 1]), w, max_norm=0.1),
}


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")
@pytest.mark.parametrize("grad", ["before backward", "after backward"])
@pytest.mark.parametrize("write", WRITES)
def test_what_is_written_past_autograd_is_trained_on(write, grad):
    ends = []
    for model, optimizer in pair():
        assert is_watched(model) == (type(optimizer._storage) is compact.Compact)
        for step in range(3):  # across an update, and with the same write again
            if grad == "after backward":
                loss_of(model, step).backward()
            WRITES[write](model[0].weight)
            if grad == "after backward":
                optimizer.step()
                optimizer.zero_grad()
            train(model, optimizer, 2)
        ends.append((model, optimizer))
    (one, first), (other, second) = ends
    assert_same(first.masks, second.masks)
    assert_same(dict(one.state_dict()), dict(other.state_dict()))


HELD = {
    "data": lambda w: w.data,
    "state dict": lambda w: w.detach(),
    "numpy": lambda w: torch.from_numpy(w.detach().numpy()),
    "storage": lambda w: torch.empty(0, dtype=w.dtype).set_(w.untyped_storage(), 0, w.shape),
    "storage only": lambda w: w.untyped_storage(),
    "array": lambda w: torch.from_numpy(np.asarray(w.detach())),
    "row": lambda w: w.data[1],
    "torch functions off": lambda w: without_torch_functions(w),
    "shared": lambda w: w.detach().share_memory_(),
}


def without_torch_functions(weight):
    with torch._C.DisableTorchFunctionSubclass():
        return weight.data


def halve_largest(held):
    if not isinstance(held, torch.Tensor):
        held = torch.empty(0, dtype=torch.double).set_(held)
    active(held).mul_(0.5)


@pytest.mark.parametrize("early", [True, False])
@pytest.mark.parametrize("held", HELD)
def test_memory_that_somebody_holds_is_read_at_every_step(held, early):
    ends = []
    for storage in ("masked", "compact"):
        model = mlp()
        alias = HELD[held](model[0].weight) if early else None
        optimizer = sparse(
            model, inner_named("sgd")(model.parameters()), "set", storage=storage, update_every=7
        )
        train(model, optimizer, 2)
        alias = HELD[held](model[0].weight) if alias is None else alias
        for _ in range(4):
            halve_largest(alias)
            train(model, optimizer, 2)
        ends.append(model.state_dict())
    assert_same(*ends)


def test_a_training_loop_reads_no_weights(monkeypatch):
    (_, _), (model, optimizer) = pair()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    scaler = torch.amp.GradScaler("cpu")
    taken = []
    gather = compact.gather
    monkeypatch.setattr(compact, "gather", lambda s, w, *a: taken.append(w) or gather(s, w, *a))
    for step in range(3):
        (optimizer if step % 2 else model).zero_grad()
        model.train()
        penalty = sum((p**2).sum() + p.abs().mean() for p in model.parameters())
        scaler.scale(loss_of(model, step) + 1e-4 * penalty).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        model.eval()
        with torch.no_grad():
            loss_of(model, step)
            assert all(float(p.norm()) > 0 for p in model.parameters())
    assert is_watched(model)
    weights = [layer.weight for layer in optimizer.layers]
    gradients = len(weights) * 3
    assert len(taken) == gradients, "only gradients are gathered"
    model[0].weight.detach()
    train(model, optimizer, 1)
    assert len(taken) == gradients + len(weights) + 1


def test_a_small_weight_stays_an_ordinary_parameter(monkeypatch):
    monkeypatch.setattr(compact, "WORTH_WATCHING", 10**6)
    (_, _), (model, _) = pair()
    assert type(model[0].weight) is nn.Parameter


def test_a_watched_weight_is_the_same_parameter_everywhere():
    (_, _), (model, optimizer) = pair()
    weight = model[0].weight
    assert is_watched(model) and isinstance(weight, nn.Parameter)
    assert any(weight is p for group in optimizer.param_groups for p in group["params"])
    assert torch.is_tensor(F.linear(torch.ones(1, weight.shape[1]).double(), weight))
    for made in (weight + 0, weight @ weight.T, F.linear(weight.detach(), weight), weight.sum()):
        assert type(made) is torch.Tensor


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "parameter": nn.Parameter,
    "buffer": nn.Buffer,
    "clone": lambda w: w.clone(),
}


@pytest.mark.parametrize("copied", COPIES)
def test_copies_of_a_watched_weight_are_ordinary(copied):
    (_, _), (model, _) = pair()
    weight = model[0].weight
    assert type(weight) is Watched
    made = COPIES[copied](weight)
    assert "Watched" not in type(made).__name__ and torch.equal(made, weight)


def test_a_watched_weight_prints_as_a_parameter():
    (_, _), (model, _) = pair()
    assert repr(model[0].weight).startswith("Parameter containing:\ntensor(")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_code_meets_ordinary_parameters():
    ends = []
    torch._dynamo.reset()
    for model, optimizer in pair():
        fast = torch.compile(model, backend="eager", fullgraph=True)
        train(fast, optimizer, 2)
        assert type(model[0].weight) is nn.Parameter
        train(fast, optimizer, 3)
        assert type(model[0].weight) is nn.Parameter
        ends.append(model.state_dict())
    assert_same(*ends)


def test_another_optimizer_takes_over_watched_weights():
    (_, _), (model, _) = pair()
    other = sparse(model, inner_named("adamw")(model.parameters()), "set", storage="compact")
    assert type(other._storage) is compact.Compact
    train(model, other, 3)


@pytest.mark.parametrize("algo", ["set", "rigl", "mest_g"])
def test_after_an_update_the_values_are_known_without_reading(algo, monkeypatch):
    ends, taken, gather = [], [], compact.gather

    def counted(source, like, *others):
        taken.append(source.data_ptr() == like.data_ptr())  # the weight itself, not its gradient
        gather(source, like, *others)

    monkeypatch.setattr(compact, "gather", counted)
    for storage in ("masked", "compact"):
        model = mlp()
        inner = inner_named("sgd")(model.parameters())
        optimizer = sparse(model, inner, algo, storage=storage, update_every=4)
        train(model, optimizer, 1)
        taken.clear()
        train(model, optimizer, 14)
        ends.append(model.state_dict())
    assert optimizer.history and taken and not any(taken)
    assert_same(*ends)


def test_an_update_ranks_what_was_written_through_data_since_the_step():
    ends = []
    for model, optimizer in pair():
        model[0].weight.data.mul_(torch.arange(model[0].weight.numel()).view_as(model[0].weight))
        optimizer.update_topology()
        train(model, optimizer, 2)
        ends.append((optimizer.masks, dict(model.state_dict())))
    assert_same(*ends)


def test_torchs_own_transformer_layers_keep_their_fast_path():
    outputs = []
    for storage in ("masked", "compact"):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        inner = torch.optim.AdamW(model.parameters())
        optimizer = sparse(model, inner, "set", storage=storage)
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(2, 3, 8)).square().mean().backward()
            optimizer.step()
        assert not any(isinstance(weight, Watched) for weight in model.parameters())
        padded = torch.tensor([[False, False, True], [False, True, True]])
        with torch.no_grad():
            outputs.append(model.eval()(torch.ones(2, 3, 8), src_key_padding_mask=padded))
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-6)


TOLD_BY_HAND = {
    "dlpack of the parameter": lambda w: torch.from_dlpack(torch.utils.dlpack.to_dlpack(w)).mul_(
        0.5
    ),
    "torch functions off": lambda w: without_torch_functions(w).mul_(0.5),
}


@pytest.mark.parametrize("write", TOLD_BY_HAND)
def test_after_apply_masks_every_write_is_trained_on(write):
    ends = []
    for model, optimizer in pair():
        TOLD_BY_HAND[write](model[0].weight)
        optimizer.apply_masks()
        train(model, optimizer, 5)
        ends.append(model.state_dict())
    assert_same(*ends)


def test_a_zero_grad_put_in_the_place_of_torch_s_own_may_write_weights(monkeypatch):
    original = torch.optim.Optimizer.zero_grad

    def clipping(self, set_to_none=True):
        for group in self.param_groups:
            for weight in group["params"]:
                weight.data.clamp_(-0.01, 0.01)
        original(self, set_to_none)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", clipping)
    ends = []
    for model, optimizer in pair():
        train(model, optimizer, 3)
        ends.append(model.state_dict())
    assert_same(*ends)
