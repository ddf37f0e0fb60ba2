"""Callbacks that log sparsity in Lightning and in the Hugging Face Trainer.

Training itself needs neither: both take a SparseOptimizer like any other optimizer. The trainers
are imported when a callback is asked for, not before.
"""

from __future__ import annotations

import importlib
from typing import Any

from .optimizer import SparseOptimizer

__all__ = ["LightningCallback", "TrainerCallback", "metrics", "sparse_optimizer"]

# Made when they are asked for, by __getattr__ below.
LightningCallback: Any
"""Logs sparsity, churn and exploration rate in Lightning: ``Trainer(callbacks=[...])``."""
TrainerCallback: Any
"""Adds the same to the logs of the Hugging Face Trainer: ``Trainer(callbacks=[...])``."""


def sparse_optimizer(optimizer: Any) -> SparseOptimizer | None:
    """The SparseOptimizer inside what Lightning, Fabric or Accelerate made of it; None without one.

    Example:
        >>> import torch
        >>> sparse_optimizer(torch.optim.SGD([torch.zeros(2, 2)], lr=0.1)) is None
        True
    """
    while optimizer is not None and type(optimizer) is not SparseOptimizer:
        # Lightning's proxies are subclasses of ours that hold the real one
        own = getattr(optimizer, "__dict__", {})
        inside = own.get("_optimizer", own.get("optimizer"))
        if inside is None and isinstance(optimizer, SparseOptimizer):
            return optimizer
        optimizer = inside
    return optimizer


def metrics(optimizer: SparseOptimizer, prefix: str = "sparse/") -> dict[str, float]:
    """What is worth logging, as plain numbers.

    ``sparsity`` (fraction of weights at zero), ``updates`` (made so far), ``churn`` (fraction of
    the active weights that the last update replaced by others) and ``exploration_rate`` (fraction
    of weights that were ever active).

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> optimizer = SparseOptimizer(torch.optim.SGD([weight], lr=0.1), sparsity=0.75)
        >>> metrics(optimizer)["sparse/sparsity"]
        0.75
    """
    last = optimizer.history[-1] if optimizer.history else None
    values = {
        "sparsity": optimizer.sparsity,
        "updates": float(optimizer.updates),
        "churn": (last.grown - last.regrown) / last.nnz if last is not None else 0.0,
        "exploration_rate": optimizer.density if last is None else last.exploration_rate,
    }
    return {f"{prefix}{name}": value for name, value in values.items()}


def __getattr__(name: str) -> Any:
    makers = {"LightningCallback": _lightning_callback, "TrainerCallback": _trainer_callback}
    if name not in makers:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = makers[name]()
    return made


def _import(names: tuple[str, ...]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ImportError(
        f"this callback needs {' or '.join(names)}: pip install sparseopt[integrations]"
    )


def _lightning_callback() -> type:
    pytorch: Any = _import(("lightning.pytorch", "pytorch_lightning"))

    class LightningCallback(pytorch.Callback):
        """Logs the sparsity of every sparse optimizer; give it to ``Trainer(callbacks=[...])``.

        Of several optimizers the names carry a number: ``sparse/0/sparsity``, ``sparse/1/...``.

        At the end of training inactive weights are zeroed once more: an average of weights that
        another callback put in their place (listed before this one) holds all past topologies.
        """

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            optimizers = found(trainer)
            for number, optimizer in enumerate(optimizers):
                prefix = "sparse/" if len(optimizers) == 1 else f"sparse/{number}/"
                pl_module.log_dict(metrics(optimizer, prefix))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            for optimizer in found(trainer):
                optimizer.apply_masks()

    def found(trainer: Any) -> list[SparseOptimizer]:
        inside = map(sparse_optimizer, trainer.optimizers)
        return [optimizer for optimizer in inside if optimizer is not None]

    return _public(LightningCallback)


def _trainer_callback() -> type:
    transformers: Any = _import(("transformers",))

    class TrainerCallback(transformers.TrainerCallback):
        """Adds sparsity to what the Trainer logs; give it to ``Trainer(callbacks=[...])``."""

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any
        ) -> None:
            optimizer = sparse_optimizer(kwargs.get("optimizer"))
            if optimizer is None or logs is None:
                return
            logs.update(metrics(optimizer))
            if state.log_history:
                state.log_history[-1].update(metrics(optimizer))

    return _public(TrainerCallback)


def _public(made: type) -> type:
    """Named as it is imported, so that it pickles."""
    made.__qualname__, made.__module__ = made.__name__, __name__
    return made
