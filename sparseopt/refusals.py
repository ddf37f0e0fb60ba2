"""Parameters that cannot be sparse, and the errors that say why."""

from __future__ import annotations

import torch
from torch import Tensor

from .shards import refuse_placement

__all__ = ["refuse_flattened", "refuse_unsupported"]


def refuse_flattened(name: str, weight: Tensor) -> None:
    """Raise TypeError for parameters that have lost their shape, and with it their layer."""
    if type(weight).__name__ == "FlatParameter" or hasattr(weight, "_fsdp_flattened"):
        raise TypeError(
            f"parameter {name!r} is a flat parameter of FSDP1, which mixes layers: use FSDP2 "
            "(torch.distributed.fsdp.fully_shard)"
        )
    if hasattr(weight, "ds_id"):
        raise TypeError(
            f"parameter {name!r} is partitioned by DeepSpeed ZeRO-3: use ZeRO stage 1 or 2, or "
            "FSDP2"
        )


def refuse_unsupported(name: str, weight: Tensor) -> None:
    """Raise TypeError for parameters that cannot be masked entry by entry in one process."""
    refuse_flattened(name, weight)
    refuse_placement(name, weight)
    if weight.is_quantized or weight.layout != torch.strided:
        raise TypeError(
            f"parameter {name!r} is {weight.layout}{', quantized' if weight.is_quantized else ''}: "
            "only ordinary strided weights can be sparse; exclude it"
        )
