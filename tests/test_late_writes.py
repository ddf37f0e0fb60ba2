"""Weights that somebody else writes: averages, checkpoints loaded late, .data."""

import copy

import pytest
import torch
from common import (
    UNKNOWN_STATE,
    assert_same,
    assert_zeros,
    inner_named,
    loss_of,
    mlp,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sparseopt.storage import masked

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


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


def test_masks_do_not_apply_to_what_is_no_module():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    with pytest.raises(TypeError, match="must be a torch.nn.Module"):
        optimizer.apply_masks(model.state_dict())


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


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_an_update_ranks_what_was_written_to_a_layer_without_a_gradient(storage):
    """Through .data, by which nothing is counted, before a step that leaves the layer out."""
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", storage=storage)
    layer = optimizer.layers[1]
    train(model, optimizer, optimizer.update_every - 1)
    before = layer.mask.clone()
    places = before.view(-1).nonzero().view(-1)
    layer.weight.data.view(-1)[places] = 1.0 / layer.weight.detach().view(-1)[places]
    written = layer.weight.detach().abs().clone()
    optimizer.zero_grad()
    model[0](torch.ones(2, model[0].in_features, dtype=torch.float64)).sum().backward()
    optimizer.step()
    kept = layer.mask & (layer.weight != 0)
    dropped = before & ~kept
    assert dropped.any() and written[dropped].max() <= written[kept].min()


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_grown_weights_are_zero_where_a_write_through_data_was_overlooked(
    steps, storage, monkeypatch
):
    monkeypatch.setattr(masked, "zero_at_sentinels", lambda *_: True)
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.1), "set", storage=storage, update_every=20
    )
    train(model, optimizer, 2)
    for layer in optimizer.layers:
        layer.weight.data[~layer.mask] = 3.0
    train(model, optimizer, steps)
    before = optimizer.masks["0.weight"].clone()
    optimizer.update_topology()
    grown = optimizer.masks["0.weight"] & ~before
    assert grown.any() and (model[0].weight[grown] == 0).all()


@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_an_overlooked_write_through_data_is_undone_two_steps_later(compute, monkeypatch):
    monkeypatch.setattr(masked, "zero_at_sentinels", lambda *_: True)
    model = mlp()
    optimizer = sparse(
        model, SGD(model.parameters(), lr=0.1), "set", storage="compact", compute=compute
    )
    for _ in range(3):
        train(model, optimizer, 2)
        for layer in optimizer.layers:
            layer.weight.data[~layer.mask] = 3.0
        train(model, optimizer, 2)
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
