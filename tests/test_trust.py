"""Zeros are kept for optimizers that merely have a familiar name, and around foreign code."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from common import assert_zeros, mlp, sparse, train
from torch import nn

from sparseopt import SparseOptimizer

STORAGES = ["masked", "auto"]


class Adam(torch.optim.Adam):
    """Named as torch's, but noisy: it writes into every weight."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(torch.randn_like(p), alpha=1e-3)
        return loss


def large() -> nn.Sequential:
    return mlp((300, 400, 5), dtype=torch.float32)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_name_alone_is_not_trusted(storage: str):
    model = large()
    optimizer = sparse(model, Adam(model.parameters()), "set", storage=storage, sparsity=0.9)
    assert "'masked'" in repr(optimizer)
    train(model, optimizer, 4, after_step=lambda step: assert_zeros(optimizer))
    with pytest.raises(ValueError, match="Adam"):
        sparse(large(), Adam(large().parameters()), "set", storage="compact", model=None)


@pytest.mark.parametrize("options", [{"use_gc": True}])
def test_an_option_that_mixes_entries_is_not_element_wise(options):
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")
    model = large()
    inner = pytorch_optimizer.Lion(model.parameters(), lr=0.01, **options)
    with pytest.raises(ValueError, match="element-wise"):
        sparse(model, inner, "set", storage="compact")
    optimizer = sparse(model, inner, "rigl", sparsity=0.8)
    train(model, optimizer, 5, after_step=lambda step: assert_zeros(optimizer))


@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("through_data", [True, False])
def test_hooks_on_the_inner_optimizer_leave_no_weight_behind(storage: str, through_data: bool):
    model = mlp()
    inner = torch.optim.AdamW(model.parameters(), lr=0.01)

    def shift(*_: object) -> None:
        with torch.no_grad():
            for p in model.parameters():
                (p.data if through_data else p).add_(0.01)

    inner.register_step_post_hook(shift)
    optimizer = sparse(model, inner, "set", storage=storage)
    train(model, optimizer, 6, after_step=lambda step: assert_zeros(optimizer))


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_a_step_put_in_the_place_of_the_inner_one_leaves_no_weight_behind(storage: str):
    model = mlp()
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    original = inner.step

    def step(closure=None):
        loss = original(closure)
        for p in model.parameters():
            p.data.add_(0.01)
        return loss

    inner.step = step
    optimizer = sparse(model, inner, "set", storage=storage)
    train(model, optimizer, 6, after_step=lambda step: assert_zeros(optimizer))


def test_a_sparsity_that_contradicts_the_algorithm_given_is_made_for():
    from sparseopt.algorithms import rigl

    weight = nn.Parameter(torch.randn(40, 50))
    optimizer = SparseOptimizer(torch.optim.SGD([weight], lr=0.1), rigl(0.9), sparsity=0.8)
    assert optimizer.algorithm.sparsity == 0.8


def test_an_optimizer_with_a_state_dict_of_its_own_can_be_saved_and_resumed():
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer")

    def make(seed: int):
        model = mlp(seed=seed)
        inner = pytorch_optimizer.Lookahead(torch.optim.AdamW(model.parameters(), lr=0.01))
        return model, sparse(model, inner, "set", seed=seed)

    model, optimizer = make(0)
    train(model, optimizer, 5)
    weights, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    later, resumed = make(1)
    later.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert resumed.steps == 5
    for name, mask in optimizer.masks.items():
        assert torch.equal(mask, resumed.masks[name])


def test_robustness_and_analysis_are_reached_from_the_package():
    code = "import sparseopt; sparseopt.analysis.filters; sparseopt.robustness.CORRUPTIONS"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
