"""What does a sparse run cost? Counts of one forward pass, times densities, over a whole run.

`count` measures a model once; everything else is arithmetic on that `ModelCost`:

- `inference_flops` and `parameters`: one sparse network,
- `training_flops` and `growth_flops`: a run whose densities follow a schedule,
- `run_cost`: a run whose densities are on record, as a live optimizer has them.

A multiply-add is two FLOPs; norms and pooling are FLOPs as fvcore reports them.
"""

from sparseopt.flops.cost import ModelCost, ModuleCost, Weight, inference_flops, parameters
from sparseopt.flops.count import count
from sparseopt.flops.live import LiveCost, live_cost
from sparseopt.flops.training import (
    RunCost,
    density_record,
    growth_flops,
    run_cost,
    training_flops,
)

__all__ = [
    "LiveCost",
    "ModelCost",
    "ModuleCost",
    "RunCost",
    "Weight",
    "count",
    "density_record",
    "growth_flops",
    "inference_flops",
    "live_cost",
    "parameters",
    "run_cost",
    "training_flops",
]
