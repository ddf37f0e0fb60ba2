"""opt.flops(inputs): what a run in progress costs."""

from __future__ import annotations

import copy

import pytest
import torch

pytest.importorskip("fvcore")

from torch import nn  # noqa: E402

from sparseopt import SparseOptimizer, flops  # noqa: E402
from sparseopt.distributions import counts  # noqa: E402

BATCH = 16
RECIPES = ["static", "set", "rigl", "mest_r", "mest_g", "granet_r", "granet_g", "gmp", "acdc"]


def model_of_two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 10))


def trained(recipe: str, steps: int, total: int = 60) -> tuple[nn.Module, SparseOptimizer]:
    model = model_of_two_layers()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), recipe, sparsity=0.8,
        total_steps=total, update_every=5, model=model,
    )  # fmt: skip
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(BATCH, 20)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def literal_training_flops(densities_of_steps: list[dict[str, float]]) -> float:
    """Three passes of two FLOPs per multiply-add, layer by layer, step by step."""
    sizes = {"0.weight": 640, "2.weight": 320}
    return sum(
        3 * 2 * BATCH * sizes[name] * density
        for densities in densities_of_steps
        for name, density in densities.items()
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_flops_so_far_are_those_of_the_densities_of_every_step(recipe):
    model = model_of_two_layers()
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), recipe, sparsity=0.8,
        total_steps=60, update_every=5, model=model,
    )  # fmt: skip
    seen = []
    for _ in range(37):
        seen.append({layer.name: layer.density for layer in optimizer.layers})
        optimizer.zero_grad()
        model(torch.randn(BATCH, 20)).square().mean().backward()
        optimizer.step()
    live = optimizer.flops(torch.randn(BATCH, 20))
    assert live.so_far.steps == 37
    assert live.so_far.training == pytest.approx(literal_training_flops(seen), rel=1e-9)


@pytest.mark.parametrize("recipe", ["static", "set", "rigl", "mest_r", "granet_r", "gmp"])
def test_the_projection_is_what_the_run_turns_out_to_cost(recipe):
    model, early = trained(recipe, 12)
    other, late = trained(recipe, 60)
    projected = early.flops(torch.randn(BATCH, 20), model=model).projected
    turned_out = late.flops(torch.randn(BATCH, 20), model=other).so_far
    # layers may share a falling total a little differently than the distribution alone says
    assert projected.training == pytest.approx(turned_out.training, rel=0.02)
    assert projected.growth == turned_out.growth


def test_only_growth_by_gradient_pays_for_dense_gradients():
    for recipe, pays in [("set", False), ("mest_r", False), ("rigl", True), ("mest_g", True)]:
        model, optimizer = trained(recipe, 30)
        assert (optimizer.flops(torch.randn(BATCH, 20), model=model).so_far.growth > 0) is pays


def test_inference_now_follows_the_masks():
    model, optimizer = trained("granet_r", 25)
    live = optimizer.flops(torch.randn(BATCH, 20))
    nnz = {layer.name: layer.nnz for layer in optimizer.layers}
    assert live.inference == pytest.approx(2 * sum(nnz.values()))
    assert live.inference == flops.inference_flops(
        flops.count(model, torch.randn(1, 20)),
        {layer.name: layer.density for layer in optimizer.layers},
    )


def test_the_record_of_densities_survives_a_checkpoint():
    model, optimizer = trained("granet_r", 33)
    fresh_model, fresh = trained("granet_r", 0)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    inputs = torch.randn(BATCH, 20)
    assert fresh.flops(inputs).so_far == optimizer.flops(inputs).so_far


def test_without_total_steps_there_is_no_projection():
    model = model_of_two_layers()
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), "set", model=model)
    assert optimizer.flops(torch.randn(BATCH, 20)).projected is None


def test_a_copy_needs_to_be_told_the_model():
    model, optimizer = trained("set", 3)
    twin_model, twin = copy.deepcopy((model, optimizer))
    with pytest.raises(ValueError, match="model="):
        twin.flops(torch.randn(BATCH, 20))
    assert twin.flops(torch.randn(BATCH, 20), model=twin_model).so_far.steps == 3


class Sum(nn.Module):
    """One linear layer, fed by keyword or by position."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(20, 10)

    def forward(self, scale, x):
        return self.fc(x) * scale


@pytest.mark.parametrize(
    "inputs",
    [
        {"scale": 2.0, "x": torch.ones(BATCH, 20)},
        (2.0, torch.ones(BATCH, 20)),
        [torch.ones(BATCH, 1), torch.ones(BATCH, 20)],
    ],
    ids=["mapping", "tuple", "list"],
)
def test_samples_are_those_of_the_first_tensor_however_inputs_are_given(inputs):
    model = Sum()
    optimizer = SparseOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), "set", model=model)
    optimizer.zero_grad()
    model.fc(torch.ones(BATCH, 20)).sum().backward()
    optimizer.step()
    assert optimizer.flops(inputs).so_far.training == 3 * 2 * BATCH * optimizer.layers[0].nnz


def test_the_projected_end_has_the_target_count():
    model, optimizer = trained("gmp", 0)
    projected = optimizer.flops(torch.randn(BATCH, 20), model=model).projected
    biases = 32 + 10
    shapes = [layer.shape for layer in optimizer.layers]
    assert projected.parameters == sum(counts("erk", shapes, 0.2)) + biases


def test_sparse_layers_whose_products_have_no_count_are_named():
    model = nn.Sequential(nn.LSTM(4, 4))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), "static", sparsity=0.5, model=model,
        include="0.weight_*",
    )  # fmt: skip
    cost = optimizer.flops(torch.zeros(3, 2, 4))
    assert cost.uncounted == ("0.weight_ih_l0", "0.weight_hh_l0")
    assert str(cost).endswith("not counted: 0.weight_ih_l0, 0.weight_hh_l0")
    _, counted = trained("static", 0)
    assert "not counted" not in str(counted.flops(torch.zeros(1, 20)))
