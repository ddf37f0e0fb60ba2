"""ZeRO and what is refused: with the parameter's name, before anything is changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist
from common import assert_same, assert_zeros, mlp, sparse, train
from torch import nn
from torch.optim import SGD, AdamW
from two_processes import caught, in_processes

from sparseopt import SparseOptimizer
from sparseopt.shards import refuse_placement

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def test_shards_under_an_old_torch_are_refused_by_name(monkeypatch):
    monkeypatch.setattr("sparseopt.shards.is_sharded", lambda tensor: True)
    monkeypatch.setattr(torch, "__version__", "2.7.1+cpu")
    with pytest.raises(RuntimeError, match=r"'fc' is sharded, which needs torch 2.11 or newer"):
        refuse_placement("fc", torch.zeros(2, 2))


# --- ZeroRedundancyOptimizer ----------------------------------------------------------------------


def redundancy(rank: int) -> dict[str, Any]:
    from torch.distributed.optim import ZeroRedundancyOptimizer
    from torch.nn.parallel import DistributedDataParallel

    model = mlp(seed=rank)
    parallel = DistributedDataParallel(model)
    parallel.input_shape = model.input_shape
    inner = ZeroRedundancyOptimizer(parallel.parameters(), AdamW, lr=0.01)
    optimizer = sparse(parallel, inner, "rigl")
    train(parallel, optimizer, 10)
    assert_zeros(optimizer)
    # what was dropped has no moments left, wherever they are kept
    for layer in optimizer.layers:
        for moment in ("exp_avg", "exp_avg_sq"):
            state = inner.optim.state.get(layer.weight, {})
            assert not state or not state[moment][~layer.mask].any()
    optimizer.consolidate_state_dict(to=0)
    saved = optimizer.state_dict() if rank == 0 else {}
    masks = dict(optimizer.masks)
    weights = [p.detach().clone() for p in model.parameters()]
    return {"saved": saved, "masks": masks, "weights": weights}


def drifting(rank: int) -> None:
    from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
    from torch.distributed.optim import PostLocalSGDOptimizer

    model = mlp()
    averager = PeriodicModelAverager(period=4, warmup_steps=2)
    inner = PostLocalSGDOptimizer(SGD(model.parameters(), lr=0.1), averager)
    with pytest.raises(TypeError, match="PostLocalSGDOptimizer.*drift apart.*Distributed"):
        SparseOptimizer(inner)


def flattened(rank: int) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    for original in (False, True):
        model = FullyShardedDataParallel(
            nn.Linear(6, 8), device_id=torch.device("cpu"), use_orig_params=original
        )
        with pytest.raises(TypeError, match=r"parameter '.*weight|.*flat_param.*FSDP1"):
            SparseOptimizer(SGD(model.parameters(), lr=0.1), model=model)


def all_work(rank: int) -> dict[str, Any]:
    work = (redundancy, drifting, flattened)
    return {each.__name__: caught(lambda each=each: each(rank)) for each in work}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(all_work, tmp_path_factory.mktemp("refusals"))


@pytest.mark.stack("ZeroRedundancyOptimizer inside", "equal replicas")
@pytest.mark.stack("ZeroRedundancyOptimizer inside", "moments follow the topology")
@pytest.mark.stack("ZeroRedundancyOptimizer inside", "consolidated checkpoint")
def test_a_zero_redundancy_optimizer_trains_equal_replicas_and_consolidates(ranks):
    one, other = (of_rank["redundancy"] for of_rank in ranks)
    assert not isinstance(one, str), one
    assert_same({**one, "saved": {}}, other)
    assert {"sparse_mask", "exp_avg"} <= set(one["saved"]["state"][0])
    model = mlp(seed=9)
    alone = sparse(model, AdamW(model.parameters(), lr=0.01), "rigl")
    alone.load_state_dict(one["saved"])
    assert alone.steps == 10
    assert_same(alone.masks, one["masks"])


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("drifting", marks=pytest.mark.stack("PostLocalSGD", "refused")),
        pytest.param("flattened", marks=pytest.mark.stack("FSDP1", "refused")),
    ],
)
def test_what_is_not_supported_is_refused_by_name(what, ranks):
    for of_rank in ranks:
        assert of_rank[what] is None, of_rank[what]


# --- without processes ----------------------------------------------------------------------------


@pytest.mark.stack("DeepSpeed ZeRO-3", "refused")
def test_the_shards_of_zero_3_are_refused_by_name():
    model = nn.Linear(4, 4)
    model.weight.ds_id = 0
    with pytest.raises(TypeError, match=r"parameter 'weight' is partitioned by DeepSpeed ZeRO-3"):
        SparseOptimizer(SGD(model.parameters(), lr=0.1), model=model)


@pytest.mark.stack("sparse gradients", "refused")
def test_sparse_gradients_are_refused_by_name_at_the_first_step():
    model = nn.Embedding(6, 4, sparse=True)
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), "set", model=model, include="weight"
    )
    with pytest.raises(TypeError, match=r"gradient of 'weight' is sparse"):
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()


def test_parameters_outside_the_sparse_layers_may_be_anything():
    model = nn.Linear(4, 4)
    model.bias.ds_id = 0
    groups = [{"params": [model.weight]}, {"params": [model.bias], "sparsity": 0.0}]
    assert len(SparseOptimizer(SGD(groups, lr=0.1)).layers) == 1
