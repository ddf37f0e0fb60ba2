"""Where only sparse layers read a layer's outputs, these stay in the memory order of products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_pairs import EXACT, assert_same, in_double, loss, saved, wrap  # noqa: F401 - a fixture
from torch import Tensor, nn
from torch.nn import functional as F

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


class Network(nn.Module):
    """Layers 20-24-24-20, called by a function of theirs and the inputs."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.gate, self.narrow = nn.Linear(20, 24), nn.Linear(20, 24), nn.Linear(24, 20)
        self.norm, self.drop, self.call = nn.LayerNorm(24), nn.Dropout(0.3), call
        self.orders: list[str] = []

    def note(self, values: Tensor) -> Tensor:
        """Write down the memory order, and give on what came."""
        turned = values.flatten(0, -2).t()
        self.orders.append("feature-major" if turned.is_contiguous() else "contiguous")
        return values

    def forward(self, inputs: Tensor) -> Tensor:
        return self.call(self, inputs)


ALONE: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "activation": lambda m, x: m.narrow(F.gelu(m.note(m.wide(x)))),
    "in place": lambda m, x: m.narrow(F.relu(m.note(m.wide(x)), inplace=True)),
    "no activation": lambda m, x: m.narrow(m.note(m.wide(x))),
    "gated": lambda m, x: m.narrow(F.silu(m.note(m.wide(x))) * m.gate(x)),
    "by hand": lambda m, x: (lambda h: m.narrow(h * torch.sigmoid(h)))(m.note(m.wide(x))),
    "two readers": lambda m, x: (lambda h: m.narrow(h) + m.narrow(h.tanh()))(m.note(m.wide(x))),
    "resting dropout": lambda m, x: m.narrow(F.dropout(m.note(m.wide(x)), 0.0)),
}
"""What may come between two sparse layers that nobody else sees."""

SEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "view": lambda m, x: m.narrow(m.note(m.wide(x)).view(-1, 24)),
    "norm": lambda m, x: m.narrow(m.norm(m.note(m.wide(x)))),
    "dropout": lambda m, x: m.narrow(m.drop(m.note(m.wide(x)))),
    "constant": lambda m, x: m.narrow(m.note(m.wide(x)) * torch.ones(24)),
    "parameter": lambda m, x: m.narrow(m.note(m.wide(x)) * m.norm.weight),
    "sum": lambda m, x: m.note(m.wide(x)).view(-1).mean() + m.narrow(x[..., :1] + torch.ones(24)),
    "second call": lambda m, x: (
        m.narrow(F.relu(m.note(m.wide(x)))) + m.note(m.wide(x)).view(-1, 12).mean()
    ),
    "second call first": lambda m, x: (
        m.note(m.wide(x)).view(-1, 12).mean() + m.narrow(F.relu(m.note(m.wide(x))))
    ),
}
"""What needs the contiguous outputs that torch's own layers have, or draws in their order."""


NOT_CALLED = "dense: its module was not called yet"


def trained(call: Any, compute: str, steps: int = 9, **more: Any) -> tuple[Network, Any]:
    model = Network(call)
    optimizer = wrap(model, compute, distribution="uniform", **more)
    for step in range(steps):
        once(model, optimizer, step)
    return model, optimizer


def once(model: Network, optimizer: Any, step: int) -> None:
    torch.manual_seed(step)
    optimizer.zero_grad()
    loss(model, torch.randn(2, 3, 20)).backward()
    optimizer.step()


@pytest.mark.parametrize("call", ALONE)
def test_outputs_that_sparse_layers_alone_read_stay_as_they_are_made(call: str) -> None:
    model, optimizer = trained(ALONE[call], "sparse")
    assert set(optimizer.products.values()) <= {"sparse", NOT_CALLED}
    assert model.orders == ["contiguous"] + ["feature-major"] * 8
    assert_same(trained(ALONE[call], "dense")[0], model)


@pytest.mark.parametrize("call", SEEN)
def test_outputs_that_others_read_stay_contiguous(call: str) -> None:
    model, _ = trained(SEEN[call], "sparse")
    assert set(model.orders) == {"contiguous"}
    assert_same(trained(SEEN[call], "dense")[0], model)


def test_a_hook_on_the_layer_gets_contiguous_outputs() -> None:
    model, optimizer = trained(ALONE["activation"], "sparse")
    seen = []
    model.wide.register_forward_hook(lambda module, given, made: seen.append(made.is_contiguous()))
    once(model, optimizer, 0)
    assert seen == [True] and model.orders[-1] == "contiguous"


def test_a_look_at_the_outputs_before_training_does_not_matter() -> None:
    model = Network(ALONE["activation"])
    optimizer = wrap(model, distribution="uniform")
    model(torch.ones(2, 3, 20))
    with torch.no_grad():
        model(torch.ones(2, 3, 20))
    for step in range(2):
        once(model, optimizer, step)
    assert model.orders == ["contiguous"] * 3 + ["feature-major"]


def test_outputs_are_contiguous_again_where_the_next_layer_multiplies_densely() -> None:
    model, optimizer = trained(ALONE["activation"], "sparse")
    with optimizer.dense_compute():
        once(model, optimizer, 0)
    once(model, optimizer, 1)
    once(model, optimizer, 2)
    assert model.orders[-3:] == ["contiguous", "contiguous", "feature-major"]
    chosen = {"narrow.weight": True}
    model = Network(ALONE["activation"])
    optimizer = wrap(model, lambda layer, rows: chosen.get(layer.name, True))
    once(model, optimizer, 0)
    chosen["narrow.weight"] = False
    for step in range(1, 4):
        once(model, optimizer, step)
    assert model.orders == ["contiguous", "feature-major", "contiguous", "contiguous"]


@pytest.mark.parametrize("inner", ["sgd", "adamw"])
def test_a_resumed_run_learns_it_again_and_ends_with_the_same_bits(inner: str) -> None:
    model, optimizer = trained(ALONE["activation"], "sparse", inner=inner)
    weights, state = saved(model.state_dict()), saved(optimizer.state_dict())
    later, again = trained(ALONE["activation"], "sparse", 0, inner=inner)
    later.load_state_dict(weights)
    again.load_state_dict(state)
    for step in range(20, 28):
        once(model, optimizer, step)
        once(later, again, step)
    assert later.orders[:2] == ["contiguous", "feature-major"]
    for one, other in zip(model.parameters(), later.parameters(), strict=True):
        assert torch.equal(one, other)


def test_under_autocast_the_order_stays_too() -> None:
    torch.set_default_dtype(torch.float32)
    model = Network(ALONE["activation"])
    optimizer = wrap(model, distribution="uniform")
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            once(model, optimizer, step)
    assert model.orders == ["contiguous", "feature-major", "feature-major"]


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
