"""Away from the CPU: a step never waits for the device; updates keep what CUDA graphs know."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from common import MORE_RECIPES, RECIPES, UNKNOWN_STATE, Recipe, inner_named, mlp, sparse, train
from test_compact import ELEMENTWISE_INNERS, assert_agree
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.evolution import check_capture
from sparseopt.storage.packed import Packed

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)

PER_ELEMENT = Recipe("set", {"grown_state": "per_element_step"})
WITHOUT_QUESTIONS = [name for name in ELEMENTWISE_INNERS if not name.endswith(("asgd", "fused"))]
"""torch's own ASGD asks the device for a number, and "meta" has no fused kernels."""


def to_meta(model: nn.Module, optimizer: SparseOptimizer) -> None:
    """Move parameters to the device that raises when it is asked for a value."""
    for layer in model:
        for name, old in list(getattr(layer, "_parameters", {}).items()):
            new = layer._parameters[name] = nn.Parameter(old.to("meta"))
            for key, value in optimizer.state.pop(old, {}).items():  # made with the optimizer
                optimizer.state[new][key] = value.to("meta") if value.ndim else value
            for group in optimizer.param_groups:
                group["params"] = [new if one is old else one for one in group["params"]]
    for packed in getattr(optimizer._storage, "packed", {}).values():
        packed.index = packed.index.to("meta")
        packed.values = nn.Parameter(packed.values.to("meta"))
    for layer in optimizer._layers:
        layer.index = None if layer.index is None else layer.index.to("meta")


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("storage", ["masked", "compact"])
@pytest.mark.parametrize("inner", WITHOUT_QUESTIONS)
def test_a_step_asks_nothing_of_another_device(inner: str, storage: str, closure: bool):
    model = mlp()
    optimizer = sparse(model, inner_named(inner), "rigl", storage=storage, update_every=9)
    take_steps(model, optimizer, closure)


@pytest.mark.parametrize("recipe", [*RECIPES, *MORE_RECIPES, PER_ELEMENT], ids=str)
def test_a_step_of_no_recipe_asks_anything_of_another_device(recipe: Recipe):
    model = mlp()
    optimizer = sparse(model, inner_named("adamw"), recipe, storage="masked", update_every=9)
    take_steps(model, optimizer)


def take_steps(model: nn.Module, optimizer: SparseOptimizer, closure: bool = False) -> None:
    to_meta(model, optimizer)
    inputs = torch.empty(4, 6, device="meta", dtype=torch.float64)

    def evaluate():
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(3):
        if closure:
            optimizer.step(evaluate)
        else:
            evaluate()
            optimizer.step()
    assert optimizer.steps == 3
    assert all(weight.device.type == "meta" for weight in model.parameters())


def test_weights_on_another_device_are_masked_in_every_step():
    """Nobody could say whether they were written through ``.data``, without waiting for it."""
    model = mlp()
    optimizer = sparse(model, inner_named("sgd"), storage="masked")
    to_meta(model, optimizer)
    optimizer._bind()
    layer = optimizer._layers[0]
    optimizer._storage.note_clean(layer)
    layer.weight.grad = torch.empty_like(layer.weight)
    assert not optimizer._storage.is_clean(layer)


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_a_step_leaves_weights_without_gradients_to_a_waiting_backward_pass(storage: str):
    model = nn.ModuleList([mlp(seed=seed) for seed in range(3)])
    optimizer = sparse(model, inner_named("sgd"), storage=storage, update_every=9)
    for part in model:
        to_meta(part, optimizer)
    inputs = torch.empty(4, 6, device="meta", dtype=torch.float64)

    def losses():
        optimizer.zero_grad()
        seen = model[0](inputs)
        return [part(torch.cat([seen, seen[:, :1]], 1)).sum() for part in model[1:]]

    sum(losses()).backward()
    optimizer.step()  # masks all of them: they were moved
    one, other = losses()
    one.backward(inputs=[*model[1].parameters()])
    optimizer.step()
    other.backward(inputs=[*model[2].parameters()])
    optimizer.step()


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("algo", ["rigl", "snfs", "mest_g"])
def test_growth_is_the_same_where_scales_are_not_compared(algo, clip, monkeypatch):
    runs = []
    for compare in (True, False):
        if not compare:  # as on other devices
            monkeypatch.setattr("sparseopt.windows.is_here", lambda _: False)
        model = mlp()
        optimizer = sparse(model, inner_named("sgd"), algo, storage="masked")
        train(model, optimizer, 12, clip=clip)
        runs.append((model, optimizer))
    assert optimizer.updates > 2
    assert_agree(*runs)


# --- CUDA graphs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("grown_state", ["zero", "mean", "per_element_step"])
@pytest.mark.parametrize("algo", ["set", "rigl"])
def test_compact_storage_keeps_its_memory_through_updates(algo, grown_state, monkeypatch):
    """Compiled steps know values and state; CUDA graphs know positions, too."""
    runs = []
    for kept in ("nothing", "values", "positions"):
        with monkeypatch.context() as patch:
            if kept == "nothing":
                patch.setattr(Packed, "has_room", lambda *_: False)
            if kept == "positions":  # as on a GPU
                patch.setattr(Packed, "placed", lambda packed, index: packed.index.copy_(index))
            model = mlp()
            recipe = Recipe(algo, {"grown_state": grown_state})
            optimizer = sparse(model, inner_named("adamw"), recipe, storage="compact")
            train(model, optimizer, 2)
            values, positions = memory_of(optimizer)
            train(model, optimizer, 10, first=2)
        assert optimizer.updates > 2
        now = memory_of(optimizer)
        assert same_memory(values, now[0]) == (kept != "nothing")
        assert same_memory(positions, now[1]) == (kept == "positions")
        runs.append((model, optimizer))
    assert_agree(runs[0], runs[1])
    assert_agree(runs[0], runs[2])


def memory_of(optimizer: SparseOptimizer) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Active values and state of the sparse layers, and positions; kept, so that none is freed."""
    held = [(layer, optimizer._storage.packed[layer.key]) for layer in optimizer._layers]
    values: list[torch.Tensor] = [packed.values for _, packed in held]
    for name in ("exp_avg", "exp_avg_sq"):
        values += [optimizer.state[layer.weight][name] for layer, _ in held]
    return values, [packed.index for _, packed in held]


def same_memory(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return [one.data_ptr() for one in ones] == [one.data_ptr() for one in others]


def test_a_captured_step_with_an_update_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    on_cuda, elsewhere = (
        SimpleNamespace(layers=[SimpleNamespace(mask=SimpleNamespace(is_cuda=cuda))])
        for cuda in (True, False)
    )
    check_capture([elsewhere])
    with pytest.raises(RuntimeError, match="capture a step without one"):
        check_capture([elsewhere, on_cuda])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_a_captured_step_follows_the_topology(storage: str):
    ends = []
    for captured in (False, True):
        model = mlp((64, 48, 8), dtype=torch.float32).cuda()
        inner = torch.optim.AdamW(model.parameters(), lr=1e-2, capturable=True)
        optimizer = sparse(
            model, inner, "set", storage=storage, total_steps=None, update_every=10**6
        )
        inputs = torch.linspace(-1, 1, 16 * 64, device="cuda").view(16, 64)

        def step(model=model, optimizer=optimizer, inputs=inputs):
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()

        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                step()
        for number in range(3):
            for _ in range(4):
                graph.replay() if captured else step()
            optimizer._run.steps = number  # graphs do not count, and growth is drawn by the step
            optimizer.update_topology()
        ends.append([p.detach().clone() for p in model.parameters()])
        for name, mask in optimizer.masks.items():
            assert not bool(model.get_parameter(name)[~mask].any())
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other)
