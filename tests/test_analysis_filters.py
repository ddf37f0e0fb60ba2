"""Counts and sums per filter and kernel are those of a loop over single weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseopt.analysis import filters

shapes = st.lists(st.integers(1, 4), min_size=2, max_size=5)


@settings(max_examples=50, deadline=None)
@given(shapes, st.integers(0, 1000))
def test_summaries_equal_a_loop_over_weights(shape, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    weight *= torch.rand(shape, generator=generator) < 0.5
    got = filters(weight)
    for o in range(shape[0]):
        total = 0.0
        for i in range(shape[1]):
            kernel = weight[o, i].flatten().tolist()
            assert got.kernel_nonzero[o, i] == sum(value != 0 for value in kernel)
            assert float(got.kernel_magnitude[o, i]) == pytest.approx(sum(map(abs, kernel)))
            total += sum(map(abs, kernel))
        assert got.filter_nonzero[o] == torch.count_nonzero(weight[o])
        assert float(got.filter_magnitude[o]) == pytest.approx(total)


def test_counts_are_integers_and_nothing_needs_gradients():
    summary = filters(nn.Conv2d(3, 5, 3))
    assert summary.filter_nonzero.dtype == torch.int64
    assert summary.filter_nonzero.tolist() == [27] * 5
    assert not any(tensor.requires_grad for tensor in summary)


def test_a_layer_can_be_given_instead_of_its_weight():
    layer = nn.Linear(4, 2)
    for a, b in zip(filters(layer), filters(layer.weight), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 0), (0, 3), (3, 2, 0, 5)])
def test_a_layer_without_weights_has_empty_filters(shape):
    summary = filters(torch.zeros(shape))
    assert summary.filter_nonzero.tolist() == [0] * shape[0]
    assert summary.kernel_magnitude.shape == shape[:2] and not summary.kernel_magnitude.any()


def test_what_has_no_filters_is_refused():
    with pytest.raises(ValueError, match=r"\(3,\) has no filters"):
        filters(torch.zeros(3))
    with pytest.raises(TypeError, match="ReLU"):
        filters(nn.ReLU())
    with pytest.raises(TypeError, match="list"):
        filters([[1.0]])


def test_one_column_of_points_is_drawn_per_network():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    from sparseopt.analysis.plotting import plot_filters

    summary = filters(torch.ones(4, 3, 3, 3))
    axes = plot_filters({"dense": summary, "SET": summary})
    assert axes.shape == (2, 2) and axes[0][1].lines[0].get_ydata().tolist() == [27] * 4
    pyplot.close("all")
