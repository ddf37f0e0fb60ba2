"""Initial topologies: exact counts, the structure each one promises, errors that name the layer."""

import math
import pickle
from types import SimpleNamespace

import pytest
import torch
from common import rng
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseopt import topologies
from sparseopt.topologies import (
    bipartite_receptive_field,
    bipartite_small_world,
    constant_fan_in,
    csti,
    magnitude,
    n_of_m,
    random,
    resolve,
    snip,
    swi_,
)

FREE = {
    "random": random,
    "magnitude": magnitude,
    "bsw": bipartite_small_world(),
    "bsw, ring": bipartite_small_world(beta=0.0),
    "bsw, random": bipartite_small_world(beta=1.0),
    "brf": bipartite_receptive_field(),
    "brf, nearest": bipartite_receptive_field(r=0.0, degrees="fixed"),
    "brf, nearest, uniform": bipartite_receptive_field(r=0.0),
    "brf, random": bipartite_receptive_field(r=1.0, degrees="fixed"),
    "brf, nearly nearest": bipartite_receptive_field(r=0.001),
}
every_free = pytest.mark.parametrize("topology", FREE.values(), ids=FREE.keys())
SHAPES = st.lists(st.integers(1, 9), min_size=2, max_size=4)


def layer_of(*shape: int, name: str = "fc", seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(name=name, weight=nn.Parameter(torch.randn(shape, generator=rng(seed))))


@every_free
@given(shape=SHAPES, seed=st.integers(0, 99), data=st.data())
@settings(max_examples=60)
def test_every_count_from_none_to_all_is_met_exactly(topology, shape, seed, data):
    layer = layer_of(*shape)
    nnz = data.draw(st.integers(0, layer.weight.numel()))
    before = torch.get_rng_state()
    mask = topology(layer, nnz, rng(seed))
    assert mask.shape == layer.weight.shape and mask.dtype == torch.bool
    assert mask.sum() == nnz and not mask.requires_grad
    assert torch.equal(mask, topology(layer, nnz, rng(seed)))
    assert torch.equal(torch.get_rng_state(), before)


@every_free
def test_another_seed_gives_another_topology_unless_it_is_determined(topology):
    layer = layer_of(30, 41)
    same = torch.equal(topology(layer, 333, rng(0)), topology(layer, 333, rng(1)))
    assert same == (topology is magnitude)


def test_magnitude_keeps_the_largest_and_breaks_ties_by_position():
    layer = SimpleNamespace(name="fc", weight=torch.tensor([[1.0, -2.0, 1.0], [0.0, 1.0, 3.0]]))
    assert magnitude(layer, 3, rng()).tolist() == [[True, True, False], [False, False, True]]


# --- bipartite small world ------------------------------------------------------------------------


def columns_of(mask: torch.Tensor) -> list[set[int]]:
    return [set(column.nonzero().flatten().tolist()) for column in mask.T]


def test_small_world_ring_of_six_by_six():
    mask = bipartite_small_world(beta=0.0)(layer_of(6, 6), 18, rng())
    expected = [{4, 5, 0}, {5, 0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4, 5}]
    assert columns_of(mask) == expected
    assert mask.sum(1).tolist() == [3] * 6


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50), st.data())
def test_small_world_ring_gives_every_node_of_the_longer_side_its_facing_window(
    outputs, inputs, seed, data
):
    nnz = data.draw(st.integers(0, outputs * inputs))
    mask = bipartite_small_world(beta=0.0)(layer_of(outputs, inputs), nnz, rng(seed))
    links = mask if outputs <= inputs else mask.T
    short, long = links.shape
    for j, column in enumerate(columns_of(links)):
        assert len(column) in (nnz // long, -(-nnz // long))
        start = math.floor(j * short / long - len(column) / 2)
        assert column == {(start + step) % short for step in range(len(column))}


def test_small_world_ring_spreads_the_larger_nodes_evenly():
    degrees = bipartite_small_world(beta=0.0)(layer_of(5, 10), 25, rng(3)).sum(0)
    assert sorted(degrees.tolist()) == [2] * 5 + [3] * 5
    assert (degrees != degrees.roll(1)).all()


def test_small_world_rewires_about_the_fraction_asked_for():
    layer, nnz = layer_of(200, 200), 4000
    ring = bipartite_small_world(beta=0.0)(layer, nnz, rng())
    for beta in (0.1, 0.5, 1.0):
        kept = (bipartite_small_world(beta=beta)(layer, nnz, rng()) & ring).sum().item() / nnz
        # A dropped place may be drawn again, with probability of about beta * density.
        assert abs(kept - (1 - beta + beta * beta * 0.1)) < 0.03


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_small_world_refuses_a_beta_outside_zero_to_one(beta):
    with pytest.raises(ValueError, match=f"beta={beta} must be in"):
        bipartite_small_world(beta=beta)


# --- bipartite receptive field --------------------------------------------------------------------


def ring_distance(i: int, short: int, long: int) -> torch.Tensor:
    distance = (torch.arange(long).double() - i * long / short).abs()
    return torch.minimum(distance, long - distance)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50), st.data())
def test_receptive_field_without_randomness_takes_the_nearest(outputs, inputs, seed, data):
    nnz = data.draw(st.integers(0, outputs * inputs))
    topology = bipartite_receptive_field(r=0.0, degrees="fixed")
    mask = topology(layer_of(outputs, inputs), nnz, rng(seed))
    links = mask if outputs <= inputs else mask.T
    short, long = links.shape
    for i, row in enumerate(links):
        assert row.sum() in (nnz // short, -(-nnz // short))
        distance = ring_distance(i, short, long)
        if row.any() and not row.all():
            assert distance[row].max() <= distance[~row].min()


def test_receptive_field_covers_the_ring_where_the_sides_do_not_divide():
    topology = bipartite_receptive_field(r=0.0, degrees="fixed")
    assert topology(layer_of(5, 14), 15, rng()).any(0).all()


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 50), st.data())
def test_uniform_degrees_leave_no_node_empty_and_overfill_none(outputs, inputs, seed, data):
    short, long = sorted((outputs, inputs))
    nnz = data.draw(st.integers(short, short * long))
    mask = bipartite_receptive_field()(layer_of(outputs, inputs), nnz, rng(seed))
    degrees = mask.sum(1 if outputs <= inputs else 0)
    assert degrees.min() >= 1 and degrees.max() <= long and degrees.sum() == nnz


def test_receptive_field_draws_in_proportion_to_a_power_of_the_distance():
    size, runs = 9, 3000
    topology, generator = bipartite_receptive_field(r=0.4, degrees="fixed"), rng(1)
    layer = layer_of(1, size)
    seen = sum(topology(layer, 1, generator)[0].double() for _ in range(runs)) / runs
    weight = (1 + ring_distance(0, 1, size)) ** (-0.6 / 0.4)
    expected = weight / weight.sum()
    assert ((seen - expected).abs() < 5 * (expected * (1 - expected) / runs).sqrt()).all()


@pytest.mark.parametrize("options", [{"r": -0.1}, {"r": 1.5}, {"degrees": "even"}])
def test_receptive_field_refuses_options_it_does_not_know(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        bipartite_receptive_field(**options)


# --- structured -----------------------------------------------------------------------------------


@given(st.integers(1, 6), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.data())
def test_constant_fan_in_gives_every_row_the_same_number(rows, rest, data):
    layer = layer_of(rows, *rest)
    fan_in = data.draw(st.integers(0, math.prod(rest)))
    mask = constant_fan_in(layer, rows * fan_in, rng())
    assert (mask.flatten(1).sum(1) == fan_in).all()


def test_constant_fan_in_refuses_a_count_that_rows_cannot_share():
    with pytest.raises(ValueError, match="shared equally by 3 rows; 6 can: .*distribution.*srigl"):
        constant_fan_in(layer_of(3, 5), 7, rng())


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.data())
def test_n_of_m_fills_every_group_of_input_channels(outputs, groups, kernel, m, data):
    n = data.draw(st.integers(1, m))
    layer = layer_of(outputs, groups * m, kernel, kernel + 1)
    mask = n_of_m(n, m)(layer, layer.weight.numel() * n // m, rng())
    assert mask.shape == layer.weight.shape and mask.is_contiguous()
    assert (mask.permute(0, 2, 3, 1).reshape(-1, m).sum(1) == n).all()


def test_n_of_m_errors_name_the_layer():
    with pytest.raises(ValueError, match=r"'conv1' has 3 inputs, which is not a multiple of 4"):
        n_of_m(2, 4)(layer_of(8, 3, 3, 3, name="conv1"), 108, rng())
    with pytest.raises(ValueError, match=r"'fc' gets 16 active weights, not 15"):
        n_of_m(2, 4)(layer_of(4, 8), 15, rng())
    with pytest.raises(TypeError, match="n=1.5 and m=4 must be whole numbers"):
        n_of_m(1.5, 4)
    for n, m in ((5, 4), (0, 4), (-1, 2)):
        with pytest.raises(ValueError, match=f"n={n} must be between 1 and m={m}"):
            n_of_m(n, m)


def test_n_of_m_draws_all_places_of_a_group_equally_often():
    mask = n_of_m(2, 4)(layer_of(1000, 4), 2000, rng())
    assert (mask.sum(0) - 500).abs().max() < 5 * math.sqrt(1000 * 0.25)


# --- names, and masks for all layers --------------------------------------------------------------


@pytest.mark.parametrize("name", topologies.available())
def test_every_name_is_a_topology(name):
    mask = resolve(name)(layer_of(4, 6), 12, rng())
    assert mask.sum() == 12


def test_unknown_names_raise_with_the_nearest():
    with pytest.raises(ValueError, match="topology='randon' is not one of .*; near: random"):
        resolve("randon")


@pytest.mark.parametrize("name", ["csti", "n_of_m", "snip", "grasp"])
def test_names_that_need_arguments_say_how_to_give_them(name):
    with pytest.raises(ValueError, match=rf"topology='{name}' needs more .*: pass {name}\("):
        resolve(name)


@pytest.mark.parametrize("bad", [3, None, bipartite_small_world, csti])
def test_things_that_are_no_topology_are_refused(bad):
    with pytest.raises(TypeError, match="topology="):
        resolve(bad)


def test_topologies_print_compare_and_pickle():
    for topology in (
        bipartite_small_world(0.5),
        bipartite_receptive_field(0.1, "fixed"),
        n_of_m(1, 2),
    ):
        assert pickle.loads(pickle.dumps(topology)) == topology
        assert eval(repr(topology)) == topology
        with pytest.raises(AttributeError):
            topology.beta = 3
    x = torch.rand(5, 3)
    again = pickle.loads(pickle.dumps(csti(x, layers=["fc"])))
    assert torch.equal(again(layer_of(3, 3), 4, rng()), csti(x)(layer_of(3, 3), 4, rng()))
    assert repr(csti(x)) == "csti(layers=None, fallback=None)"


def test_masks_of_all_layers_have_the_numbers_asked_for():
    layers = [layer_of(4, 5, name="a"), layer_of(3, 4, name="b"), layer_of(2, 3, name="c")]
    numbers = [7, 12, 1]
    found = topologies.masks("random", layers, numbers, lambda layer: rng(ord(layer.name)))
    assert [int(mask.sum()) for mask in found] == numbers
    assert torch.equal(found[2], random(layers[2], 1, rng(ord("c"))))
    loss = snip(lambda: sum(layer.weight.pow(2).sum() for layer in layers))
    found = topologies.masks(loss, layers, numbers, lambda layer: rng())
    assert sum(int(mask.sum()) for mask in found) == 20


def test_a_dense_layer_is_dense_under_any_topology():
    layers = [layer_of(8, 4, name="fc1"), layer_of(3, 8, name="head")]
    found = topologies.masks(csti(torch.rand(9, 4)), layers, [10, 24], lambda layer: rng())
    assert [int(mask.sum()) for mask in found] == [10, 24]


def test_given_masks_are_taken_by_name():
    start = {"a": torch.eye(3, dtype=torch.bool)}
    found = topologies.masks(start, [layer_of(3, 3, name="a")], [3], lambda layer: rng())
    assert torch.equal(found[0], start["a"])
    with pytest.raises(ValueError, match=r"has no mask for 'b'; near: \['a'\]"):
        topologies.masks(start, [layer_of(3, 3, name="b")], [3], lambda layer: rng())


@pytest.mark.parametrize(
    ("mask", "error"),
    [
        (torch.ones(2, 3), "gave torch.float32 for 'fc', not a bool tensor"),
        (None, "gave NoneType for 'fc'"),
        (torch.ones(3, 2) > 0, r"a mask of shape \(3, 2\) with 6 active weights"),
        (torch.ones(2, 3) > 0, r"must have shape \(2, 3\) with 4"),
    ],
)
def test_a_callable_that_breaks_the_contract_is_named(mask, error):
    with pytest.raises((TypeError, ValueError), match=error):
        topologies.masks(lambda *_: mask, [layer_of(2, 3)], [4], lambda layer: rng())


@pytest.mark.parametrize(
    ("found", "error"),
    [
        ({}, "gave NoneType for 'fc', not a bool tensor"),
        ({"fc": torch.ones(2, 3)}, "gave torch.float32 for 'fc'"),
        ({"fc": torch.ones(3, 2) > 0}, r"mask of shape \(3, 2\); the weight has \(2, 3\)"),
        ({"fc": torch.ones(2, 3) > 0}, "6 active weights together; return 4"),
    ],
)
def test_a_ranking_over_all_layers_that_breaks_the_contract_is_named(found, error):
    topology = SimpleNamespace(masks=lambda layers, nnz: found)
    with pytest.raises((TypeError, ValueError), match=error):
        topologies.masks(topology, [layer_of(2, 3)], [4], lambda layer: rng())


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(300, 200), (100, 400), (40, 20, 3, 3)])
@pytest.mark.parametrize("density", [0.05, 0.5, 1.0])
def test_sparse_weights_keep_the_variance_of_the_signal(shape, density):
    layer = layer_of(*shape)
    layer.mask = random(layer, round(layer.weight.numel() * density), rng())
    swi_([layer], rng())
    fan_in = math.prod(shape[1:])
    spread = layer.weight[layer.mask].std().item()
    assert spread == pytest.approx(math.sqrt(2 / (density * fan_in)), rel=0.05)
    assert not layer.weight[~layer.mask].any() and layer.weight.requires_grad


def test_sparse_weights_before_any_mask_take_a_density():
    layer = nn.Linear(200, 300)
    swi_([layer], rng(), density=0.1)
    assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / 20), rel=0.05)
    with pytest.raises(ValueError, match="density=90 must be in"):
        swi_([layer], rng(), density=90)


def test_sparse_weights_of_an_empty_layer_are_zero():
    layer = layer_of(3, 4)
    layer.mask = torch.zeros(3, 4, dtype=torch.bool)
    swi_([layer], rng())
    assert not layer.weight.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_free
def test_the_device_does_not_change_the_topology(topology):
    layer = layer_of(30, 41)
    there = SimpleNamespace(name="fc", weight=layer.weight.detach().cuda())
    mask = topology(there, 333, rng())
    assert mask.is_cuda and torch.equal(mask.cpu(), topology(layer, 333, rng()))
