"""Exported models compute what the trained one computes, are smaller, and load again."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparseopt import SparseOptimizer
from sparseopt.compute import SparseLinear, export, is_two_of_four

pytestmark = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="needs MKL")


def trained(algo: str = "set", sparsity: float = 0.9, **options: Any) -> tuple[nn.Sequential, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Sequential(nn.Linear(96, 64, bias=False), nn.Dropout(0.5)),
        nn.Linear(64, 10),
    )  # fmt: skip
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(
        inner, algo, sparsity=sparsity, total_steps=20, update_every=5, model=model,
        exclude="3", **options,
    )  # fmt: skip
    for _ in range(7):
        optimizer.zero_grad()
        model(torch.randn(8, 64)).pow(2).mean().backward()
        optimizer.step()
    return model, optimizer


def outputs(model: nn.Module, values: Tensor) -> Tensor:
    with torch.no_grad():
        return model(values)


@pytest.mark.parametrize("format", ["csr", "dense"])
def test_an_exported_model_computes_the_same(format: str) -> None:
    model, optimizer = trained()
    exported = export(model, optimizer, format=format)
    values = torch.randn(5, 3, 64)
    assert not exported.model.training and model.training
    torch.testing.assert_close(outputs(exported.model, values), outputs(model.eval(), values))
    assert exported.layers == (["0", "2.0"] if format == "csr" else [])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # of the dense model
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_exported_transformer_encoder_computes_the_same(activation: str, padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation=activation, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SparseOptimizer(inner, "static", sparsity=0.9, model=model)
    exported = export(model, optimizer)
    values, padding = torch.randn(3, 5, 32), torch.zeros(3, 5, dtype=torch.bool)
    padding[0, 3:] = padded
    options = {"src_key_padding_mask": padding} if padded else {}
    with torch.no_grad():
        found, wanted = exported.model(values, **options), model.eval()(values, **options)
    torch.testing.assert_close(found[~padding], wanted[~padding])
    assert "layers.0.linear1" in exported.layers


def test_an_exported_model_is_smaller_by_its_sparsity(tmp_path: Path) -> None:
    model, optimizer = trained(sparsity=0.95)
    exported = export(model, optimizer)
    torch.save(exported.model.state_dict(), tmp_path / "model.pt")
    assert exported.bytes == pytest.approx((tmp_path / "model.pt").stat().st_size, rel=0.02)
    assert exported.bytes < 0.4 * exported.dense_bytes
    assert "2 sparse layers" in str(exported) and f"{exported.bytes:,}" in str(exported)


def test_an_exported_model_saves_and_loads() -> None:
    model, optimizer = trained()
    exported = export(model, optimizer).model
    values = torch.randn(4, 64)
    memory = io.BytesIO()
    torch.save(exported, memory)
    memory.seek(0)
    loaded = torch.load(memory, weights_only=False)
    assert torch.equal(outputs(loaded, values), outputs(exported, values))
    other = export(model, optimizer).model
    other.load_state_dict(exported.state_dict())
    assert torch.equal(outputs(other, values), outputs(copy.deepcopy(exported), values))


def test_a_sparsely_computing_model_is_exported_as_an_ordinary_one() -> None:
    model, optimizer = trained(compute="sparse")
    for format in ("csr", "dense"):
        exported = export(model, optimizer, format=format)
        values = torch.randn(4, 64)
        expected = outputs(model.eval(), values)
        torch.testing.assert_close(outputs(exported.model, values), expected)


def test_averages_of_weights_are_masked_in_the_export_only() -> None:
    model, optimizer = trained()
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p in average.parameters():
            p.add_(0.01)
    before = copy.deepcopy(average.state_dict())
    exported = export(average, optimizer)
    assert exported.model[0].values.numel() == optimizer.layers[0].nnz
    assert all(torch.equal(before[name], value) for name, value in average.state_dict().items())


@given(
    outputs_=st.integers(1, 20),
    inputs=st.integers(1, 20),
    density=st.floats(0, 1),
    bias=st.booleans(),
    lead=st.lists(st.integers(1, 3), max_size=3),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_a_sparse_layer_is_the_dense_one(
    outputs_: int, inputs: int, density: float, bias: bool, lead: list[int], seed: int
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs_, bias=bias, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.mul_(torch.rand(outputs_, inputs) < density)
    values = torch.randn(*lead, inputs, dtype=torch.float64)
    result = SparseLinear(linear)(values)
    assert result.is_contiguous()
    torch.testing.assert_close(result, linear(values).detach(), rtol=1e-12, atol=1e-12)


def test_two_of_four_is_checked() -> None:
    model, optimizer = trained("nm", 0.5, n=2, m=4)
    exported = export(model, optimizer, format="2:4")
    assert exported.layers == ["0", "2.0"]
    values = torch.randn(4, 64)
    torch.testing.assert_close(outputs(exported.model, values), outputs(model.eval(), values))
    model[0].weight.data.fill_(1.0)
    assert export(model, format="2:4").layers == ["2.0"]
    assert not is_two_of_four(torch.zeros(3, 6)) and not is_two_of_four(torch.zeros(4))


def test_wrong_exports_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(ValueError, match="format='onnx'.*'csr', 'dense', '2:4'"):
        export(model, format="onnx")
    with pytest.raises(ValueError, match=r"density=0\.3"):
        export(model)
    with pytest.raises(ValueError, match='algo="nm"'):
        export(model, format="2:4")


def test_a_single_layer_can_be_exported() -> None:
    layer = nn.Linear(16, 8)
    nn.init.sparse_(layer.weight, 0.9)
    exported = export(layer)
    values = torch.randn(2, 16)
    torch.testing.assert_close(outputs(exported.model, values), outputs(layer, values))
    assert isinstance(exported.model, SparseLinear) and exported.layers == [""]
