"""SRigL and N:M: equal rows, exact groups, and the updates that keep them so."""

from __future__ import annotations

import itertools
import math
import warnings
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still, assert_zeros
from hypothesis import given, settings
from references_recipes import nm as nm_reference
from references_recipes import srigl as srigl_reference
from torch import Tensor, nn

from sparseopt import SparseOptimizer
from sparseopt.algorithms import nm, srigl
from sparseopt.algorithms.n_of_m import Groups
from sparseopt.algorithms.rows import top_in_rows
from sparseopt.distributions import erk
from sparseopt.layers import Layer
from sparseopt.scores import Context
from sparseopt.update import Levels, plan


def layer_of(w: Tensor, g: Tensor, mask: Tensor, name: str = "fc", place: int = 0) -> Layer:
    layer = Layer(name, (w * mask).float(), (0, place))
    layer.gradient = g.float()
    layer.set_mask(mask)
    return layer


# --- SRigL ----------------------------------------------------------------------------------------


def golden_layer() -> Layer:
    w = torch.tensor([[0.9, 0.8, 0.0, 0.0], [0.1, 0.05, 0.0, 0.0], [0.0, 0.0, 0.7, 0.6]])
    g = torch.zeros(3, 4)
    g[0, 2], g[2, 0] = 0.5, 0.9
    return layer_of(w, g, w != 0)


def test_golden_update_ablates_the_row_without_salient_weights() -> None:
    (change,) = plan([golden_layer()], srigl(0.5), Levels(0.5, None, 1 / 3), Context())
    assert change.mask.int().tolist() == [[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]


def test_without_ablation_every_row_keeps_its_fan_in() -> None:
    (change,) = plan(
        [golden_layer()], srigl(0.5, ablate=False), Levels(0.5, None, 1 / 3), Context()
    )
    assert change.mask.sum(1).tolist() == [2, 2, 2]


def test_the_last_layer_loses_no_neuron() -> None:
    first, last = golden_layer(), golden_layer()
    last.name, last.key = "head", (0, 1)
    levels = Levels(0.5, None, 1 / 3)
    one, two = plan([first, last], srigl(0.5, distribution="uniform"), levels, Context())
    assert one.mask.sum(1).tolist() == [3, 0, 3]
    assert two.mask.sum(1).tolist() == [2, 2, 2]


@given(data=st.data(), rows=st.integers(2, 6), width=st.integers(2, 7))
@settings(max_examples=100)
def test_a_constant_fan_in_update_is_that_of_the_literal_reference(
    data: Any, rows: int, width: int
) -> None:
    fan_in = data.draw(st.integers(1, width - 1))
    seed = data.draw(st.integers(0, 10**6))
    source = torch.Generator().manual_seed(seed)
    w = torch.randint(-4, 5, (rows, width), generator=source).double()
    g = torch.randint(-4, 5, (rows, width), generator=source).double()
    mask = top_in_rows(torch.rand(rows, width, generator=source), fan_in)
    gamma, fraction = (
        data.draw(st.sampled_from([0.1, 0.3, 0.9])),
        data.draw(st.sampled_from([0.1, 0.3, 0.5])),
    )
    density = fan_in / width
    drop = math.floor(fraction * rows * fan_in + 1e-9)
    layer = layer_of(w, g, mask)
    algorithm = srigl(1 - density, gamma=gamma, distribution="uniform")
    (change,) = plan([layer], algorithm, Levels(density, None, fraction), Context())
    if not drop:
        assert torch.equal(change.mask, mask)
        return
    budget = math.floor(density * rows * width + 0.5)
    flat = (w * mask).flatten().tolist()
    expected = srigl_reference(
        flat, g.flatten().tolist(), mask.flatten().tolist(), width, budget, drop, gamma
    )
    assert change.mask.flatten().tolist() == expected


def assert_equal_rows(layer: Layer, budget: int) -> None:
    counts = layer.mask.flatten(1).sum(1)
    assert counts[counts > 0].unique().numel() == 1
    assert 0 < layer.nnz <= budget
    width = layer.numel // layer.shape[0]
    active = int((counts > 0).sum())
    assert layer.nnz == active * min(budget // active, width)


@pytest.mark.filterwarnings("ignore:the density leaves no weight:UserWarning")
@pytest.mark.parametrize("options", [{}, {"gamma": 0.9}, {"regrow_same": "forbid"}])
@pytest.mark.parametrize("size", [0.0, 1.0], ids=["no gradients", "gradients"])
@given(
    shapes=st.lists(st.tuples(st.integers(2, 8), st.integers(2, 8)), min_size=1, max_size=3),
    sparsity=st.sampled_from([0.3, 0.5, 0.9, 0.97]),
    every=st.integers(1, 4),
)
@settings(max_examples=25)
def test_active_rows_have_equal_fan_in_at_every_step(
    options: dict[str, Any], size: float, shapes: Any, sparsity: float, every: int
) -> None:
    weights = [nn.Parameter(torch.randn(*shape)) for shape in shapes]
    optimizer = SparseOptimizer(
        torch.optim.SGD(weights, lr=0.1), "srigl", sparsity=sparsity, update_every=every,
        total_steps=20, drop_fraction=0.5, **options,
    )  # fmt: skip
    budgets = erk(shapes, sparsity)
    for step in range(20):
        for weight in weights:
            source = torch.Generator().manual_seed(step)
            weight.grad = size * torch.randn(weight.shape, generator=source)
        optimizer.step()
        assert_zeros(optimizer)
        for layer, budget in zip(optimizer.layers, budgets, strict=True):
            assert_equal_rows(layer, budget)


def test_an_ablated_neuron_comes_back_for_its_gradient() -> None:
    layer = golden_layer()
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 1, 1]]).bool()
    w = torch.tensor([[0.9, 0.8, 0.3, 0.0], [0.0] * 4, [0.2, 0.0, 0.7, 0.6]])
    g = torch.zeros(3, 4)
    g[1] = 5.0
    layer = layer_of(w, g, mask)
    (change,) = plan([layer], srigl(0.5), Levels(0.5, None, 1 / 3), Context())
    assert change.mask.sum(1).tolist() == [2, 2, 2]


def test_convolutions_have_rows_of_all_inputs_and_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    optimizer = SparseOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1), "srigl", sparsity=0.8, model=model
    )
    counts = optimizer.layers[0].mask.flatten(1).sum(1)
    assert counts.unique().numel() == 1 and counts[0] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gamma": 1.5}, "gamma=1.5"),
        ({"gamma": -1}, "gamma=-1"),
        ({"fan_in": "few"}, "fan_in='few'"),
    ],
)
def test_bad_input_of_srigl_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        srigl(0.5, **options)


# --- N:M ------------------------------------------------------------------------------------------


def test_golden_two_of_four() -> None:
    w = torch.tensor([0.1, 0.9, -0.5, 0.2, 0.3, -0.3, 0.3, 0.05])
    groups = Groups(2, 4).grouped(w.view(1, 8))
    assert top_in_rows(groups.abs(), 2).int().flatten().tolist() == [0, 1, 1, 0, 1, 1, 0, 0]


def groups_of(shape: tuple[int, ...], m: int) -> list[list[int]]:
    """Flat positions of each group: m input channels of one output and one place."""
    where = torch.arange(math.prod(shape)).view(shape)
    outputs, inputs, *kernel = shape
    places = [*itertools.product(*map(range, kernel))]
    return [
        [int(where[(o, i + j, *place)]) for j in range(m)]
        for o, place in itertools.product(range(outputs), places)
        for i in range(0, inputs, m)
    ]


@pytest.mark.parametrize("shape", [(3, 8), (5, 4), (2, 8, 3, 3), (3, 4, 2)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 2), (3, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_a_group_update_is_that_of_the_literal_reference(
    shape: tuple[int, ...], n: int, m: int, seed: int
) -> None:
    source = torch.Generator().manual_seed(seed)
    groups = groups_of(shape, m)
    algorithm = nm(n=n, m=m)
    w = torch.randint(-5, 6, shape, generator=source).double()
    g = torch.randint(-5, 6, shape, generator=source).double()
    layer = layer_of(w, g, torch.ones(shape, dtype=torch.bool))
    mask = algorithm.topology(layer, math.prod(shape) * n // m, source)
    layer = layer_of(w, g, mask)
    (change,) = plan([layer], algorithm, Levels(n / m, None, 0.4), Context())
    drop = math.floor(0.4 * layer.nnz + 1e-9)
    flat, grads, on = (value.flatten().tolist() for value in (w * mask, g, mask))
    expected = nm_reference(flat, grads, on, groups, n, drop)
    assert change.mask.flatten().tolist() == expected


@pytest.mark.parametrize("options", [{}, {"regrow_same": "forbid"}, {"rounding": "ceil"}])
@given(
    n=st.integers(1, 4),
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3),
    every=st.integers(1, 4),
    fraction=st.sampled_from([0.1, 0.5, 1.0]),
)
@settings(max_examples=25)
def test_every_group_has_exactly_n_at_every_step(
    options: dict[str, Any], n: int, sizes: Any, every: int, fraction: float
) -> None:
    weights = [nn.Parameter(torch.randn(rows + 1, 4 * groups)) for rows, groups in sizes]
    weights.append(nn.Parameter(torch.randn(3, 4, 2, 2)))
    optimizer = SparseOptimizer(
        torch.optim.SGD(weights, lr=0.1), "nm", n=n, m=4, update_every=every, total_steps=20,
        drop_fraction=fraction, **options,
    )  # fmt: skip
    for step in range(20):
        for weight in weights:
            source = torch.Generator().manual_seed(step)
            weight.grad = torch.randn(weight.shape, generator=source)
        optimizer.step()
        assert_zeros(optimizer)
        for layer in optimizer.layers:
            flat = layer.mask.flatten()
            assert all(int(flat[group].sum()) == n for group in groups_of(layer.shape, 4))


def test_convolutions_are_grouped_in_nhwc_order() -> None:
    weight = nn.Parameter(torch.randn(2, 8, 3, 3))
    optimizer = SparseOptimizer(Still([weight]), "nm")
    nhwc = optimizer.layers[0].mask.permute(0, 2, 3, 1).reshape(-1, 4)
    assert (nhwc.sum(1) == 2).all()


def test_layers_that_do_not_divide_stay_dense_and_are_named_in_one_warning() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(6, 8), nn.Linear(8, 4)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer = SparseOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), "nm", model=model, total_steps=10,
            update_every=2,
        )  # fmt: skip
        for _ in range(10):
            model(torch.randn(2, 3, 5, 5)).sum().backward()
            optimizer.step()
    ours = [w for w in caught if "dense" in str(w.message)]
    assert len(ours) == 1
    text = str(ours[0].message)
    assert "0.weight" in text and "3.weight" in text and "m=4" in text
    assert "1.weight" not in text and "4.weight" not in text
    assert [layer.density for layer in optimizer.layers] == [1.0, 0.5, 1.0, 0.5]


def test_n_comes_from_the_sparsity_or_the_sparsity_from_n() -> None:
    assert nm().exchange == nm(0.5, n=2, m=4).exchange == Groups(2, 4)
    assert nm(0.75).exchange == Groups(1, 4)
    assert nm(0.9, m=10).exchange == Groups(1, 10)
    assert nm(n=1, m=4).sparsity == 0.75
    optimizer = SparseOptimizer(Still([nn.Parameter(torch.randn(4, 16))]), "nm", n=1, m=8)
    assert optimizer.sparsity == 0.875


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 5}, "n=5 must be between 1 and m=4"),
        ({"n": 0}, "n=0"),
        ({"m": 0}, "m=0"),
        ({"sparsity": 0.9}, "sparsity=0.9 is not 1 - n/m for a whole n of m=4"),
        ({"sparsity": 0.9, "n": 2}, "sparsity=0.9 is not 1 - n/m for n=2, m=4"),
        ({"distribution": "erk"}, "distribution='erk'"),
    ],
)
def test_bad_input_of_nm_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nm(**options)
    with pytest.raises(TypeError, match="n=1.5"):
        nm(n=1.5)


def test_all_of_m_is_dense_and_quiet() -> None:
    weight = nn.Parameter(torch.randn(3, 5))
    assert SparseOptimizer(Still([weight]), "nm", n=4, m=4).density == 1.0


@pytest.mark.parametrize("topology", ["random", "magnitude", "given"])
def test_a_topology_without_n_of_every_m_is_refused_by_nm(topology: str) -> None:
    """Updates keep groups as they are: neither they nor the count would ever be right."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    before = [p.clone() for p in model.parameters()]
    first = torch.arange(8) < 4
    given = {"0.weight": first.expand(8, 8).clone(), "1.weight": first.expand(4, 8).clone()}
    wanted = {"topology": given if topology == "given" else topology}
    with pytest.raises(ValueError, match="topology= must have 2 active weights .* m=4.*'0.weight'"):
        SparseOptimizer(torch.optim.SGD(model.parameters()), algo="nm", model=model, **wanted)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
