"""Train a network with most of its weights at zero, with the optimizer you already use."""

import importlib
from typing import Any

from . import (
    algorithms,
    distributions,
    flops,
    layers,
    links,
    schedules,
    scores,
    select,
    storage,
    topologies,
)
from .algorithms import Algorithm, algorithm, available
from .history import Record
from .layers import Layer
from .optimizer import SparseOptimizer
from .run_report import report

__version__ = "0.1.0"

__all__ = [
    # the optimizer
    "SparseOptimizer",
    "Layer",
    "Record",
    "report",
    # recipes
    "Algorithm",
    "algorithm",
    "available",
    # what recipes are made of
    "algorithms",
    "distributions",
    "flops",
    "layers",
    "links",
    "schedules",
    "scores",
    "select",
    "storage",
    "topologies",
]


def __getattr__(name: str) -> Any:
    """``sparseopt.robustness`` and ``sparseopt.analysis`` are loaded when they are asked for."""
    if name in ("analysis", "robustness"):
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
