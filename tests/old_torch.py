"""Which tests need a newer torch than the oldest that the library works with, and why."""

from __future__ import annotations

import pytest
import torch


def before(*version: int) -> bool:
    return tuple(map(int, torch.__version__.split(".")[:2])) < version


needs_fsdp2 = pytest.mark.skipif(
    before(2, 11), reason="sharded parameters are refused before torch 2.11 (sparseopt.shards)"
)
