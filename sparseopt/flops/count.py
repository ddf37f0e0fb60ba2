"""What does one forward pass cost? fvcore's counts, and which weight each of them belongs to."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

from torch import nn

from sparseopt.flops.cost import MACS, ModelCost, ModuleCost, Weight
from sparseopt.flops.operators import FREE, SILENT, handles
from sparseopt.flops.recorder import Entry, Recorder, plain, state_names
from sparseopt.flops.tracing import Call, batch_size_of, check_real, eager, untouched
from sparseopt.layers import wrapped


def count(model: nn.Module, inputs: Any, batch_size: int | None = None) -> ModelCost:
    """The cost of one sample through the model, per module and per weight.

    The forward pass runs once, in evaluation mode and without gradients, and is traced by fvcore.
    The model, its training flags, its buffers and the random streams are left as they were.

    Args:
        model: the model, on a real device; wrappers of torch.compile and data parallelism are
            taken off.
        inputs: what the model is called with: a tensor, a tuple of positional arguments, or a
            mapping of keyword arguments.
        batch_size: samples in ``inputs``; default the first dimension of the first tensor. All
            counts are divided by it.

    Returns:
        The cost of the dense model; masks and zeros make no difference here. Densities come in
        with `inference_flops`, `parameters` and `training_flops`.

    Raises:
        ImportError: if fvcore is missing (``pip install sparseopt[flops]``).
        TypeError: if ``model`` is no module.
        ValueError: for a model without real tensors, inputs without a batch dimension, or a
            batch size that is not a whole number of at least 1.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
        >>> print(count(model, torch.zeros(8, 64)))
        module  type    parameters  linear MACs
        ------  ------  ----------  -----------
        0       Linear       6,500        6,400
        2       Linear       1,010        1,000
        ------  ------  ----------  -----------
        total                7,510        7,400
        14,800 FLOPs per sample: 2 per multiply-add, and those of norms and pooling.
        Not counted (calls): relu (1).
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be a torch.nn.Module")
    model = wrapped(model)
    call = Call(model, inputs)
    samples = batch_size_of(call.tensors, batch_size)
    check_real(model)
    with untouched(model, call.tensors), eager(model):
        recorder = Recorder(state_names(call))
        unsupported = _analyse(call, recorder)
        return _cost(model, recorder.entries, unsupported + recorder.silent, samples)


def _analyse(call: Call, recorder: Recorder) -> Counter[str]:
    """Trace the forward pass into the recorder; what has no count comes back."""
    analysis_type = _fvcore()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every shape turned into a number
        analysis = analysis_type(call, tuple(call.tensors))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        counted = handles(analysis._op_handles)
        wrapped = {name: recorder.counting(name, handle) for name, handle in counted.items()}
        listed = {name: recorder.listing(name) for name in SILENT}
        analysis.set_op_handle(**wrapped, **listed, **dict.fromkeys(FREE))
        analysis.total()
        return Counter({plain(k): n for k, n in analysis.unsupported_ops().items()})


def _fvcore() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore compiles a script on import, which warns
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError as error:
            raise ImportError(
                "counting FLOPs needs fvcore: pip install sparseopt[flops]"
            ) from error
    return FlopCountAnalysis


# --- rows -----------------------------------------------------------------------------------------


def _cost(
    model: nn.Module, entries: list[Entry], unsupported: Counter[str], samples: int
) -> ModelCost:
    named = dict(model.named_parameters())
    operators: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    kinds: dict[str, str] = {}
    for entry in entries:
        operators[entry.operator] += entry.amount
        if entry.weight is not None:
            macs[entry.weight] += entry.amount
            kinds.setdefault(entry.weight, entry.kind)
    return ModelCost(
        modules=_rows(model, entries, samples),
        weights={
            name: Weight(kinds[name], _per_sample(macs[name], samples), tuple(named[name].shape))
            for name in named
            if name in macs
        },
        sizes={name: parameter.numel() for name, parameter in named.items()},
        operators={name: _per_sample(amount, samples) for name, amount in operators.items()},
        unsupported=dict(sorted(unsupported.items())),
    )


def _rows(model: nn.Module, entries: list[Entry], samples: int) -> dict[str, ModuleCost]:
    modules = dict(model.named_modules())
    parameters: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        parameters[name.rpartition(".")[0]] += parameter.numel()
    amounts: dict[str, Counter[str]] = {name: Counter() for name in modules}
    for entry in entries:
        # a product belongs to the module that owns the weight, whoever calls it
        owner = entry.module if entry.weight is None else entry.weight.rpartition(".")[0]
        amounts[owner if owner in modules else ""][entry.kind] += entry.amount
    return {
        name: _row(name, type(modules[name]).__name__, done, parameters[name], samples)
        for name, done in amounts.items()
        if done or parameters[name]
    }


def _row(name: str, kind: str, done: Counter[str], parameters: int, samples: int) -> ModuleCost:
    each = {key: _per_sample(amount, samples) for key, amount in done.items()}
    return ModuleCost(
        name=name,
        type=kind,
        macs={key: amount for key, amount in each.items() if key in MACS},
        other={key: amount for key, amount in each.items() if key not in MACS},
        parameters=parameters,
    )


def _per_sample(amount: int, samples: int) -> int:
    return (2 * amount + samples) // (2 * samples)  # rounded; exact for all that grows with batch
