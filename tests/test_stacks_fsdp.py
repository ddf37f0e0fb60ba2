"""FSDP2: shards take the decisions that one process takes on whole layers."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import assert_same, mlp
from old_torch import needs_fsdp2
from torch import nn
from torch.optim import SGD, AdamW
from two_processes import caught, in_processes

from sparseopt import Algorithm, SparseOptimizer
from sparseopt.schedules import Constant
from sparseopt.scores import score
from sparseopt.update import exchange

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    needs_fsdp2,
]
stack = pytest.mark.stack

STEPS = 13


@score()
def by_rows(layer: Any, context: Any) -> torch.Tensor:
    """A score of a user's own, which no part of a layer can tell: places in the smallest rows."""
    return -layer.weight.detach().abs().sum(1, keepdim=True).expand(layer.shape).contiguous()


def half(layer: Any, mask: torch.Tensor, fraction: float, rounding: str) -> int:
    """A user's own number to drop, which counts by hand."""
    return int(mask.sum()) // 2


def own_exchange(*args: Any) -> Any:
    """A user's own way to exchange weights: nothing is known of what it looks at."""
    return exchange(*args)


OWN = Algorithm(0.5, drop_fraction=Constant(0.3), grow=by_rows, drop_count=half)
# 7 rows over two ranks are uneven; 1 row leaves the second rank with nothing
SHAPES = (6, 7, 8, 5)
CASES: dict[str, dict[str, Any]] = {
    **{algo: {"algo": algo} for algo in
       ("static", "set", "rigl", "snfs", "mest_r", "mest_g", "granet_r", "granet_g", "gmp",
        "acdc", "cht", "chts", "chtss", "srigl")},
    "nm": {"algo": "nm", "options": {"n": 1, "m": 2}, "shapes": (6, 8, 8, 5)},
    "global": {"algo": "rigl", "options": {"scope": "global"}},
    "mean": {"algo": "rigl", "options": {"grown_state": "mean"}},
    "per_element_step": {"algo": "rigl", "options": {"grown_state": "per_element_step"}},
    "magnitude": {"algo": "set", "options": {"topology": "magnitude"}},
    "signed": {"algo": "set", "options": {"signed": True}},
    "set-global": {"algo": "set", "options": {"scope": "global", "regrow_same": "forbid"}},
    "mest-global": {"algo": "mest_g", "options": {"scope": "global"}},
    "uniform": {"algo": "granet_g", "options": {"distribution": "uniform"}},
    "chains": {"algo": "cht", "options": {"chains": [["0.weight", "2.weight", "4.weight"]],
                                          "grow": "gradient", "soft_drop": True}},
    "constant_fan_in": {"algo": "srigl", "options": {"topology": "constant_fan_in"}},
    "own": {"algo": OWN},
    "own-exchange": {"algo": dataclasses.replace(OWN, exchange=own_exchange)},
    "clip": {"algo": "rigl", "clip": 0.05},
    "accumulation": {"algo": "rigl", "parts": 2},
    "swapped": {"algo": "rigl", "swapped": True},
}  # fmt: skip

FEATURES = {
    "global": "global scope",
    "mean": "mean state for grown weights",
    "per_element_step": "a clock for every weight",
    "magnitude": "topology by magnitude",
    "set-global": "global scope",
    "mest-global": "global scope",
    "own": "scores and counts of one's own",
    "own-exchange": "an exchange of one's own",
    "clip": "clipping",
    "accumulation": "accumulation",
    "swapped": "parameters swapped after wrapping",
}


def network(case: dict[str, Any] | None = None) -> Any:
    return mlp((case or {}).get("shapes", SHAPES))


def made(model: nn.Module, case: dict[str, Any]) -> SparseOptimizer:
    inner = AdamW(model.parameters(), lr=0.01)
    given = {"sparsity": 0.5, "total_steps": 20, "update_every": 3, "model": model}
    return SparseOptimizer(inner, case["algo"], **given | case.get("options", {}))


def train(
    model: Any, optimizer: Any, case: dict[str, Any], first: int = 0, last: int = STEPS
) -> None:
    parts = case.get("parts", 1)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step in range(first, last):
        optimizer.zero_grad()
        for part in range(parts):
            source = torch.Generator().manual_seed(100 * step + part)
            inputs = torch.randn(8, 6, generator=source, dtype=torch.float64)
            targets = torch.randn(8, 5, generator=source, dtype=torch.float64)
            mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
            ((model(inputs[mine]) - targets[mine]).square().mean() / parts).backward()
        if "clip" in case:
            nn.utils.clip_grad_norm_(model.parameters(), case["clip"])
        optimizer.step()


def whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if hasattr(value, "full_tensor") else value).detach().clone()


def outcome(model: Any, optimizer: SparseOptimizer) -> dict[str, Any]:
    masks = {name: whole(mask) for name, mask in optimizer.masks.items()}
    weights = {name: whole(p) for name, p in model.named_parameters()}
    for layer in optimizer.layers:
        assert not weights[layer.name][~masks[layer.name]].any(), layer
        assert layer.nnz == int(masks[layer.name].sum())
        assert type(layer.mask) is type(layer.weight) or not hasattr(layer.weight, "placements")
    assert optimizer.density == sum(int(mask.sum()) for mask in masks.values()) / sum(
        mask.numel() for mask in masks.values()
    )
    moments = [
        whole(entry[key])
        for entry in optimizer.inner.state.values()
        for key in ("exp_avg", "exp_avg_sq")
        if key in entry
    ]
    return {
        "masks": masks,
        "weights": weights,
        "moments": moments,
        "history": [dict(record) for record in optimizer.history],
    }


def sharded(rank: int, case: dict[str, Any]) -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    model = network(case)
    optimizer = None
    if case.get("swapped"):  # as Accelerate does: the optimizer first, then the shards
        optimizer = made(model, case)
    fully_shard(model[0])
    fully_shard(model)
    if optimizer is not None:
        optimizer.param_groups[0]["params"] = list(model.parameters())
    optimizer = optimizer or made(model, case)
    train(model, optimizer, case)
    return outcome(model, optimizer)


def alone(case: dict[str, Any]) -> dict[str, Any]:
    model = network(case)
    optimizer = made(model, case)
    train(model, optimizer, case)
    return outcome(model, optimizer)


def tiny(rank: int) -> dict[str, Any]:
    """One row: the second rank holds an empty shard of it."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(6, 1), nn.Linear(1, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p))
    if rank >= 0:
        fully_shard(model)
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1, momentum=0.9), "rigl", sparsity=0.5, update_every=2,
        include=["0.weight", "1.weight"], model=model,
    )  # fmt: skip
    train(model, optimizer, {})
    return outcome(model, optimizer)


def resharded(rank: int, folder: str) -> dict[str, Any]:
    """Saved from shards: in full for one process, and by torch.distributed.checkpoint for two."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint import state_dict as sd
    from torch.distributed.fsdp import fully_shard

    case = {"algo": "rigl"}
    model = fully_shard(network())
    optimizer = made(model, case)
    train(model, optimizer, case, last=7)
    full = sd.StateDictOptions(full_state_dict=True, cpu_offload=True)
    saved = copy.deepcopy(sd.get_state_dict(model, optimizer, options=full))
    if rank == 0:
        torch.save(saved, f"{folder}/full.pt")
    weights, state = sd.get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/parts")
    train(model, optimizer, case, first=7)

    results = {"whole": outcome(model, optimizer)}
    again = fully_shard(network())
    resumed = SparseOptimizer(AdamW(again.parameters(), lr=0.01), "rigl", sparsity=0.5,
                              total_steps=20, update_every=3, model=again, seed=5)  # fmt: skip
    weights, state = sd.get_state_dict(again, resumed)
    dcp.load({"model": weights, "optimizer": state}, checkpoint_id=f"{folder}/parts")
    sd.set_state_dict(again, resumed, model_state_dict=weights, optim_state_dict=state)
    train(again, resumed, case, first=7)
    results["parts"] = outcome(again, resumed)

    third = fully_shard(network())
    last = SparseOptimizer(AdamW(third.parameters(), lr=0.01), "rigl", sparsity=0.5,
                           total_steps=20, update_every=3, model=third, seed=7)  # fmt: skip
    sent = sd.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    mine = saved if rank == 0 else ({}, {})
    sd.set_model_state_dict(third, mine[0], options=sent)
    sd.set_optimizer_state_dict(third, last, mine[1], options=sent)
    train(third, last, case, first=7)
    results["broadcast"] = outcome(third, last)
    return results


def two_dimensional(rank: int) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("replicate", "shard"))
    model = fully_shard(network(), mesh=mesh)
    try:
        made(model, {"algo": "set"})
    except TypeError as error:
        return str(error)
    return "no error"


def all_work(rank: int, folder: str) -> dict[str, Any]:
    work = {name: lambda case=case: sharded(rank, case) for name, case in CASES.items()}
    work |= {"tiny": lambda: tiny(rank), "resharded": lambda: resharded(rank, folder)}
    work |= {"two_dimensional": lambda: two_dimensional(rank)}
    return {name: caught(call) for name, call in work.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fsdp")


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[str, Any]]:
    return in_processes(all_work, folder, str(folder))


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal masks; numbers as close as sums in another order are."""
    assert_same(one["masks"], other["masks"])
    assert one["history"] == other["history"]
    torch.testing.assert_close(one["weights"], other["weights"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one["moments"], other["moments"], rtol=1e-9, atol=1e-9)


@stack("FSDP2", "same training")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=stack("FSDP2", FEATURES.get(name, "every recipe")))
        for name in CASES
    ],
)
def test_shards_train_as_one_process_does(name, ranks):
    one, other = (of_rank[name] for of_rank in ranks)
    assert not isinstance(one, str), one
    assert_same(one, other)
    assert_close(one, alone(CASES[name]))


@stack("FSDP2", "uneven and empty shards")
def test_empty_shards_are_layers_too(ranks):
    one, other = (of_rank["tiny"] for of_rank in ranks)
    assert not isinstance(one, str), one
    assert_same(one, other)
    assert_close(one, tiny(-1))


@stack("FSDP2", "resume")
@pytest.mark.parametrize("way", ["parts", "broadcast"])
def test_two_ranks_go_on_from_what_two_ranks_saved(way, ranks):
    for of_rank in ranks:
        assert not isinstance(of_rank["resharded"], str), of_rank["resharded"]
        assert_same(of_rank["resharded"][way], of_rank["resharded"]["whole"])


@stack("FSDP2", "from 2 processes to 1")
def test_one_process_goes_on_from_what_two_ranks_saved(ranks, folder):
    from torch.distributed.checkpoint import state_dict as sd

    model = network()
    optimizer = made(model, {"algo": "rigl"})
    weights, state = torch.load(folder / "full.pt", weights_only=False)
    options = sd.StateDictOptions(full_state_dict=True)
    sd.set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=state, options=options
    )
    train(model, optimizer, {}, first=7)
    assert_close(outcome(model, optimizer), ranks[0]["resharded"]["whole"])


@stack("FSDP2 on a mesh of two dimensions", "refused")
def test_a_mesh_of_two_dimensions_is_refused_by_name(ranks):
    for of_rank in ranks:
        assert "parameter '0.weight' is a DTensor" in of_rank["two_dimensional"]
