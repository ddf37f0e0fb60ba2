"""DistributedDataParallel: replicas stay equal to the last bit without a collective of ours."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import assert_same, convnet, mlp
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD, AdamW
from two_processes import caught, in_processes

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
stack = pytest.mark.stack

EVERY = ("static", "set", "rigl", "snfs", "mest_r", "mest_g", "granet_r", "granet_g", "gmp",
         "acdc", "cht", "chts", "chtss", "srigl", "nm")  # fmt: skip


def always(layer: Any, rows: int) -> bool:
    """Sparse products at any density."""
    return True


CASES: dict[str, dict[str, Any]] = {
    **{algo: {"algo": algo} for algo in EVERY},
    "nm": {"algo": "nm", "options": {"n": 1, "m": 2}},
    "set-before-ddp": {"algo": "set", "before": True},
    "rigl-before-ddp": {"algo": "rigl", "before": True},
    "rigl-global": {"algo": "rigl", "options": {"scope": "global"}},
    "rigl-per-element-step": {"algo": "rigl", "options": {"grown_state": "per_element_step"}},
    "rigl-compact": {"algo": "rigl", "options": {"storage": "compact"}},
    "rigl-sparse": {"algo": "rigl", "options": {"compute": always}},
    "set-sparse-before-ddp": {"algo": "set", "options": {"compute": always}, "before": True},
    "rigl-sparse-clip-no-sync": {
        "algo": "rigl", "options": {"compute": always},
        "clip": 0.05, "micro_batches": 2, "no_sync": True,
    },
    "rigl-sparse-bucket-views": {
        "algo": "rigl", "options": {"compute": always},
        "ddp": {"gradient_as_bucket_view": True},
    },
    "rigl-bucket-views": {"algo": "rigl", "ddp": {"gradient_as_bucket_view": True}},
    "snfs-bucket-views": {"algo": "snfs", "ddp": {"gradient_as_bucket_view": True}},
    "rigl-static-graph": {"algo": "rigl", "ddp": {"static_graph": True}},
    "rigl-static-graph-views": {
        "algo": "rigl", "ddp": {"static_graph": True, "gradient_as_bucket_view": True},
    },
    "rigl-accumulation": {"algo": "rigl", "micro_batches": 3},
    "rigl-no-sync": {"algo": "rigl", "micro_batches": 3, "no_sync": True},
    "snfs-no-sync": {"algo": "snfs", "micro_batches": 2, "no_sync": True},
    "rigl-no-sync-views": {
        "algo": "rigl", "micro_batches": 2, "no_sync": True,
        "ddp": {"gradient_as_bucket_view": True},
    },
    "rigl-unused": {"algo": "rigl", "model": "branches", "ddp": {"find_unused_parameters": True}},
    "snfs-unused": {"algo": "snfs", "model": "branches", "ddp": {"find_unused_parameters": True}},
    "rigl-clip": {"algo": "rigl", "clip": 0.05},
    "rigl-clip-no-sync": {"algo": "rigl", "clip": 0.05, "micro_batches": 2, "no_sync": True},
    "rigl-reentrant": {"algo": "rigl", "model": "checkpointed"},
    "rigl-reentrant-views": {
        "algo": "rigl", "model": "checkpointed",
        "ddp": {"gradient_as_bucket_view": True},
    },
    "rigl-convnet": {"algo": "rigl", "model": "convnet"},
    "rigl-small-buckets": {"algo": "rigl", "ddp": {"bucket_cap_mb": 0.0005}},
}  # fmt: skip
if not torch.backends.mkl.is_available():  # there are no sparse products
    CASES = {name: case for name, case in CASES.items() if "-sparse" not in name}
FEATURES = {
    **dict.fromkeys(EVERY, "every recipe"),
    "set-before-ddp": "wrapped before or after DDP",
    "rigl-before-ddp": "wrapped before or after DDP",
    "rigl-global": "global scope",
    "rigl-per-element-step": "a clock for every weight",
    "rigl-compact": "compact storage",
    "rigl-sparse": "sparse compute",
    "set-sparse-before-ddp": "sparse compute",
    "rigl-sparse-clip-no-sync": "sparse compute",
    "rigl-sparse-bucket-views": "sparse compute",
    "rigl-bucket-views": "bucket views",
    "snfs-bucket-views": "bucket views",
    "rigl-static-graph": "static graph",
    "rigl-static-graph-views": "static graph",
    "rigl-accumulation": "accumulation",
    "rigl-no-sync": "no_sync",
    "snfs-no-sync": "no_sync",
    "rigl-no-sync-views": "no_sync",
    "rigl-unused": "unused parameters",
    "snfs-unused": "unused parameters",
    "rigl-clip": "clipping",
    "rigl-clip-no-sync": "clipping",
    "rigl-reentrant": "reentrant checkpointing",
    "rigl-reentrant-views": "reentrant checkpointing",
    "rigl-convnet": "convolutions",
    "rigl-small-buckets": "small buckets",
}
SINGLE = [
    name
    for name in ("set", "rigl", "snfs", "mest_g", "rigl-clip", "rigl-accumulation", "rigl-no-sync",
                 "rigl-clip-no-sync", "rigl-bucket-views", "rigl-reentrant", "rigl-sparse",
                 "set-sparse-before-ddp", "rigl-sparse-clip-no-sync", "rigl-sparse-bucket-views")
    if name in CASES
]  # fmt: skip
STEPS = 13


class Branches(nn.Module):
    """The second branch is taken by rank 1 alone, and by nobody at every other step."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)
        self.calls = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        hidden = self.first(inputs)
        if dist.get_rank() == 1 and self.calls % 2:
            hidden = hidden + self.second(inputs)
        return self.head(hidden.tanh())


class Checkpointed(nn.Module):
    """All layers inside reentrant checkpoints: backward passes inside the backward pass."""

    def __init__(self, model: nn.Sequential) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        from torch.utils.checkpoint import checkpoint

        hidden = inputs.requires_grad_()
        for part in self.model:
            hidden = checkpoint(part, hidden, use_reentrant=True)
        return hidden


def build(kind: str, seed: int) -> nn.Module:
    if kind == "branches":
        torch.manual_seed(seed)
        return Branches().double()
    if kind == "convnet":
        return convnet(seed)
    model = mlp((6, 8, 8, 5), seed=seed)
    return Checkpointed(model) if kind == "checkpointed" else model


def batch(kind: str, step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(100 * step + rank)
    shape = (4, 2, 7, 7) if kind == "convnet" else (4, 6)
    draw = torch.randn(shape, generator=source, dtype=torch.float64)
    return draw, torch.randn(4, 5, generator=source, dtype=torch.float64)


def make(model: nn.Module, case: dict[str, Any]) -> SparseOptimizer:
    inner = AdamW(model.parameters(), lr=0.01)
    given = {"sparsity": 0.5, "total_steps": 20, "update_every": 3, "model": model}
    return SparseOptimizer(inner, case["algo"], **given | case.get("options", {}))


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    return {
        "products": optimizer.products,
        "weights": [p.detach().clone() for p in model.parameters()],
        "masks": {name: mask.clone() for name, mask in optimizer.masks.items()},
        "history": [dict(record) for record in optimizer.history],
        "zeros": all(bool((w.weight[~w.mask] == 0).all()) for w in optimizer.layers),
        "moments": [s["exp_avg"] for s in optimizer.state_dict()["state"].values()
                    if "exp_avg" in s],
    }  # fmt: skip


def replica(rank: int, case: dict[str, Any]) -> dict[str, Any]:
    """One rank's training; seeds differ, DDP sends the weights of rank 0."""
    torch.manual_seed(rank)
    kind = case.get("model", "mlp")
    model = build(kind, seed=rank)
    optimizer = make(model, case) if case.get("before") else None
    parallel = DistributedDataParallel(model, **case.get("ddp", {}))
    optimizer = optimizer or make(parallel, case)
    parts = case.get("micro_batches", 1)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(parts):
            inputs, targets = batch(kind, parts * step + part, rank)
            silent = case.get("no_sync") and part < parts - 1
            with parallel.no_sync() if silent else contextlib.nullcontext():
                ((parallel(inputs) - targets).square().mean() / parts).backward()
        if "clip" in case:
            nn.utils.clip_grad_norm_(parallel.parameters(), case["clip"])
        optimizer.step()
    return outcome(model, optimizer)


def alone(case: dict[str, Any]) -> dict[str, Any]:
    """The same training in one process, on the batches of both."""
    kind, parts = case.get("model", "mlp"), case.get("micro_batches", 1)
    model = build(kind, seed=0)
    optimizer = make(model, case)
    for step in range(STEPS):
        optimizer.zero_grad()
        for part in range(parts):
            pairs = [batch(kind, parts * step + part, rank) for rank in (0, 1)]
            inputs, targets = (torch.cat(both) for both in zip(*pairs, strict=True))
            ((model(inputs) - targets).square().mean() / parts).backward()
        if "clip" in case:
            nn.utils.clip_grad_norm_(model.parameters(), case["clip"])
        optimizer.step()
    return outcome(model, optimizer)


def all_work(rank: int) -> dict[str, Any]:
    """Everything in one pair of processes: starting them takes longest."""
    work = {name: lambda case=case: replica(rank, case) for name, case in CASES.items()}
    others = (count_collectives, strangers, by_hand, without_sparse_layers)
    work |= {other.__name__: lambda other=other: other(rank) for other in others}
    return {name: caught(call) for name, call in work.items()}


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(all_work, tmp_path_factory.mktemp("ddp"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=stack("DDP", FEATURES[name])) for name in CASES]
)
def test_replicas_have_equal_weights_masks_and_history(name, replicas):
    one, other = (of_rank[name] for of_rank in replicas)
    assert not isinstance(one, str), one
    assert_same(one, other)
    assert one["zeros"]
    assert CASES[name]["algo"] == "static" or one["history"]
    assert not any(record["skipped"] for record in one["history"])


@pytest.mark.parametrize("name", SINGLE)
@stack("DDP", "same training")
def test_two_replicas_train_like_one_process_on_both_batches(name, replicas):
    assert not isinstance(replicas[0][name], str), replicas[0][name]
    wanted = alone(CASES[name])
    assert_same(replicas[0][name]["masks"], wanted["masks"])
    for mine, other in zip(replicas[0][name]["weights"], wanted["weights"], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if "-sparse" in name])
def test_replicas_multiply_by_active_values_where_asked_for(name, replicas):
    for of_rank in replicas:
        assert not isinstance(of_rank[name], str), of_rank[name]
        assert set(of_rank[name]["products"].values()) == {"sparse"}


# --- collectives ----------------------------------------------------------------------------------


def count_collectives(rank: int) -> dict[str, int]:
    """Calls of collectives from Python (DDP's own are made in C++)."""
    calls: list[str] = []
    numbers = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object", "barrier"):
            patch.setattr(dist, name, lambda *args, name=name, **options: calls.append(name))
        for algo in ("set", "rigl", "snfs"):
            replica(rank, {"algo": algo})
            numbers[algo] = len(calls)
    return numbers


@stack("DDP", "no collective of ours")
def test_training_makes_no_collective_besides_those_of_ddp(replicas):
    for of_rank in replicas:
        assert of_rank["count_collectives"] == {"set": 0, "rigl": 0, "snfs": 0}


# --- a rank that runs no sparse layer -------------------------------------------------------------


class Aside(nn.Module):
    """The sparse layer is run by rank 1 alone; the dense one by both."""

    def __init__(self) -> None:
        super().__init__()
        self.plain, self.sparse = nn.Linear(6, 5), nn.Linear(6, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs = self.plain(inputs)
        return outputs + self.sparse(inputs) if dist.get_rank() else outputs


def without_sparse_layers(rank: int) -> dict[str, Any]:
    """The norms that clipping sees, and whether inactive entries of gradients are zero then."""
    model = Aside().double()
    parallel = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.5, update_every=2, model=model,
        include="sparse",
    )  # fmt: skip
    norms, zeros = [], []
    layer = optimizer.layers[0]
    for step in range(6):
        optimizer.zero_grad()
        inputs, targets = batch("mlp", step, rank)
        (parallel(inputs) - targets).square().mean().backward()
        zeros.append(not bool(layer.weight.grad[~layer.mask].any()))
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 0.05)))
        optimizer.step()
    hooks = [len(p._post_accumulate_grad_hooks or ()) for p in model.plain.parameters()]
    return {"norms": norms, "masked": zeros, "hooks": hooks} | outcome(model, optimizer)


def test_a_rank_that_runs_no_sparse_layer_clips_as_the_others_do(replicas):
    one, other = (of_rank["without_sparse_layers"] for of_rank in replicas)
    assert not isinstance(one, str), one
    assert all(one["masked"]) and len(one["history"]) == 3
    assert one["hooks"] == [0, 0], "hooks on dense parameters are for growth steps alone"
    assert_same(one, other)


# --- processes that are not replicas --------------------------------------------------------------


def strangers(rank: int) -> dict[str, Any]:
    """Rank 0 trains one model with rigl; rank 1 another one, for fewer steps."""
    model = mlp((6, 8 + 4 * rank, 5), seed=rank)
    optimizer = make(model, {"algo": "rigl"})
    for step in range(STEPS - 5 * rank):
        inputs, targets = batch("mlp", step, rank)
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()
    return outcome(model, optimizer)


@stack("DDP", "different models under one group")
def test_different_models_under_one_process_group_are_left_alone(replicas):
    for rank in (0, 1):
        assert_same(replicas[rank]["strangers"], strangers(rank))


def by_hand(rank: int) -> str:
    model = mlp((6, 8, 5))
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.5, update_every=2, model=model
    )
    for step in range(2):
        inputs, targets = batch("mlp", step, rank)
        (model(inputs) - targets).square().mean().backward()
        for p in model.parameters():
            dist.all_reduce(p.grad)
        try:
            optimizer.step()
        except UserWarning as warning:
            return str(warning)
    return "no warning"


@stack("DDP", "averaging by hand is noticed")
def test_gradients_averaged_by_hand_are_noticed(replicas):
    for of_rank in replicas:
        assert "use DistributedDataParallel" in of_rank["by_hand"]
