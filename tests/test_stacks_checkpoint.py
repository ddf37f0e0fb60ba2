"""torch.distributed.checkpoint: what one run saved, a new one goes on with, to the last bit."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import assert_same, assert_zeros, mlp, sparse, train
from torch import nn
from torch.optim import SGD, Adam
from two_processes import caught, in_processes

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "flattened": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True},
    "full on the CPU": {"full_state_dict": True, "cpu_offload": True},
}
INNERS = {
    "adam": lambda groups: Adam(groups, lr=0.01),
    "sgd": lambda groups: SGD(groups, lr=0.1),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9),
}
every_mode = pytest.mark.parametrize("mode", MODES)
every_inner = pytest.mark.parametrize("inner", INNERS)
both_storages = pytest.mark.parametrize("storage", ["masked", "compact"])


def save(model: nn.Module, optimizer: Any, folder: Path, mode: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    weights, state = get_state_dict(model, optimizer, options=StateDictOptions(**MODES[mode]))
    quietly(dcp.save, {"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model: nn.Module, optimizer: Any, folder: Path, mode: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict

    options = state_dict.StateDictOptions(**MODES[mode])
    weights, state = state_dict.get_state_dict(model, optimizer, options=options)
    quietly(dcp.load, {"model": weights, "optimizer": state}, checkpoint_id=folder)
    state_dict.set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options
    )


def quietly(call: Any, *args: Any, **options: Any) -> None:
    """Without torch's own warnings that one process has nobody to talk to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(*args, **options)


def made(inner: str, seed: int = 0, **options: Any) -> tuple[nn.Module, Any]:
    model = mlp((6, 16, 5), seed=seed)
    groups = [
        {"params": [model[0].weight, model[0].bias]},
        {"params": [model[2].weight, model[2].bias], "lr": 0.05},
    ]
    algo = options.pop("algo", "rigl")
    return model, sparse(model, INNERS[inner](groups), algo, seed=seed, **options)


def assert_goes_on(one: tuple[nn.Module, Any], other: tuple[nn.Module, Any], steps: int) -> None:
    for model, optimizer in (one, other):
        train(model, optimizer, 8, first=steps)
        assert_zeros(optimizer)
    (model, optimizer), (twin, resumed) = one, other
    assert resumed.steps == optimizer.steps == steps + 8
    assert resumed.updates == optimizer.updates and resumed.history == optimizer.history
    assert_same(resumed.masks, optimizer.masks)
    assert_same(list(twin.parameters()), list(model.parameters()))
    assert_same(resumed.state_dict()["state"], optimizer.state_dict()["state"])


@every_mode
@every_inner
@both_storages
@pytest.mark.stack("torch.distributed.checkpoint", "resume")
@pytest.mark.stack("torch.distributed.checkpoint", "compact storage")
@pytest.mark.stack("torch.distributed.checkpoint", "plain, flattened and full")
@pytest.mark.stack("torch.distributed.checkpoint", "Adam, SGD, momentum")
def test_a_new_run_goes_on_where_the_saved_one_stood(mode, inner, storage, tmp_path):
    one, other = made(inner, storage=storage), made(inner, seed=5, storage=storage)
    train(*one, 7)
    save(*one, tmp_path, mode)
    load(*other, tmp_path, mode)
    assert_goes_on(one, other, 7)


@pytest.mark.parametrize("mode", ["plain", "flattened"])
@pytest.mark.parametrize(
    ("algo", "options"),
    [
        ("snfs", {}),
        ("granet_g", {}),
        ("chts", {}),
        ("rigl", {"grown_state": "per_element_step"}),
        ("acdc", {}),
    ],
)
@pytest.mark.stack("torch.distributed.checkpoint", "what recipes keep")
def test_what_a_recipe_keeps_of_its_own_is_in_the_checkpoint(mode, algo, options, tmp_path):
    one = made("adam", algo=algo, **options)
    other = made("adam", seed=5, algo=algo, **options)
    train(*one, 11)
    save(*one, tmp_path, mode)
    load(*other, tmp_path, mode)
    assert_goes_on(one, other, 11)


@every_mode
@every_inner
@pytest.mark.parametrize("zeroed", [False, True])
@pytest.mark.stack("torch.distributed.checkpoint", "AC/DC right after it became dense")
def test_a_run_that_has_just_forgotten_its_state_goes_on(mode, inner, zeroed, tmp_path):
    """AC/DC, saved right after it became dense: with the gradients of that step, or without."""
    one = made(inner, algo="acdc")
    other = made(inner, seed=5, algo="acdc")
    steps = one[1]._algorithm.density.events(40)[1]
    train(*one, steps)
    assert one[1].density == 1.0 and not one[1].inner.state
    if zeroed:
        one[1].zero_grad()
    before = copy.deepcopy(one)
    save(*one, tmp_path, mode)
    assert_same(list(one[0].parameters()), list(before[0].parameters()))
    assert [g["lr"] for g in one[1].param_groups] == [g["lr"] for g in before[1].param_groups]
    load(*other, tmp_path, mode)
    assert_goes_on(one, other, steps)


@every_inner
@both_storages
@pytest.mark.stack("torch.distributed.checkpoint", "from one storage to the other")
def test_checkpoints_pass_from_one_storage_to_the_other(inner, storage, tmp_path):
    one = made(inner, storage=storage)
    other = made(inner, seed=5, storage="compact" if storage == "masked" else "masked")
    train(*one, 7)
    save(*one, tmp_path, "flattened")
    load(*other, tmp_path, "flattened")
    assert_same(other[1].masks, one[1].masks)
    train(*one, 8, first=7)
    train(*other, 8, first=7)
    assert_same(other[1].masks, one[1].masks)
    for mine, theirs in zip(one[0].parameters(), other[0].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


# --- the hidden step ------------------------------------------------------------------------------


@every_inner
@both_storages
@pytest.mark.parametrize("steps", [0, 7])
@pytest.mark.stack("torch.distributed.checkpoint", "the hidden step leaves no trace")
def test_the_hidden_step_leaves_no_trace(inner, storage, steps):
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    one, other = made(inner, storage=storage), made(inner, storage=storage)
    train(*one, steps)
    train(*other, steps)
    other[1].zero_grad()
    get_optimizer_state_dict(*other)
    assert other[1].steps == steps
    assert_goes_on(one, other, steps)
    assert not any("sparse_mask" in entry for entry in other[1].inner.state.values())
    assert "sparse" not in other[1].inner.param_groups[0]


@every_mode
@both_storages
@pytest.mark.stack("torch.distributed.checkpoint", "weights loaded before the optimizer")
def test_weights_may_be_loaded_before_the_optimizer(mode, storage, tmp_path):
    from torch.distributed.checkpoint import state_dict

    one, other = made("adam", storage=storage), made("adam", seed=5, storage=storage)
    train(*one, 7)
    options = state_dict.StateDictOptions(**MODES[mode])
    # copied, because torch's optimizers take the tensors of a state dict for their own
    weights, state = copy.deepcopy(state_dict.get_state_dict(*one, options=options))
    state_dict.set_model_state_dict(other[0], weights, options=options)
    state_dict.set_optimizer_state_dict(*other, state, options=options)
    assert_goes_on(one, other, 7)


def test_a_warm_up_from_zero_is_counted():
    model, optimizer = made("sgd")
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 3)
    assert optimizer.steps == 3


def test_a_flattened_checkpoint_is_refused_where_its_masks_would_be_lost(tmp_path):
    one, other = made("adam"), made("adam", seed=5)
    train(*one, 7)
    train(*other, 2)
    save(*one, tmp_path, "flattened")
    with pytest.raises(ValueError, match="brings no masks.*new SparseOptimizer"):
        load(*other, tmp_path, "flattened")


# --- two processes --------------------------------------------------------------------------------


def trained(rank: int, mode: str, folder: str) -> dict[str, Any]:
    """Both ranks save one run together and go on with another; rank 0 sends its weights."""
    from torch.nn.parallel import DistributedDataParallel

    model, optimizer = made("adam")
    parallel = DistributedDataParallel(model)
    parallel.input_shape = model.input_shape
    train(parallel, optimizer, 7)
    twin, resumed = made("adam", seed=5)
    if mode == "broadcast":
        broadcast(model, optimizer, twin, resumed, rank)
    else:
        save(parallel, optimizer, Path(folder), mode)
        load(twin, resumed, Path(folder), mode)
    assert_goes_on((model, optimizer), (twin, resumed), 7)
    return {"masks": resumed.masks, "weights": list(twin.state_dict().values())}


def broadcast(model: Any, optimizer: Any, twin: Any, resumed: Any, rank: int) -> None:
    from torch.distributed.checkpoint import state_dict

    full = state_dict.StateDictOptions(full_state_dict=True)
    weights, state = copy.deepcopy(state_dict.get_state_dict(model, optimizer, options=full))
    sent = state_dict.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    mine = (weights, state) if rank == 0 else ({}, {})
    state_dict.set_model_state_dict(twin, mine[0], options=sent)
    state_dict.set_optimizer_state_dict(twin, resumed, mine[1], options=sent)


def all_modes(rank: int, folder: str) -> dict[str, Any]:
    return {
        mode: caught(lambda mode=mode: trained(rank, mode, f"{folder}/{mode}"))
        for mode in ("plain", "flattened", "full", "broadcast")
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return in_processes(all_modes, folder, str(folder))


@pytest.mark.parametrize("mode", ["plain", "flattened", "full", "broadcast"])
@pytest.mark.stack("DDP", "resume")
@pytest.mark.stack("torch.distributed.checkpoint", "broadcast to two processes")
def test_two_replicas_save_and_load_together(mode, ranks):
    one, other = (of_rank[mode] for of_rank in ranks)
    assert not any(isinstance(outcome, str) for outcome in (one, other)), f"{one}\n{other}"
    assert_same(one, other)
