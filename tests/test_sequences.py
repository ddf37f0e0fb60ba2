"""The memory order of what goes from one sparse layer of a sequence to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_pairs import EXACT, assert_same, in_double, network, train, wrap  # noqa: F401
from torch import Tensor, nn
from torch.nn.modules import module as modules

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


def made_by_first(model: nn.Sequential) -> Tensor:
    """The output of the first layer, looked at without a hook."""
    return model[0].forward(torch.ones(5, 20))


def test_between_sparse_layers_the_order_of_products_stays() -> None:
    model = network()
    optimizer = wrap(model, distribution="uniform")
    assert made_by_first(model).t().is_contiguous()
    assert model[4].forward(torch.ones(5, 24)).is_contiguous()  # nothing follows
    with optimizer.dense_compute():
        assert made_by_first(model).is_contiguous()
    assert made_by_first(model).t().is_contiguous()


def view(module: nn.Module, *of: Any) -> None:
    last = of[-1][0] if isinstance(of[-1], tuple) else of[-1]
    last.view(-1)


HOOKS: dict[str, Callable[[nn.Sequential], Any]] = {
    "forward of the layer": lambda m: m[0].register_forward_hook(view),
    "forward of the activation": lambda m: m[1].register_forward_hook(view),
    "before the activation": lambda m: m[1].register_forward_pre_hook(view),
    "before the next layer": lambda m: m[2].register_forward_pre_hook(view),
    "backward of the layer": lambda m: m[0].register_full_backward_hook(view),
    "backward of the activation": lambda m: m[1].register_full_backward_hook(view),
    "before backward": lambda m: m[1].register_full_backward_pre_hook(view),
    "forward of all": lambda m: modules.register_module_forward_hook(view),
    "before all": lambda m: modules.register_module_forward_pre_hook(view),
    "backward of all": lambda m: modules.register_module_full_backward_hook(view),
}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("hook", HOOKS)
def test_whoever_hooks_a_module_in_between_sees_contiguous_values(hook: str, late: bool) -> None:
    models = network(), network()
    for model, compute in zip(models, ("dense", "sparse"), strict=True):
        optimizer = wrap(model, compute, distribution="uniform")
        train(model, optimizer, 3 * late)
        handle = HOOKS[hook](model)
        train(model, optimizer, 5)
        assert made_by_first(model).is_contiguous()
        handle.remove()
        train(model, optimizer, 2)
        assert made_by_first(model).t().is_contiguous() == (compute == "sparse")
    assert_same(*models)


class Noisy(nn.ReLU):
    """An activation that draws numbers in the order of memory."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs + torch.rand_like(inputs))


@pytest.mark.parametrize("kind", [nn.Dropout, nn.RReLU, Noisy, lambda: nn.LayerNorm(32)])
def test_where_numbers_are_drawn_or_features_mixed_values_are_contiguous(kind: Any) -> None:
    results = []
    for compute in ("dense", "sparse"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 32), kind(), nn.Linear(32, 24))
        optimizer = wrap(model, compute, distribution="uniform")
        train(model, optimizer, 6)
        assert made_by_first(model).is_contiguous()
        results.append(model)
    assert_same(*results)


def test_gradients_of_biases_do_not_depend_on_the_memory_order() -> None:
    module = nn.Linear(20, 24)
    optimizer = wrap(module, algo="static")
    inputs, slopes = torch.randn(300, 20), torch.randn(24, 300)
    found = []
    for given in (slopes.t(), slopes.t().contiguous()):
        module.zero_grad()
        module(inputs).backward(given)
        found.append(module.bias.grad.clone())
    assert torch.equal(*found) and set(optimizer.products.values()) == {"sparse"}
    torch.testing.assert_close(found[0], slopes.sum(1), **EXACT)
