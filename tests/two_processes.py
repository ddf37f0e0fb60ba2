"""Runs a function in two processes with gloo, and hands back what each of them returned."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from sparseopt.storage import compact

TIMEOUT = timedelta(seconds=60)


def in_processes(work: Callable[..., Any], folder: Path, *args: Any, world: int = 2) -> list[Any]:
    """What ``work(rank, *args)`` returned in each process; an error in one fails the test."""
    folder.mkdir(parents=True, exist_ok=True)
    multiprocessing.spawn(_member, (world, work, str(folder), args), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _member(rank: int, world: int, work: Callable[..., Any], folder: str, args: Any) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # 127.0.0.1 alone
    torch.set_num_threads(1)
    compact.WORTH_WATCHING = 0  # small weights are watched as large ones are
    warnings.filterwarnings("error", module="sparseopt")
    # one store per group: a file left by an earlier one would be taken for its own
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=TIMEOUT)
    try:
        torch.save(work(rank, *args), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


def caught(call: Callable[[], Any]) -> Any:
    """What the call returns, or the text of its error, so that other cases still run."""
    try:
        return call()
    except Exception:
        return traceback.format_exc()
