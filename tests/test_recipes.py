"""What holds of every recipe: counts, zeros, resume; the table, the pages, the options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still, assert_same, assert_zeros, numbers
from hypothesis import HealthCheck, given, settings
from torch import nn

import sparseopt
from sparseopt import SparseOptimizer, algorithms, topologies
from sparseopt.algorithms import Algorithm

pytestmark = pytest.mark.filterwarnings("ignore:the density leaves no weight:UserWarning")

CHAIN = [["0.weight", "1.weight"]]
CASES: list[tuple[str, dict[str, Any]]] = [
    ("static", {}),
    ("set", {}),
    ("rigl", {}),
    ("snfs", {}),
    ("snfs", {"rounding": "ceil", "regrow_same": "forbid"}),
    ("mest_r", {}),
    ("mest_r", {"bound": 0.5, "gradient_weight": 0.0, "distribution": "uniform"}),
    ("mest_g", {}),
    ("mest_g", {"variant": "em", "bound": 0.3}),
    ("mest_g", {"drop": "fraction", "drop_fraction": 0.5, "regrow_same": "forbid"}),
    ("granet_r", {"drop_fraction": 0.4}),
    ("granet_g", {"distribution": "uniform", "stop": 0.75}),
    ("granet_g", {"initial_density": 1.0, "start": 0.2, "window": 0.3, "regrow_same": "reset"}),
    ("gmp", {}),
    ("gmp", {"scope": "global"}),
    ("acdc", {}),
    ("acdc", {"warmup": 0.2, "sparse": 0.2, "dense": 0.1, "final_dense_start": None,
              "scope": "layer"}),
    ("cht", {"grow": "ch2_l3n"}),
    ("cht", {"soft": True, "chains": CHAIN}),
    ("chts", {"chains": CHAIN, "early_stop": None}),
    ("chts", {"regrow_same": "forbid", "chains": CHAIN, "delta": (0.5, 0.9)}),
    ("chtss", {}),
    ("srigl", {"drop_fraction": 0.5}),
    ("srigl", {"regrow_same": "forbid", "ablate": False, "fan_in": "sparse"}),
    ("nm", {"n": 1, "m": 2, "drop_fraction": 0.5}),
    ("nm", {"n": 2, "m": 4, "regrow_same": "forbid"}),
]  # fmt: skip
every_case = pytest.mark.parametrize(
    ("algo", "options"), CASES, ids=[f"{algo}-{i}" for i, (algo, _) in enumerate(CASES)]
)
SHAPES = [(8, 8), (8, 8), (6, 8)]


def network(shapes: list[tuple[int, ...]], seed: int = 0) -> nn.ModuleList:
    """Layers of these shapes, outputs first; weights of one private stream."""
    source = torch.Generator().manual_seed(seed)
    layers = nn.ModuleList()
    for shape in shapes:
        kind = nn.Linear if len(shape) == 2 else nn.Conv2d
        kernel = shape[2:] and (shape[2:],)
        layers.append(kind(shape[1], shape[0], *kernel, bias=False))
    with torch.no_grad():
        for p in layers.parameters():
            p.copy_(torch.randn(p.shape, generator=source))
    return layers


def walk(model: nn.Module, optimizer: SparseOptimizer, first: int, last: int) -> None:
    """Steps with gradients that depend on the step alone."""
    for step in range(first, last):
        source = torch.Generator().manual_seed(step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=source).to(p.dtype)
        optimizer.step()


def sparse(model: nn.Module, algo: str, options: dict[str, Any], **more: Any) -> SparseOptimizer:
    inner = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=0.01)
    given = {"total_steps": 40, "update_every": 4, "model": model}
    sparsity = {} if algo == "nm" else {"sparsity": 0.7}
    return SparseOptimizer(inner, algo, **given | sparsity | options | more)


# --- the counts, from the formulas of the papers --------------------------------------------------


def expected_density(algorithm: Algorithm, algo: str, options: dict[str, Any], p: float) -> float:
    """The density at progress ``p``, written out once more."""
    target = 1.0 - algorithm.sparsity
    if algo.startswith("mest") and options.get("variant") != "em":
        return target * (1.0 + options.get("bound", 0.1) * (1.0 - p) ** 0.01)
    if algo.startswith("granet") or algo == "gmp":
        initial = options.get("initial_density", 1.0 if algo == "gmp" else 0.8)
        if initial <= target:
            initial = (1.0 + target) / 2.0
        done = (p - options.get("start", 0.0)) / options.get("window", 0.5)
        return target + (initial - target) * (1.0 - min(1.0, max(0.0, done))) ** 3
    if algo == "chtss":
        x = min(1.0, p / 0.75)
        initial = 0.5 if target < 0.5 else (1.0 + target) / 2.0

        def sigma(z: float) -> float:
            return 1.0 / (1.0 + math.exp(-z))

        done = (sigma(6 * (2 * x - 1)) - 0.5) / (sigma(6) - sigma(-6)) + 0.5
        return initial + (target - initial) * done
    return target


def expected_total(
    optimizer: SparseOptimizer, algo: str, options: dict[str, Any], updated: int
) -> int:
    """Active weights after the last update, which was made at step ``updated``."""
    algorithm, total = optimizer.algorithm, optimizer.total_steps
    size = sum(layer.numel for layer in optimizer.layers)
    last = algorithm.last_step(total, optimizer.update_every)
    progress = 1.0 if algorithm.ramps and updated >= last else updated / total
    density = expected_density(algorithm, algo, options, progress)
    return min(size, max(len(optimizer.layers), math.floor(density * size + 0.5 + 1e-9)))


FIXED_TOTAL = [case for case in CASES if case[0] not in ("acdc", "srigl", "nm")]
shapes_drawn = st.lists(st.tuples(st.integers(4, 9), st.integers(4, 9)), min_size=1, max_size=3)


@pytest.mark.parametrize(
    ("algo", "options"), FIXED_TOTAL, ids=[f"{a}-{i}" for i, (a, _) in enumerate(FIXED_TOTAL)]
)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shapes=shapes_drawn,
    sparsity=st.sampled_from([0.25, 0.5, 0.7, 0.9]),
    every=st.integers(1, 5),
    length=st.integers(20, 45),
)
def test_the_total_is_exactly_what_the_formula_says_at_every_step(
    algo: str, options: dict[str, Any], shapes: Any, sparsity: float, every: int, length: int
) -> None:
    if "chains" in options:
        shapes = [(6, 5), (7, 6), *shapes[:1]]
    model = network(shapes)
    given = {"sparsity": sparsity, "update_every": every, "total_steps": length}
    optimizer = sparse(model, algo, options, **given)
    before = sum(numbers(optimizer))
    for step in range(length):
        walk(model, optimizer, step, step + 1)
        updated = optimizer.history[-1].step if optimizer.history else 0
        now = sum(numbers(optimizer))
        assert now == expected_total(optimizer, algo, options, updated), step
        assert min(numbers(optimizer)) >= 1
        assert now <= before or algo.startswith("mest")  # densities fall, or stay
        before = now
    assert_zeros(optimizer)
    size = sum(layer.numel for layer in optimizer.layers)
    wanted = max(len(shapes), math.floor((1 - sparsity) * size + 0.5 + 1e-9))
    assert sum(numbers(optimizer)) == wanted


CONSTANT = ["static", "set", "rigl", "cht", "chts"]


@every_case
def test_layers_keep_their_counts_where_the_density_is_constant(
    algo: str, options: dict[str, Any]
) -> None:
    model = network(SHAPES)
    optimizer = sparse(model, algo, options)
    before = numbers(optimizer)
    walk(model, optimizer, 0, 40)
    if algo in CONSTANT or algo == "nm" or options.get("variant") == "em":
        assert numbers(optimizer) == before


@every_case
def test_inactive_weights_and_their_state_are_zero_at_every_step(
    algo: str, options: dict[str, Any]
) -> None:
    model = network(SHAPES)
    optimizer = sparse(model, algo, options, storage="masked")
    for step in range(40):
        walk(model, optimizer, step, step + 1)
        assert_zeros(optimizer)
        for layer in optimizer.layers:
            buffer = optimizer.inner.state.get(layer.weight, {}).get("momentum_buffer")
            assert buffer is None or (buffer[~layer.mask] == 0).all()


@every_case
def test_a_run_resumed_in_the_middle_of_any_phase_is_bit_equal(
    algo: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model = network(SHAPES)
    optimizer = sparse(model, algo, options, seed=3)
    saved = []
    for step in range(40):
        if step % 3 == 1:
            path = tmp_path / f"{step}.pt"
            torch.save([model.state_dict(), optimizer.state_dict()], path)
            saved.append((step, path))
        walk(model, optimizer, step, step + 1)
    for step, path in saved:
        other = network(SHAPES, seed=9)
        resumed = sparse(other, algo, options, seed=11)
        weights, state = torch.load(path, weights_only=True)
        other.load_state_dict(weights)
        resumed.load_state_dict(state)
        walk(other, resumed, step, 40)
        assert_same(dict(other.state_dict()), dict(model.state_dict()), f"from {step}")
        assert_same(resumed.state_dict(), optimizer.state_dict(), f"from {step}")


@every_case
def test_grown_weights_start_at_zero_and_kept_ones_are_untouched(
    algo: str, options: dict[str, Any]
) -> None:
    model = network(SHAPES)
    optimizer = sparse(model, algo, options)
    optimizer = SparseOptimizer(
        Still(model.parameters()), optimizer.algorithm,
        model=model, total_steps=40, update_every=4,
    )  # fmt: skip
    for step in range(40):
        before = {
            layer.name: (layer.weight.detach().clone(), layer.mask.clone())
            for layer in optimizer.layers
        }
        walk(model, optimizer, step, step + 1)
        for layer in optimizer.layers:
            weight, mask = before[layer.name]
            fresh = layer.mask & ~mask
            assert (layer.weight.detach()[fresh] == 0).all()
            kept = layer.mask & mask
            now = layer.weight.detach()[kept]
            reset = options.get("regrow_same") == "reset" or algo.startswith("granet")
            assert torch.equal(now, weight[kept]) or (
                reset and ((now == weight[kept]) | (now == 0)).all()
            )


@every_case
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_masked_and_compact_storage_agree(
    algo: str, options: dict[str, Any], sparsity: float
) -> None:
    ends = []
    given = {} if algo == "nm" else {"sparsity": sparsity}
    for storage in ("masked", "compact"):
        model = network(SHAPES).double()
        optimizer = sparse(model, algo, options, storage=storage, **given)
        walk(model, optimizer, 0, 40)
        ends.append((dict(model.state_dict()), optimizer.masks))
    (weights, masks), (others, other_masks) = ends
    for name, mask in masks.items():
        assert torch.equal(mask, other_masks[name])
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-12)


@every_case
def test_the_global_random_stream_is_left_alone(algo: str, options: dict[str, Any]) -> None:
    model = network(SHAPES)
    torch.manual_seed(5)
    expected = torch.get_rng_state()
    walk(model, sparse(model, algo, options), 0, 12)
    assert torch.equal(torch.get_rng_state(), expected)


@pytest.mark.parametrize("algo", ["granet_g", "gmp", "acdc"])
def test_a_global_ranking_never_empties_a_layer(algo: str) -> None:
    model = network([(10, 10), (10, 10), (10, 10)])
    with torch.no_grad():
        model[1].weight.mul_(1e-6)
    optimizer = sparse(model, algo, {"scope": "global"}, sparsity=0.95)
    walk(model, optimizer, 0, 40)
    assert min(numbers(optimizer)) >= 1
    assert sum(numbers(optimizer)) == 15


@every_case
def test_two_replicas_with_equal_gradients_have_equal_masks(
    algo: str, options: dict[str, Any]
) -> None:
    ends = []
    for _ in range(2):
        model = network(SHAPES)
        optimizer = sparse(model, algo, options)
        walk(model, optimizer, 0, 40)
        ends.append(optimizer.masks)
    assert_same(*ends)


@pytest.mark.parametrize("algo", ["mest_r", "mest_g", "granet_r", "granet_g", "gmp", "chtss"])
def test_an_update_interval_without_an_update_before_the_end_is_refused(algo: str) -> None:
    model = network(SHAPES)
    with pytest.raises(ValueError, match="update_every=100"):
        sparse(model, algo, {}, total_steps=40, update_every=100)
    if not algo.startswith("mest"):  # 35 comes after the window, before the end
        with pytest.raises(ValueError, match="update_every=35"):
            sparse(model, algo, {}, total_steps=40, update_every=35)


@pytest.mark.parametrize(
    "algo", ["mest_r", "mest_g", "granet_r", "granet_g", "gmp", "chtss", "acdc"]
)
def test_densities_that_change_ask_for_the_length_of_training(algo: str) -> None:
    model = network(SHAPES)
    with pytest.raises(ValueError, match="total_steps"):
        sparse(model, algo, {}, total_steps=None)


@pytest.mark.parametrize("algo", ["granet_r", "granet_g", "gmp", "chtss"])
@pytest.mark.parametrize("bad", [0.2, 1.5, -1.0])
def test_an_initial_density_outside_target_and_one_is_refused(algo: str, bad: float) -> None:
    with pytest.raises(ValueError, match="initial_density"):
        getattr(algorithms, algo)(0.7, initial_density=bad)
    with pytest.raises(ValueError, match="window"):
        getattr(algorithms, algo)(0.7, window=1.5)
    with pytest.raises(TypeError, match="initial_density"):
        getattr(algorithms, algo)(0.7, initial_density="high")


# --- the registry ---------------------------------------------------------------------------------

NAMES = [
    "static", "set", "rigl", "snfs", "gmp", "mest_r", "mest_g", "granet_r", "granet_g", "cht",
    "chts", "chtss", "acdc", "srigl", "nm",
]  # fmt: skip


def test_all_recipes_of_the_design_are_there() -> None:
    assert sorted(NAMES) == sparseopt.available()
    assert {algo for algo, _ in CASES} == {*NAMES}


def test_mest_over_all_layers_keeps_the_total() -> None:
    model = network([(10, 10), (10, 10)])
    optimizer = sparse(model, "mest_g", {"scope": "global", "bound": 0.5})
    walk(model, optimizer, 0, 40)
    assert sum(numbers(optimizer)) == 60 and numbers(optimizer) != [30, 30]
    assert optimizer.history[0].dropped == 30


def test_topologies_by_name_start_every_recipe_that_takes_one() -> None:
    for topology in ("random", "magnitude", "bsw", "brf"):
        for algo in ("set", "snfs", "mest_r", "granet_g", "cht", "chtss"):
            model = network(SHAPES)
            assert sparse(model, algo, {"topology": topology}).density > 0.25
    assert "bsw" in topologies.available()
