"""Linear layers that multiply by their active weights only, on the CPU.

Asked for with ``SparseOptimizer(..., model=model, compute="sparse")`` or ``"auto"``; module tree,
parameter names and training loop stay as they are. :func:`export` makes a model for inference.
"""

from __future__ import annotations

from .choice import HIGHEST_DENSITY, MEASURED
from .export import Exported, SparseLinear, export, is_two_of_four

__all__ = [
    "HIGHEST_DENSITY",
    "MEASURED",
    "Exported",
    "SparseLinear",
    "export",
    "is_two_of_four",
]
