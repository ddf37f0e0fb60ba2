"""Averages of weights, export, and torch.compile around a sparse optimizer."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from common import assert_same, assert_zeros, loss_of, mlp, sparse, train
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

SIZES = (6, 16, 5)


def made(seed: int = 0, **options: Any) -> tuple[Any, Any]:
    model = mlp(SIZES, seed=seed)
    inner = options.pop("inner", None) or SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, sparse(model, inner, options.pop("algo", "rigl"), **options)


def density_of(model: nn.Module, optimizer: Any) -> float:
    kept = [model.get_parameter(layer.name) for layer in optimizer.layers]
    return sum(int((p != 0).sum()) for p in kept) / sum(p.numel() for p in kept)


# --- averages -------------------------------------------------------------------------------------


@pytest.mark.stack("timm", "averages")
def test_a_timm_ema_has_the_target_density_after_apply_masks():
    utils = pytest.importorskip("timm.utils")
    model, optimizer = made(update_every=2)
    averages = [utils.ModelEmaV2(model, decay=0.9), utils.ModelEmaV3(model, decay=0.9)]

    def update(step: int) -> None:
        for average in averages:
            average.update(model)

    train(model, optimizer, 20, after_step=update)
    for average in averages:
        assert density_of(average.module, optimizer) > 1.2 * optimizer.density
        optimizer.apply_masks(average)
        assert density_of(average.module, optimizer) <= optimizer.density


@pytest.mark.stack("swa_utils", "SWA with SWALR and update_bn")
def test_swa_with_its_scheduler_and_late_batch_norm():
    model, optimizer = made(update_every=2)
    scheduler = SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    average = AveragedModel(model)

    def update(step: int) -> None:
        scheduler.step()
        average.update_parameters(model)

    train(model, optimizer, 10, after_step=update)
    assert optimizer.inner.param_groups[0]["lr"] == pytest.approx(0.05)
    optimizer.apply_masks(average)
    update_bn([torch.randn(4, 6, dtype=torch.float64)], average)
    assert density_of(average.module, optimizer) <= optimizer.density


@pytest.mark.stack("swa_utils", "averages")
def test_training_goes_on_sparse_after_an_average_took_the_place_of_the_weights():
    model, optimizer = made(update_every=2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(model, optimizer, 10, after_step=lambda step: average.update_parameters(model))
    model.load_state_dict(average.module.state_dict())
    train(model, optimizer, 1, first=10)
    assert_zeros(optimizer)


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.stack("torch.export", "the model as before, zeros included")
def test_a_trained_model_is_exported_as_any_other():
    model, optimizer = made()
    keys, modules = list(model.state_dict()), [name for name, _ in model.named_modules()]
    train(model, optimizer, 5)
    assert list(model.state_dict()) == keys
    assert [name for name, _ in model.named_modules()] == modules
    inputs = torch.randn(3, 6, dtype=torch.float64)
    exported = torch.export.export(model.eval(), (inputs,))
    assert torch.equal(exported.module()(inputs), model(inputs))
    assert set(exported.state_dict) == set(keys)
    for layer in optimizer.layers:
        assert not exported.state_dict[layer.name][~layer.mask].any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.stack("ONNX", "the model as before, zeros included")
def test_a_trained_model_goes_to_onnx_with_its_zeros(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model, optimizer = made()
    train(model, optimizer, 5)
    torch.onnx.export(model.float().eval(), (torch.randn(3, 6),), tmp_path / "model.onnx")
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    zeros = sum(int((onnx.numpy_helper.to_array(one) == 0).sum()) for one in weights)
    assert zeros >= sum(layer.numel - layer.nnz for layer in optimizer.layers)


# --- torch.compile --------------------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("c++") is None, reason="no compiler"
)


@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.stack("torch.compile", "same training")
def test_a_compiled_model_trains_as_the_plain_one(algo):
    torch._dynamo.reset()
    plain, one = made(algo=algo)
    model = mlp(SIZES)
    compiled = torch.compile(model, backend="aot_eager")
    compiled.input_shape = plain.input_shape
    two = sparse(compiled, SGD(compiled.parameters(), lr=0.1, momentum=0.9), algo)
    train(plain, one, 10)
    train(compiled, two, 10)
    assert [layer.name for layer in two.layers] == [layer.name for layer in one.layers]
    assert_same(list(two.masks.values()), list(one.masks.values()))
    for mine, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.stack("torch.compile", "at most two graphs in 30 compiled steps")
@pytest.mark.stack("torch.compile", "masks stay at their address")
def test_a_compiled_step_stays_at_two_graphs_over_30_steps_with_a_scheduler(algo):
    torch._dynamo.reset()
    plain, one = made(algo=algo, inner=None)
    model = copy.deepcopy(plain)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def optimizer_for(network: nn.Module) -> Any:
        rate = torch.tensor(0.01, dtype=torch.float64)
        inner = AdamW(network.parameters(), lr=rate, capturable=False, foreach=False)
        return sparse(network, inner, algo, storage="masked")

    one, two = optimizer_for(plain), optimizer_for(model)
    schedules = [torch.optim.lr_scheduler.StepLR(each, 10) for each in (one, two)]
    step = torch.compile(two.step, backend=backend)
    addresses = [mask.data_ptr() for mask in two.masks.values()]
    for number in range(30):
        for network, optimizer, go in ((plain, one, one.step), (model, two, step)):
            optimizer.zero_grad()
            loss_of(network, number).backward()
            go()
        for schedule in schedules:
            schedule.step()
    assert len(graphs) <= 2
    assert two.steps == 30 and two.updates == one.updates > 5
    assert [mask.data_ptr() for mask in two.masks.values()] == addresses
    assert_zeros(two)
    assert_same(two.masks, one.masks)


@pytest.mark.slow
@needs_compiler
@pytest.mark.stack("torch.compile", "inductor")
def test_a_model_compiled_with_inductor_stays_sparse():
    torch._dynamo.reset()
    model, optimizer = made()
    compiled = torch.compile(model)
    compiled.input_shape = model.input_shape
    train(compiled, optimizer, 6)
    assert_zeros(optimizer)
    assert optimizer.updates == 2
