"""A run that changes its number of processes on the way is the run that never did."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from common import assert_same
from old_torch import needs_fsdp2
from test_stacks_checkpoint import load, save
from test_stacks_fsdp import alone, assert_close, made, network, outcome, train
from two_processes import caught, in_processes

pytestmark = [
    pytest.mark.skipif(not dist.is_available(), reason="torch without distributed"),
    needs_fsdp2,
]

STOPS = (0, 4, 9, 13)
CASES: dict[str, dict[str, Any]] = {
    "rigl": {"algo": "rigl"},
    "snfs": {"algo": "snfs"},
    "global": {"algo": "rigl", "options": {"scope": "global"}},
    "per_element_step": {"algo": "rigl", "options": {"grown_state": "per_element_step"}},
}
Piece = tuple[str, int]
"""A route ("1-2-1" processes) and which of its three parts."""


def trained(case: dict[str, Any], route: str, part: int, folder: Path) -> dict[str, Any]:
    """One part of the training, from the checkpoint of the part before it to one of its own."""
    from torch.distributed.fsdp import fully_shard

    model = network(case)
    if dist.is_initialized():
        fully_shard(model)
    options = {**case.get("options", {}), "seed": 5 * part}  # the checkpoint's seed holds
    optimizer = made(model, {**case, "options": options})
    if part:
        load(model, optimizer, folder / f"{route}.{part - 1}", "plain")
    train(model, optimizer, case, STOPS[part], STOPS[part + 1])
    save(model, optimizer, folder / f"{route}.{part}", "plain")
    return outcome(model, optimizer)


def pieces(rank: int, folder: str, work: list[Piece]) -> dict[tuple[str, str], Any]:
    return {
        (name, route): caught(partial(trained, case, route, part, Path(folder) / name))
        for name, case in CASES.items()
        for route, part in work
    }


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], Any]]:
    """What every route ends in, on every process of its last part."""
    folder = tmp_path_factory.mktemp("resharding")
    checkpoints = str(folder / "checkpoints")
    pieces(0, checkpoints, [("1-2-1", 0)])
    in_processes(pieces, folder / "one", checkpoints, [("2-1-2", 0), ("1-2-1", 1)])
    on_one = pieces(0, checkpoints, [("2-1-2", 1), ("1-2-1", 2)])
    on_two = in_processes(pieces, folder / "two", checkpoints, [("2-1-2", 2)])
    return [on_one | of_rank for of_rank in on_two]


@pytest.mark.stack("FSDP2", "1 to 2 to 1 and 2 to 1 to 2 processes")
@pytest.mark.parametrize("route", ["1-2-1", "2-1-2"])
@pytest.mark.parametrize("name", CASES)
def test_a_run_on_changing_numbers_of_processes_is_that_of_one(name, route, ends):
    one, other = (of_rank[name, route] for of_rank in ends)
    assert not isinstance(one, str), one
    assert_same(one, other)
    assert_close(one, alone(CASES[name]))
