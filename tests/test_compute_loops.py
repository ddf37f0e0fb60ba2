"""Odd loops under sparse compute: each trains, and reads, as with dense products."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from sparse_pairs import (
    EXACT,
    assert_same,
    deferred_pair,
    in_double,  # noqa: F401 - a fixture
    loss,
    network,
    train,
    wrap,
)
from torch import Tensor, nn
from torch.autograd import forward_ad

from sparseopt.storage.deferred import Deferred, unlock

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")

Loop = Callable[[nn.Module, Any], list[Tensor]]


def batches(number: int = 6) -> list[Tensor]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(rows % 5 + 1, 20, generator=draw) for rows in range(number)]


def in_memory_of_one_s_own(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """What is saved for the backward pass is kept elsewhere, as offloading does."""
    slopes = []
    for inputs in batches():
        optimizer.zero_grad()
        leaf = inputs.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            value = loss(model, leaf)
        value.backward()
        slopes.append(leaf.grad)
        optimizer.step()
    return slopes


def stepped_before_backward(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """The weights that were saved are those of the forward pass, not of the step since."""
    slopes = []
    for inputs in batches():
        leaf = inputs.requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            value = loss(model, leaf)
        optimizer.step()
        optimizer.zero_grad()
        value.backward()
        slopes.append(leaf.grad)
    return slopes


def written_between_backward_passes(model: nn.Module, optimizer: Any) -> list[Tensor]:
    """One active weight through ``.data``: no version tells of it."""
    slopes = []
    for turn, inputs in enumerate(batches()):
        for again in range(2):
            leaf = inputs.clone().requires_grad_()
            loss(model, leaf).backward()
            slopes.append(leaf.grad)
            row, column = optimizer.layers[turn % 3].mask.nonzero()[turn].tolist()
            optimizer.layers[turn % 3].weight.data[row, column] = 0.5 + again
    return slopes


def swapped_with_an_average(model: nn.Module, optimizer: Any) -> list[Tensor]:
    average, outputs = network(4), []
    for inputs in batches(4):
        train(model, optimizer, 2)
        optimizer.zero_grad()
        for _ in range(2):
            for p, q in zip(model.parameters(), average.parameters(), strict=True):
                torch.utils.swap_tensors(p, q)
            outputs.append(model(inputs).detach())
    return outputs


def rows_of_a_jacobian(model: nn.Module, optimizer: Any) -> list[Tensor]:
    inputs = torch.ones(2, 20)
    jacobian = torch.autograd.functional.jacobian(model, inputs, vectorize=True)
    leaf = inputs.requires_grad_()
    outputs = model(leaf)
    each = torch.eye(12).view(12, 2, 6)
    batched = torch.autograd.grad(outputs, leaf, each, is_grads_batched=True)
    return [jacobian, *batched]


def curvature(model: nn.Module, optimizer: Any) -> list[Tensor]:
    value = lambda inputs: model(inputs).tanh().sum()  # noqa: E731
    return [torch.autograd.functional.hessian(value, torch.ones(1, 20), vectorize=True)]


LOOPS: list[Loop] = [
    in_memory_of_one_s_own,
    stepped_before_backward,
    written_between_backward_passes,
    swapped_with_an_average,
    rows_of_a_jacobian,
    curvature,
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_an_odd_loop_gives_what_dense_products_give(loop: Loop) -> None:
    (dense, one), (sparse, other) = deferred_pair()
    expected, found = loop(dense, one), loop(sparse, other)
    torch.testing.assert_close(found, expected, **EXACT)
    train(dense, one, 3)
    train(sparse, other, 3)
    assert_same(dense, sparse)


def given_other_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad.data = p.grad * 2 + 0.1


def given_back_as_a_vector(model: nn.Module) -> None:
    grads = [p.grad for p in model.parameters()]
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(grads) * 2, grads)


def given_each_other_s_data(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad.data = p.grad.clone().mul_(3)


GIVEN = [given_other_data, given_back_as_a_vector, given_each_other_s_data]


@pytest.mark.parametrize("change", GIVEN, ids=lambda change: change.__name__)
def test_gradients_given_other_memory_are_stepped_by(change: Callable[[nn.Module], None]) -> None:
    models = network(), network()
    for model, compute in zip(models, ("dense", "sparse"), strict=True):
        optimizer = wrap(model, compute)
        for inputs in batches():
            optimizer.zero_grad()
            loss(model, inputs).backward()
            change(model)
            optimizer.step()
    assert_same(*models)


def test_a_model_moved_to_another_type_between_backward_and_step_goes_on() -> None:
    models = network(), network()
    for model, compute in zip(models, ("dense", "sparse"), strict=True):
        optimizer = wrap(model, compute, algo="static")
        train(model, optimizer, 5)
        optimizer.zero_grad()
        loss(model, torch.ones(3, 20)).backward()
        model.float()
        optimizer.step()
        model.double()
        train(model, optimizer, 5)
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


class InPlace(nn.Module):
    """Writes into what its Linear layers give out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(20, 32), nn.ReLU(inplace=True), nn.Linear(32, 20), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(20, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body[0](inputs)
        hidden += 1
        outputs = self.head(self.body(inputs)).mul_(2)
        outputs[..., 0] = hidden.sum(-1)
        return outputs


class InTwoPlaces(nn.Module):
    """A layer inside one sequence, and at the end of another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        shared = nn.Linear(20, 20)
        self.first = nn.Sequential(shared, nn.ReLU(), nn.Linear(20, 20))
        self.second = nn.Sequential(nn.Linear(20, 20), nn.Tanh(), shared)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.second(self.first(inputs)).view(-1, 4)


def test_a_layer_in_two_places_gives_contiguous_outputs_in_both() -> None:
    models = InTwoPlaces(), InTwoPlaces()
    for model, compute in zip(models, ("dense", "sparse"), strict=True):
        train(model, wrap(model, compute), 6)
    assert_same(*models)


class ManyReaders(nn.Module):
    """Three layers that read the same activations, the last of them after a write in place."""

    def __init__(self, between: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(20, 20)
        self.readers = nn.ModuleList([nn.Linear(20, 20) for _ in range(3)])
        self.between = between

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.first(inputs) * 1.0
        one, two = self.readers[0](hidden), self.readers[1](hidden)
        self.between(hidden)
        return torch.cat([one, two, self.readers[2](hidden)], -1)


@pytest.mark.parametrize("write", [lambda t: t.data.mul_(2), lambda t: t.detach().mul_(2)])
def test_activations_written_between_two_readers_are_read_anew(write: Any) -> None:
    inputs = torch.ones(3, 20)
    models = [ManyReaders(write), ManyReaders(write)]
    found = []
    for model, compute in zip(models, ("dense", lambda layer, rows: True), strict=True):
        optimizer = wrap(model, compute, "static")  # held, or there are no sparse products
        found += [model(inputs), model(inputs)]
        assert compute == "dense" or set(optimizer.products.values()) == {"sparse"}
    torch.testing.assert_close(found[0], found[2], **EXACT)
    torch.testing.assert_close(found[1], found[3], **EXACT)


def test_a_buffer_of_inputs_may_be_filled_again_past_autograd() -> None:
    torch.manual_seed(0)
    dense = nn.Linear(20, 6)
    sparse = copy.deepcopy(dense)
    optimizers = wrap(dense, "dense"), wrap(sparse, "sparse")
    for requires_grad in (False, True):
        buffer, outputs = torch.ones(3, 20).requires_grad_(requires_grad), []
        for number in range(3):
            buffer.detach().numpy()[:] = number
            outputs.append(sparse(buffer))  # kept, and with it what was saved for backward
            torch.testing.assert_close(outputs[-1], dense(buffer), **EXACT)
    assert optimizers[1].products == {"weight": "sparse"}


def test_backward_passes_in_several_threads_keep_apart() -> None:
    (_, _), (model, optimizer) = deferred_pair()
    inputs = [torch.full((rows, 20), 0.1 * rows) for rows in range(1, 9)]
    weights = [p for p in model.parameters() if p.ndim == 2]

    def gradients(given: Tensor) -> list[Tensor]:
        return [g + 0 for g in torch.autograd.grad(loss(model, given), weights)]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that they meet
    try:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(40):
                train(model, optimizer, 1)
                found = list(pool.map(gradients, inputs))
                torch.testing.assert_close(found, list(map(gradients, inputs)), **EXACT)
    finally:
        sys.setswitchinterval(before)


@pytest.mark.parametrize("rows", [(), (1,), (5,), (17,), (2, 3)], ids=str)
def test_outputs_may_be_written_in_place(rows: tuple[int, ...]) -> None:
    models = InPlace(), InPlace()
    for model, compute in zip(models, ("dense", lambda layer, rows: True), strict=True):
        optimizer = wrap(model, compute)
        for _ in range(6):
            optimizer.zero_grad()
            loss(model, torch.ones(*rows, 20)).backward()
            optimizer.step()
        if compute != "dense":
            assert set(optimizer.products.values()) == {"sparse"}
    assert_same(*models)


def test_no_thread_reads_a_weight_that_another_one_is_writing() -> None:
    (_, _), (model, optimizer) = deferred_pair()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(40):
            train(model, optimizer, 1)
            read = list(pool.map(lambda _: model[0].weight.detach().clone(), range(8)))
            assert all(torch.equal(one, model[0].weight) for one in read)


# --- one call after another -----------------------------------------------------------------------


def under_autocast(model: nn.Module, values: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(values)


def with_bias(bias: Tensor, parameter: bool) -> Callable[[nn.Module, Tensor], Tensor]:
    def call(model: nn.Module, values: Tensor) -> Tensor:
        del model[0].bias
        model[0].bias = nn.Parameter(bias) if parameter else bias
        return model(values)

    return call


def tangent(model: nn.Module, values: Tensor) -> Tensor:
    with forward_ad.dual_level():
        outputs = model(forward_ad.make_dual(values, torch.ones_like(values)))
        return forward_ad.unpack_dual(outputs).tangent


class Doubling(Tensor):
    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = func(*args, **kwargs or {})
        return 2 * found if func is nn.functional.linear else found


CIRCUMSTANCES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "autocast": under_autocast,
    "vmap": lambda model, values: torch.func.vmap(model)(values[None])[0],
    "another precision": lambda model, values: model(values.to(torch.bfloat16)),
    "another bias": with_bias(torch.zeros(32, dtype=torch.bfloat16), parameter=True),
    "a bias that is no parameter": with_bias(torch.zeros(32, dtype=torch.bfloat16), False),
    "one bias for all": with_bias(torch.tensor(0.5, dtype=torch.float64), parameter=True),
    "forward mode": tangent,
    "sparse": lambda model, values: model(values.to_sparse_csr()),
    "nested": lambda model, values: model(torch.nested.as_nested_tensor([values]))[0],
    "too few features": lambda model, values: model(values[:, :-1]),
    "none": lambda model, values: model(values[:0]),
    "a subclass": lambda model, values: model(values.as_subclass(Doubling)).as_subclass(Tensor),
}


def outcome(call: Callable[[nn.Module, Tensor], Tensor], model: nn.Module, values: Tensor) -> Any:
    try:
        return call(model, values).detach()
    except RuntimeError as error:
        return str(error)


@pytest.mark.filterwarnings(
    "ignore:Sparse CSR tensor support",
    "ignore:The PyTorch API of nested",
    "ignore:.*jit.script. is deprecated",  # torch's own, for forward mode
)
@pytest.mark.parametrize("name", CIRCUMSTANCES)
def test_what_was_found_in_one_call_is_not_taken_for_granted_in_another(name: str) -> None:
    model, values = network(), torch.linspace(-1, 1, 40).view(2, 20)
    train(model, optimizer := wrap(model), 3)
    model(values)
    assert optimizer.products["0.weight"] == "sparse"
    assert type(model[0].weight) is Deferred or unlock is None  # else each call asks anew
    found = outcome(CIRCUMSTANCES[name], model, values)
    with optimizer.dense_compute():
        expected = outcome(CIRCUMSTANCES[name], copy.deepcopy(model), values)
    if isinstance(expected, str):
        assert found == expected
    else:
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-2 if "auto" in name else 1e-10)
