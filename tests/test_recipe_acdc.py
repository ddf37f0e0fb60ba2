"""AC/DC: the phases, exact global pruning, and what a dense phase is."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still
from hypothesis import assume, given, settings
from torch import nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import acdc


def letters(epochs: int, **options: Any) -> str:
    density = acdc(0.9, **options).density
    return "".join("D" if density(epoch / epochs) == 1.0 else "S" for epoch in range(epochs))


def test_golden_phases_of_the_papers_imagenet_schedule() -> None:
    phases = letters(100)
    assert phases == "D" * 10 + ("S" * 5 + "D" * 5) * 6 + "S" * 5 + "D" * 10 + "S" * 15
    assert phases.count("D") == phases.count("S") == 50
    density = acdc(0.9).density
    assert sum(density(epoch / 100) for epoch in range(100)) / 100 == pytest.approx(0.55)


def test_golden_phases_of_the_papers_cifar_schedule() -> None:
    phases = letters(200, warmup=0.05, sparse=0.1, dense=0.1)
    assert phases.count("D") == 90 and phases.count("S") == 110
    starts = [epoch for epoch in range(1, 200) if phases[epoch] != phases[epoch - 1]]
    assert starts == [10, 30, 50, 70, 90, 110, 130, 150, 170]


def test_phases_in_steps_are_those_in_fractions() -> None:
    steps = acdc(0.9, warmup=20, sparse=10, dense=10, final_dense_start=150,
                 final_sparse_start=170, total_steps=200)  # fmt: skip
    assert steps.density.events(200) == acdc(0.9).density.events(200)


def train(optimizer: SparseOptimizer, weights: list[nn.Parameter], first: int, last: int) -> None:
    for step in range(first, last):
        for weight in weights:
            source = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(weight.shape, generator=source)
        optimizer.step()


def weights_of(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    return [
        nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        for seed, shape in enumerate(shapes)
    ]


@given(
    warmup=st.integers(1, 8),
    sparse=st.integers(1, 6),
    dense=st.integers(1, 6),
    last_dense=st.integers(0, 6),
    length=st.integers(12, 50),
    sparsity=st.sampled_from([0.5, 0.9]),
)
@settings(max_examples=40, deadline=None)
def test_counts_are_exact_in_sparse_phases_and_nothing_is_masked_in_dense_ones(
    warmup: int, sparse: int, dense: int, last_dense: int, length: int, sparsity: float
) -> None:
    final_sparse = length - 3
    final_dense = final_sparse - last_dense if last_dense else None
    before = final_dense if final_dense is not None else final_sparse
    assume(warmup + sparse + (final_dense is None) <= before)
    weights = weights_of((6, 7), (5, 8))
    optimizer = SparseOptimizer(
        torch.optim.SGD(weights, lr=0.1, momentum=0.9), "acdc", sparsity=sparsity,
        total_steps=length, update_every=1000, warmup=warmup, sparse=sparse, dense=dense,
        final_dense_start=final_dense, final_sparse_start=final_sparse,
    )  # fmt: skip
    # the phases, step by step: sparse turns as long as they fit
    phase = ["D"] * length
    at = warmup
    while at + sparse + (final_dense is None) <= before:
        phase[at : at + sparse] = "S" * sparse
        at += sparse + dense
    phase[final_sparse:] = "S" * (length - final_sparse)
    k = math.floor((1 - sparsity) * 82 + 0.5)
    for step in range(length - 1):
        train(optimizer, weights, step, step + 1)
        active = sum(int(mask.sum()) for mask in optimizer.masks.values())
        assert active == (82 if phase[step + 1] == "D" else k), step
        zeros = sum(int((weight == 0).sum()) for weight in weights)
        assert zeros == 82 - active or phase[step + 1] == "D"


def run_to(step: int, **options: Any) -> tuple[list[nn.Parameter], SparseOptimizer]:
    weights = weights_of((6, 6), (4, 6))
    optimizer = SparseOptimizer(
        torch.optim.AdamW(weights, lr=0.1), "acdc", sparsity=0.5, total_steps=100, **options
    )
    train(optimizer, weights, 0, step)
    return weights, optimizer


def test_compression_keeps_the_largest_weights_of_the_whole_network() -> None:
    _, optimizer = run_to(10)
    values = torch.cat([layer.weight.detach().flatten() for layer in optimizer.layers])
    assert int((values != 0).sum()) == 30
    others, late = run_to(10, warmup=0.2)  # the same ten steps, not yet compressed
    whole = torch.cat([weight.detach().flatten() for weight in others])
    threshold = whole.abs().sort(descending=True).values[29]
    assert torch.equal(values != 0, whole.abs() >= threshold)
    assert torch.equal(values[values != 0], whole[values != 0])
    assert late.density == 1.0


def test_pruned_weights_come_back_at_zero_with_no_optimizer_state() -> None:
    weights, optimizer = run_to(14)
    masks = {name: mask.clone() for name, mask in optimizer.masks.items()}
    train(optimizer, weights, 14, 15)
    assert optimizer.density == 1.0
    for layer in optimizer.layers:
        assert (layer.weight[~masks[layer.name]] == 0).all()
        assert (layer.weight[masks[layer.name]] != 0).all()
    assert len(optimizer.state) == 0
    train(optimizer, weights, 15, 16)
    assert all((layer.weight != 0).all() for layer in optimizer.layers)


@pytest.mark.parametrize("storage", ["masked", "compact"])
def test_adagrad_which_may_make_its_state_only_once_starts_again_too(storage: str) -> None:
    weights = weights_of((6, 6), (4, 6))
    inner = torch.optim.Adagrad(weights, lr=0.1, initial_accumulator_value=0.5)
    optimizer = SparseOptimizer(inner, "acdc", sparsity=0.5, total_steps=100, storage=storage)
    train(optimizer, weights, 0, 15)
    assert optimizer.density == 1.0
    for entry in optimizer.state_dict()["state"].values():
        assert (entry["sum"] == 0.5).all() and entry["step"] == 0
    train(optimizer, weights, 15, 30)


def test_state_is_kept_at_decompression_where_that_is_asked_for() -> None:
    _, optimizer = run_to(15, reset_state=False)
    assert optimizer.density == 1.0 and len(optimizer.state) == 2


def test_dense_phases_train_like_the_inner_optimizer_alone() -> None:
    weights, _ = run_to(9)
    plain = weights_of((6, 6), (4, 6))
    inner = torch.optim.AdamW(plain, lr=0.1)
    for step in range(9):
        for weight in plain:
            weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        inner.step()
    for one, other in zip(weights, plain, strict=True):
        assert torch.equal(one, other)


def test_the_dense_model_before_the_last_compression_can_be_kept() -> None:
    _, optimizer = run_to(86, keep_dense=True)
    kept = optimizer.dense_parameters
    others, dense = run_to(84, keep_dense=True)
    train(dense, others, 84, 85)
    assert len(kept) == 2 and all((value != 0).all() for value in kept.values())
    for layer in optimizer.layers:
        active = layer.mask
        assert kept[layer.name].shape == layer.shape
        before = kept[layer.name][active].abs().min()
        assert before > 0
    assert run_to(86)[1].dense_parameters == {}


def test_scope_layer_prunes_every_layer_to_its_share() -> None:
    weights = weights_of((10, 10), (10, 10))
    with torch.no_grad():
        weights[0].mul_(100)
    optimizer = SparseOptimizer(
        Still(weights), "acdc", sparsity=0.8, total_steps=20, scope="layer",
        distribution="uniform", sparse=0.1, dense=0.1,
    )  # fmt: skip
    for _ in range(20):
        optimizer.step()
    assert [layer.nnz for layer in optimizer.layers] == [20, 20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_sparse_start": 0.7}, "final_dense_start=0.75 must come before final_sparse"),
        ({"final_sparse_start": 0.75}, "overlap"),
        ({"final_sparse_start": 1.0}, "final_sparse_start=1.0 must lie within training"),
        ({"warmup": 0.8}, "overlap.*warmup=0.8"),
        ({"sparse": 0.7}, "overlap.*sparse=0.7"),
        ({"warmup": 0.0}, "warmup=0.0"),
        ({"dense": -0.1}, "dense=-0.1"),
        ({"sparse": 10}, "total_steps"),
        ({"warmup": 300, "total_steps": 200}, "warmup=300"),
        ({"total_steps": 10}, "total_steps=10 leaves no optimizer step"),
    ],
)
def test_phases_that_overlap_or_end_dense_are_refused(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        acdc(0.9, **options)


@pytest.mark.parametrize("name", ["warmup", "sparse", "dense", "final_sparse_start"])
@pytest.mark.parametrize("wrong", [None, "0.1", True])
def test_lengths_that_are_no_numbers_are_refused(name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"{name}="):
        acdc(0.9, **{name: wrong})


def test_without_a_longer_dense_phase_the_turns_go_on_to_the_end() -> None:
    phases = letters(100, final_dense_start=None)
    assert phases == "D" * 10 + ("S" * 5 + "D" * 5) * 7 + "D" * 5 + "S" * 15
