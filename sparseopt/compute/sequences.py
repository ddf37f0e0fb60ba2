"""Linear modules that follow each other in ``nn.Sequential``: few see what goes between them."""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Sequence

from torch import nn
from torch.nn.modules import module as modules

__all__ = ["Path", "following", "seen_by_hooks"]

Path = Sequence[nn.Module]
"""The modules through which an output goes, entry by entry, to another Linear module; with it."""


def following(model: nn.Module) -> dict[int, Path]:
    """Where the outputs of Linear modules go if to others, by the ``id`` of those that make them.

    There, only hooks see the memory order of the output, and no random numbers are drawn in it.
    Elsewhere the output is contiguous, as torch makes it: user code may call ``view`` on it.
    """
    blocks = list(model.modules())
    places = Counter(id(one) for block in blocks for one in block._modules.values())
    found: dict[int, Path] = {}
    for block in blocks:
        steps = list(block) if type(block) is nn.Sequential else []
        ends = [place for place, one in enumerate(steps) if type(one) not in ENTRYWISE]
        for first, last in itertools.pairwise(ends):
            if type(steps[first]) is nn.Linear and type(steps[last]) is nn.Linear:
                found[id(steps[first])] = steps[first + 1 : last + 1]
    return {module: after for module, after in found.items() if places[module] == 1}


def seen_by_hooks(path: Sequence[weakref.ref[nn.Module]]) -> bool:
    """Whether somebody looks at what these modules take or give, or at the gradients of it."""
    return any(HOOKS_ON_ALL) or any(map(has_hooks, path))


def has_hooks(one: weakref.ref[nn.Module]) -> bool:
    module = one()
    return module is None or bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


HOOKS_ON_ALL = (
    modules._global_forward_hooks,
    modules._global_forward_pre_hooks,
    modules._global_backward_hooks,
    modules._global_backward_pre_hooks,
)
ENTRYWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh,
    nn.Sigmoid, nn.Hardtanh, nn.Hardswish, nn.Softplus, nn.Identity,
)  # fmt: skip
