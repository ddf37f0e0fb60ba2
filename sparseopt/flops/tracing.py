"""The model as something that can be traced, and left exactly as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Call(nn.Module):
    """The model as a function of tensors to tensors, which is what can be traced."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.model = model
        self.training = False
        self.keywords = dict(inputs) if isinstance(inputs, Mapping) else None
        several = self.keywords.values() if self.keywords is not None else inputs
        listed = self.keywords is not None or isinstance(inputs, (list, tuple))
        self.values = list(several) if listed else [inputs]
        self.places = [i for i, value in enumerate(self.values) if isinstance(value, Tensor)]
        self.tensors = [self.values[place] for place in self.places]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = list(self.values)
        for place, tensor in zip(self.places, tensors, strict=True):
            values[place] = tensor
        if self.keywords is None:
            return tuple(_tensors(self.model(*values)))
        return tuple(_tensors(self.model(**dict(zip(self.keywords, values, strict=True)))))


def _tensors(output: Any) -> Iterator[Tensor]:
    """All tensors in what a model returns: a tensor, nested containers, or a dataclass."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _tensors(value)
    elif isinstance(output, (list, tuple)):
        for value in output:
            yield from _tensors(value)
    elif hasattr(output, "__dict__"):
        yield from _tensors(vars(output))


def samples_in(model: nn.Module, inputs: Any) -> int:
    """Samples in a batch: the first dimension of its first tensor."""
    return batch_size_of(Call(model, inputs).tensors, None)


def batch_size_of(tensors: list[Tensor], given: int | None) -> int:
    if not tensors or (given is None and not tensors[0].dim()):
        raise ValueError(
            "inputs has no tensor with a batch dimension; give what the model is called with, "
            "such as torch.zeros(1, 3, 32, 32)"
        )
    samples = tensors[0].shape[0] if given is None else given
    if samples < 1 or samples != int(samples):
        raise ValueError(f"inputs hold batch_size={samples} samples; give a whole number from 1 on")
    return int(samples)


def check_real(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(f"parameter {name!r} has no shape yet: call the model once first")
        if parameter.is_meta:
            raise ValueError(
                f"parameter {name!r} is on the meta device, which cannot be traced; "
                "count model.to_empty(device='cpu')"
            )


@contextlib.contextmanager
def untouched(model: nn.Module, tensors: list[Tensor]) -> Iterator[None]:
    """Evaluation mode without gradients; flags, buffers, hooks and random streams come back."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in model.buffers()]
    hooks = [(table, set(table)) for module in model.modules() for table in _hook_tables(module)]
    devices = {t.device.index or 0 for t in [*model.parameters(), *tensors] if t.is_cuda}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # the fused attention layers hide their products from the trace
        torch.backends.mha.set_fastpath_enabled(False)
        for module, _ in flags:
            module.training = False  # not eval(): some models do more in theirs
        with torch.random.fork_rng(sorted(devices)), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, flag in flags:
            module.training = flag
        for buffer, before, version in buffers:
            if buffer._version != version:
                buffer.data.copy_(before)
        for table, before_hooks in hooks:  # fvcore leaves its own when the forward pass fails
            for key in set(table) - before_hooks:
                del table[key]


@contextlib.contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Compiled parts replaced by what they were compiled from; they cannot be traced."""
    modules = list(model.modules())
    parts = [
        (parent, key, child)
        for parent in modules
        for key, child in parent._modules.items()
        if hasattr(child, "_orig_mod")
    ]
    calls = [(module, module._compiled_call_impl) for module in modules]
    try:
        for parent, key, child in parts:
            parent._modules[key] = child._orig_mod  # type: ignore[union-attr, assignment]
        for module, _ in calls:
            module._compiled_call_impl = None
        yield
    finally:
        for parent, key, child in parts:
            parent._modules[key] = child
        for module, call in calls:
            module._compiled_call_impl = call


def _hook_tables(module: nn.Module) -> tuple[dict[int, Any], ...]:
    return module._forward_pre_hooks, module._forward_hooks
