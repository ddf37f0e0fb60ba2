"""Sparse compute in copies, switched on and off, and what it leaves to dense products."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sparse_pairs import (
    EXACT,
    assert_same,
    by_pickle,
    computes_sparsely,
    dense_outputs,
    in_double,  # noqa: F401 - a fixture
    loss,
    network,
    pair,
    train,
    wrap,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sparseopt import SparseOptimizer
from sparseopt.compute import MEASURED
from sparseopt.compute.linear import Forward

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
def test_a_copy_of_model_and_optimizer_trains_on_sparsely(
    duplicate: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 6)
    other, second = duplicate((model, optimizer))
    assert computes_sparsely(other, torch.ones(2, 20), monkeypatch) == 2
    train(model, optimizer, 6, seed=3)
    before = copy.deepcopy(other.state_dict())
    train(model, optimizer, 1, seed=5)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    again, third = network(), None
    third = wrap(again)
    train(again, third, 6)
    train(again, third, 6, seed=3)
    train(other, second, 6, seed=3)
    assert_same(again, other)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle], ids=["deepcopy", "pickle"])
def test_a_copy_of_the_model_alone_is_an_ordinary_model(duplicate: Callable[[Any], Any]) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 3)
    values = torch.linspace(-1, 1, 40).view(2, 20)
    other = duplicate(model)
    expected = model(values).detach()
    torch.testing.assert_close(other(values), expected, **EXACT)
    train(model, optimizer, 3)
    torch.testing.assert_close(other(values), expected, **EXACT)
    assert not any(isinstance(m.__dict__.get("forward"), Forward) for m in other.modules())
    torch.optim.SGD(other.parameters(), lr=0.1).zero_grad()
    loss(other, values).backward()
    assert type(other[0].weight.grad) is Tensor
    torch.testing.assert_close(duplicate(other)(values), expected, **EXACT)


def test_a_saved_model_loads_as_an_ordinary_one() -> None:
    model = network()
    train(model, wrap(model), 3)
    memory = io.BytesIO()
    torch.save(model, memory)
    memory.seek(0)
    other = torch.load(memory, weights_only=False)
    torch.testing.assert_close(other(torch.ones(2, 20)), model(torch.ones(2, 20)), **EXACT)


def test_a_model_outlives_its_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    expected = model(torch.ones(2, 20)).detach()
    del optimizer
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0
    torch.testing.assert_close(model(torch.ones(2, 20)), expected, **EXACT)
    second = wrap(model, sparsity=0.9)
    train(model, second, 2)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 3


def test_a_checkpoint_resumes_with_sparse_products() -> None:
    whole, half = network(), network()
    one, other = wrap(whole), wrap(half)
    train(whole, one, 10)
    train(whole, one, 10, seed=2)
    train(half, other, 10)
    later = network(9)
    third = wrap(later, sparsity=0.8)
    later.load_state_dict(half.state_dict())
    third.load_state_dict(copy.deepcopy(other.state_dict()))
    train(later, third, 10, seed=2)
    assert_same(whole, later)


# --- switching ------------------------------------------------------------------------------------


def test_dense_compute_is_off_at_once_and_on_again_after_a_with_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = network()
    optimizer = wrap(model)
    values = torch.ones(2, 20)
    assert computes_sparsely(model, values, monkeypatch) == 2
    with optimizer.dense_compute():
        assert computes_sparsely(model, values, monkeypatch) == 0
        assert not any("forward" in m.__dict__ for m in model.modules())
        train(model, optimizer, 5)
    assert computes_sparsely(model, values, monkeypatch) == 2
    optimizer.dense_compute()
    assert computes_sparsely(model, values, monkeypatch) == 0
    with optimizer.dense_compute():
        pass
    assert computes_sparsely(model, values, monkeypatch) == 0  # it was off before


def test_training_with_both_in_turn_is_the_same() -> None:
    (dense, one), (sparse, other) = pair()
    for seed in range(0, 8, 2):
        train(dense, one, 3, seed)
        train(dense, one, 3, seed + 1)
        with other.dense_compute():
            train(sparse, other, 3, seed)
        train(sparse, other, 3, seed + 1)
    assert_same(dense, sparse)


def test_layers_above_the_threshold_multiply_densely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, sparsity=0.2)
    assert optimizer.density == pytest.approx(0.8, abs=0.01)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0


def test_a_callable_chooses_by_layer_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, compute=lambda layer, rows: layer.name == "0.weight" and rows > 4)
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 0
    assert computes_sparsely(model, torch.ones(5, 20), monkeypatch) == 1
    assert computes_sparsely(model, torch.ones(2, 3, 20), monkeypatch) == 1
    train(model, optimizer, 5)


def test_a_callable_is_asked_once_in_a_call() -> None:
    model, asked = network(), []
    optimizer = wrap(model, compute=lambda layer, rows: asked.append(layer.name) or len(asked) < 19)
    train(model, optimizer, 5)
    model(torch.ones(2, 20))
    assert asked == 6 * ["0.weight", "2.weight", "4.weight"]
    model(torch.ones(2, 20))
    assert len(asked) == 21
    assert set(optimizer.products.values()) == {"dense: dense products were chosen"}


CHANGES: dict[str, Callable[[nn.Module], Any]] = {
    "type": lambda model: model.float(),
    "memory order": lambda model: setattr(
        model[0].weight, "data", model[0].weight.data.t().contiguous().t()
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_auto_measures_what_the_weight_is_now(change: str) -> None:
    model = network()
    optimizer = wrap(model, compute="auto")
    train(model, optimizer, 3)
    CHANGES[change](model)
    MEASURED.clear()
    values = torch.linspace(-1, 1, 180, dtype=model[2].weight.dtype).view(9, 20)
    found = model(values)
    with optimizer.dense_compute():
        torch.testing.assert_close(found, model(values), rtol=1e-5, atol=1e-6)


def test_auto_may_measure_inside_a_checkpoint() -> None:
    model, inputs = network(), torch.ones(3, 20, requires_grad=True)
    optimizer = wrap(model, compute="auto")
    MEASURED.clear()
    checkpoint(model, inputs, use_reentrant=False).sum().backward()
    assert MEASURED
    optimizer.step()


def test_auto_follows_its_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    optimizer = wrap(model, compute="auto")
    values = torch.ones(2, 20)
    model(values)
    for case in MEASURED:
        MEASURED[case] = (1.0, 10.0)
    assert computes_sparsely(model, values, monkeypatch) >= 2
    for case in MEASURED:
        MEASURED[case] = (10.0, 1.0)
    assert computes_sparsely(model, values, monkeypatch) == 0
    MEASURED.clear()
    train(model, optimizer, 3)


def test_the_global_random_stream_is_not_used_by_calibration() -> None:
    MEASURED.clear()
    model = network()
    optimizer = wrap(model, compute="auto")
    state = torch.get_rng_state()
    loss(model, torch.ones(3, 20)).backward()
    assert MEASURED and torch.equal(state, torch.get_rng_state())
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    optimizer.step()


# --- what it does not follow ----------------------------------------------------------------------


def test_under_autocast_products_are_sparse_and_at_least_as_precise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = []
    values = torch.linspace(-1, 1, 80, dtype=torch.float32).view(4, 20)
    for model, optimizer in pair():
        model.float()
        for backward_inside in (True, False, False, True, False):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(model, values)
                if backward_inside:
                    value.backward()
            if not backward_inside:
                value.backward()
            optimizer.step()
        exact = model(values).detach()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = model(values).detach()
            sparse = computes_sparsely(model, values, monkeypatch)
        assert outputs.dtype == torch.bfloat16
        results.append((model, (outputs - exact).abs().max(), sparse))
    assert [sparse for _, _, sparse in results] == [0, 2]
    assert results[1][1] <= 2 * results[0][1]
    for p, q in zip(results[0][0].parameters(), results[1][0].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0.02, atol=0.01)


def test_what_is_multiplied_densely_says_why() -> None:
    model = network()
    optimizer = wrap(model, distribution="uniform")
    model(torch.ones(2, 20))
    assert set(optimizer.products.values()) == {"sparse"}
    assert list(optimizer.products) == ["0.weight", "2.weight", "4.weight"]
    torch.func.vmap(model)(torch.ones(2, 20))
    assert optimizer.products["0.weight"] == "dense: inside torch.func"
    model.bfloat16()
    model(torch.ones(2, 20, dtype=torch.bfloat16))
    assert optimizer.products["2.weight"] == "dense: weights are torch.bfloat16"
    with optimizer.dense_compute():
        assert set(optimizer.products.values()) == {"dense: switched off"}
    assert wrap(network(), "dense").products["0.weight"] == "dense: compute='dense'"


def test_a_layer_that_could_be_sparse_says_why_it_was_multiplied_densely(monkeypatch) -> None:
    def why(compute: Any, filled: bool = False, **options: Any) -> str:
        model = network()
        optimizer = wrap(model, compute, distribution="uniform", **options)
        if filled:
            model[0].weight.data.fill_(1.0)
        model(torch.ones(2, 20))
        return optimizer.products["0.weight"]

    assert why(lambda layer, rows: False) == "dense: dense products were chosen"
    assert why("sparse", filled=True) == "dense: inactive weights are not zero"
    assert why(lambda layer, rows: True, sparsity=0.0) == "dense: all weights are active"
    monkeypatch.setattr("sparseopt.compute.engine.pays", lambda *about: False)
    assert why("auto") == "dense: dense products were measured to be faster"


def test_torch_func_and_forward_mode_are_followed() -> None:
    model = network()
    optimizer = wrap(model)
    train(model, optimizer, 2)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    values = torch.ones(3, 20)

    def value(given: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, given, (values,)).sum()

    slopes = torch.func.grad(value)(parameters)
    with optimizer.dense_compute():
        expected = torch.func.grad(value)(parameters)
        rows = model(values)
    torch.testing.assert_close(slopes["0.weight"], expected["0.weight"], **EXACT)
    torch.testing.assert_close(torch.func.vmap(model)(values), rows, **EXACT)


def test_modules_changed_by_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubling(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(Doubling(20, 30), nn.Linear(30, 30), nn.Linear(30, 4))
    nn.utils.parametrizations.weight_norm(model[1])
    optimizer = wrap(model, sparsity=0.9, distribution="uniform")
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 1
    train(model, optimizer, 5)


def test_attention_and_leading_dimensions_train_the_same() -> None:
    results = []
    for compute in ("dense", "sparse"):
        torch.manual_seed(0)
        model = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        optimizer = wrap(model, compute)
        for step in range(10):
            optimizer.zero_grad()
            values = torch.linspace(-1, 1 + step, 2 * 5 * 16).view(2, 5, 16).sin()
            model(values).pow(2).mean().backward()
            optimizer.step()
        model.eval()
        results.append((model, model(values).detach()))
    assert_same(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], **EXACT)


def test_a_model_in_another_precision_follows() -> None:
    results = []
    for model, optimizer in pair():
        model.float()
        values = torch.ones(3, 20, dtype=torch.float32)
        for _ in range(6):
            optimizer.zero_grad()
            loss(model, values).backward()
            optimizer.step()
        results.append(model)
    torch.testing.assert_close(results[0][0].weight, results[1][0].weight, rtol=1e-4, atol=1e-6)


def test_frozen_layers_and_no_grad_work() -> None:
    model = network()
    optimizer = wrap(model)
    model[0].weight.requires_grad_(False)
    train(model, optimizer, 6)
    with torch.inference_mode():
        outputs = model(torch.ones(2, 20))
    torch.testing.assert_close(outputs, dense_outputs(model, torch.ones(2, 20)), **EXACT)


def test_parameters_added_later_compute_sparsely(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    inner = torch.optim.SGD(model[0].parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, "set", sparsity=0.8, model=model, compute="sparse")
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 1
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert computes_sparsely(model, torch.ones(2, 20), monkeypatch) == 2
    train(model, optimizer, 4)


def test_wrong_arguments_are_refused_before_anything_changes() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="compute='fast'.*'dense', 'sparse', 'auto'"):
        SparseOptimizer(inner, model=model, compute="fast")
    with pytest.raises(TypeError, match="compute=3"):
        SparseOptimizer(inner, model=model, compute=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="model="):
        SparseOptimizer(inner, compute="sparse")
    with pytest.raises(ValueError, match="storage='compact'"):
        SparseOptimizer(inner, model=model, compute="sparse", storage="masked")
    lbfgs = torch.optim.LBFGS(model.parameters())
    with pytest.raises(ValueError, match="compute='sparse' needs.*element-wise.*compute='dense'"):
        SparseOptimizer(lbfgs, model=model, compute="sparse")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_the_output_projection_of_attention_says_that_its_module_is_not_called() -> None:
    attention = nn.MultiheadAttention(16, 2, batch_first=True)
    optimizer = wrap(attention, distribution="uniform")
    values = torch.ones(2, 3, 16)
    attention(values, values, values)
    assert optimizer.products["out_proj.weight"] == "dense: its module was not called yet"
