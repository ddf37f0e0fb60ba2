"""Accelerate's own preparation for FSDP2: it replaces parameters behind the optimizer's back."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch.distributed as dist
from common import assert_same
from old_torch import needs_fsdp2
from test_stacks_fsdp import alone, assert_close, made, network, outcome, train
from two_processes import caught, in_processes

pytest.importorskip("accelerate")
pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    needs_fsdp2,
]

CASES: dict[str, dict[str, Any]] = {
    "set": {"algo": "set"},
    "rigl": {"algo": "rigl"},
    "snfs": {"algo": "snfs"},
    "clip": {"algo": "rigl", "clip": 0.05},
}


def accelerator() -> Any:
    """As ``accelerate launch`` with fsdp_version 2 makes it, but on processors.

    Accelerate takes its FSDP plugin on accelerators only; what it does with it runs anywhere.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, cpu_ram_efficient_loading=False)
    made = Accelerator(cpu=True)
    made.state.fsdp_plugin = plugin
    made.state._shared_state["distributed_type"] = DistributedType.FSDP
    assert made.is_fsdp2
    return made


def prepared(case: dict[str, Any]) -> dict[str, Any]:
    tool = accelerator()
    model = network()
    optimizer = made(model, case)
    model, wrapped = tool.prepare(model, optimizer)
    assert all(hasattr(weight, "placements") for weight in model.parameters())
    train(model, wrapped, case)
    tool.free_memory()
    return outcome(model, optimizer)


def all_work(rank: int) -> dict[str, Any]:
    # What torchrun sets; the process group exists already.
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    return {name: caught(lambda case=case: prepared(case)) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(all_work, tmp_path_factory.mktemp("accelerate"))


@pytest.mark.stack("Accelerate", "FSDP2")
@pytest.mark.parametrize("name", CASES)
def test_parameters_that_accelerate_shards_train_as_in_one_process(name, ranks):
    one, other = (of_rank[name] for of_rank in ranks)
    assert not isinstance(one, str), one
    assert_same(one, other)
    assert_close(one, alone(CASES[name]))
