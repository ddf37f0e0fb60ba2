"""Bad input gives an error that says what to do, and leaves everything as it was."""

import copy
import math

import pytest
import torch
from common import (
    MuonLike,
    assert_same,
    assert_zeros,
    mlp,
    numbers,
    snapshot,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW

from sparseopt import Algorithm, SparseOptimizer
from sparseopt.algorithms import rigl
from sparseopt.schedules import Constant


def refused(match, error=ValueError, inner=None, network=None, **options):
    """Wrapping raises this error, and neither the model nor the optimizer has changed."""
    model = mlp() if network is None else network
    optimizer = (inner or (lambda p: AdamW(p, lr=0.01)))(model.parameters())
    if network is None:
        train(model, optimizer, 2)
    before, streams = snapshot(model, optimizer), torch.get_rng_state()
    with pytest.raises(error, match=match) as caught:
        SparseOptimizer(optimizer, **{"algo": "set", "model": model} | options)
    assert_same(snapshot(model, optimizer), before)
    assert torch.equal(torch.get_rng_state(), streams)
    return str(caught.value)


# --- sparsity -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 1.5, math.nan, math.inf, -math.inf, 100])
def test_sparsity_outside_zero_to_one_is_refused(sparsity):
    message = refused(r"sparsity=.*\[0, 1\)", sparsity=sparsity)
    assert str(sparsity) in message


@pytest.mark.parametrize("percent", [90, 98.5, 50])
def test_a_percentage_is_told_apart(percent):
    assert f"write {percent / 100:g}" in refused("sparsity", sparsity=percent)


@pytest.mark.parametrize("sparsity", ["0.9", None, True, [0.5], 1j])
def test_sparsity_that_is_no_number_is_refused(sparsity):
    refused("sparsity", (TypeError, ValueError), sparsity=sparsity)


@pytest.mark.parametrize("own", [2.0, 90, -0.5, "a", math.inf])
def test_a_bad_sparsity_in_a_parameter_group_is_refused(own):
    refused(
        "sparsity",
        (TypeError, ValueError),
        inner=lambda params: AdamW([{"params": list(params), "sparsity": own}], lr=0.01),
    )


def test_a_density_that_would_empty_a_layer_keeps_one_weight_each_and_warns():
    model = mlp((40, 40, 2))
    with pytest.warns(UserWarning, match="keeps one"):
        optimizer = sparse(
            model, SGD(model.parameters(), lr=0.1), "set", distribution="uniform", sparsity=0.998
        )
    assert numbers(optimizer)[1] == 1 and sum(numbers(optimizer)) == math.floor(1680 * 0.002 + 0.5)
    model = mlp((40, 40, 2))
    with pytest.warns(UserWarning, match="keeps one"):
        optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "rigl", sparsity=0.9999)
    assert numbers(optimizer) == [1, 1]
    train_small(model, optimizer)
    assert numbers(optimizer) == [1, 1]


def train_small(model, optimizer):
    for step in range(4):
        optimizer.zero_grad()
        model(torch.full((2, 40), step / 4, dtype=torch.float64)).square().sum().backward()
        optimizer.step()
        assert_zeros(optimizer)


# --- names and options ----------------------------------------------------------------------------


@pytest.mark.parametrize("algo, near", [("rigll", "rigl"), ("sett", "set"), ("Static", "static")])
def test_an_unknown_algorithm_is_answered_with_the_nearest_names(algo, near):
    message = refused("algo=", algo=algo)
    assert repr(algo) in message and repr(near) in message and "sparseopt.Algorithm" in message


@pytest.mark.parametrize("algo", ["zzz", "", 3, None, [1]])
def test_an_algorithm_that_is_none_is_refused(algo):
    refused("algo=|recipe", (ValueError, TypeError), algo=algo)


def test_a_model_in_the_place_of_the_algorithm_is_told_where_it_belongs():
    refused("algo= is a module.*model=", TypeError, algo=mlp())


@pytest.mark.parametrize("distribution, near", [("erkk", "erk"), ("unifrom", "uniform")])
def test_an_unknown_distribution_is_answered_with_the_nearest_names(distribution, near):
    message = refused("distribution=", distribution=distribution)
    assert repr(distribution) in message and near in message


@pytest.mark.parametrize("topology, near", [("randon", "random"), ("magnitud", "magnitude")])
def test_an_unknown_topology_is_answered_with_the_nearest_names(topology, near):
    message = refused("topology=", topology=topology)
    assert repr(topology) in message and near in message


@pytest.mark.parametrize(
    "distribution",
    [3, lambda shapes, sparsity: [1], lambda shapes, sparsity: [10**6, 1],
     lambda shapes, sparsity: [0.5, 0.5], lambda shapes, sparsity: [-1, 4],
     lambda shapes, sparsity: None],
)  # fmt: skip
def test_a_distribution_that_gives_no_counts_is_refused(distribution):
    refused("distribution", (ValueError, TypeError), distribution=distribution)


@pytest.mark.parametrize(
    "options, near",
    [
        ({"drop_fracton": 0.1}, "drop_fraction"),
        ({"signd": True}, "signed"),
        ({"regrow": "keep"}, "regrow_same"),
        ({"algo": "rigl", "signed": True}, "rigl"),
        ({"algo": "static", "gradient_weight": 0.1}, "static"),
        ({"density": 0.1}, "density"),
    ],
)
def test_an_option_that_the_recipe_does_not_take_is_refused(options, near):
    name = [name for name in options if name != "algo"][0]
    message = refused(name, TypeError, **options)
    assert near in message


@pytest.mark.parametrize(
    "options",
    [
        {"regrow_same": "maybe"}, {"grown_state": "one"}, {"scope": "all"}, {"rounding": "up"},
        {"drop_fraction": 1.5}, {"drop_fraction": -0.1}, {"drop_fraction": 30},
        {"drop_fraction": math.nan}, {"drop_fraction": Constant(2.0)}, {"drop_fraction": "a"},
        {"stop": 1.5}, {"stop": -1}, {"stop": "a"}, {"start": 0.9, "stop": 0.1},
        {"storage": "sparse"}, {"storage": None},
        {"total_steps": 0}, {"total_steps": -5}, {"total_steps": 1.5}, {"total_steps": "10"},
        {"update_every": 0}, {"update_every": -1}, {"update_every": 2.5}, {"update_every": None},
        {"update_every": True}, {"seed": 0.5}, {"seed": "a"}, {"seed": None},
        {"on_update": 3}, {"on_update": "print"}, {"model": "mine"}, {"model": 3},
        {"include": 3}, {"exclude": [3]}, {"include": [None]},
    ],
    ids=str,
)  # fmt: skip
def test_a_value_out_of_range_is_named_with_its_argument(options):
    (name, value), *_ = options.items()
    message = refused(name, (ValueError, TypeError), **options)
    assert str(value).removeprefix("Constant(value=").strip(")[]") in message


@pytest.mark.parametrize(
    "options",
    [
        {"beta": "a", "algo": "snfs"}, {"gamma": None, "algo": "srigl"},
        {"alpha": "a", "algo": "chts"}, {"early_stop": "a", "algo": "cht"},
        {"delta": ("a", 0.5), "algo": "chts"}, {"signed": "no"}, {"skip_step_on_update": 1},
        {"ablate": "no", "algo": "srigl"}, {"soft": 0, "algo": "chts"},
        {"keep_dense": "no", "algo": "acdc", "total_steps": 100},
    ],
    ids=str,
)  # fmt: skip
def test_an_option_of_a_wrong_kind_is_named(options):
    name = next(iter(options))
    message = refused(f"{name}=", TypeError, **options)
    assert repr(options[name]) in message and " must be " in message


def test_a_recipe_that_needs_total_steps_says_so():
    from sparseopt import available
    from sparseopt.schedules import Cubic

    shrinking = Algorithm(0.7, name="mine", density=Cubic(0.9, 0.3))
    message = refused("total_steps", algo=shrinking, sparsity=0.7)
    assert "len(loader)" in message
    for name in {"gmp", "granet_r", "granet_g", "mest_r", "mest_g", "acdc"} & {*available()}:
        assert name in refused("total_steps", algo=name)


def test_too_few_steps_for_a_single_update_are_pointed_out():
    model = mlp()
    with pytest.warns(UserWarning, match="update_every=100.*total_steps=50"):
        sparse(model, SGD(model.parameters(), lr=0.1), "set", total_steps=50, update_every=100)


def test_an_algorithm_of_another_sparsity_is_adapted_or_refused_never_ignored():
    model = mlp()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set")
    assert optimizer.algorithm.sparsity == 0.7
    made = SparseOptimizer(SGD(mlp().parameters(), lr=0.1), rigl(0.9), sparsity=0.6)
    assert made.algorithm.sparsity == 0.6
    kept = SparseOptimizer(SGD(mlp().parameters(), lr=0.1), rigl(0.9))
    assert kept.algorithm.sparsity == 0.9


# --- parameters -----------------------------------------------------------------------------------


def test_no_eligible_parameter_is_an_error_that_names_the_ways_out():
    model = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 5))
    model.input_shape = (6,)
    model[1].weight.requires_grad_(False)
    model.double()
    message = refused("sparse", network=model)
    assert "include" in message and "model=" in message
    bare = nn.Parameter(torch.ones(5))
    with pytest.raises(ValueError, match="include"):
        SparseOptimizer(SGD([bare], lr=0.1))


def test_a_pattern_that_matches_nothing_shows_the_names_there_are():
    for argument in ("include", "exclude"):
        for pattern in ("conv*", ["0", "nothing"], lambda name, weight: False, "eight", ""):
            message = refused(argument, **{argument: pattern})
            assert "0.weight" in message


@pytest.mark.parametrize("nothing", [[], ()])
def test_an_empty_include_is_refused_and_not_taken_for_the_usual_choice(nothing):
    refused("include=.* names no parameter; leave it out", include=nothing)
    model = mlp()
    assert len(sparse(model, SGD, exclude=nothing).layers) == 2


def test_patterns_that_leave_nothing_are_refused():
    refused("sparse", include="*.bias")
    refused("sparse.*exclude='\\*' leaves", exclude="*")


def test_a_model_that_is_not_the_optimizers_is_refused():
    other = mlp(seed=3)
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    before = snapshot(model, optimizer)
    with pytest.raises(ValueError, match="model=.*no parameter in common"):
        SparseOptimizer(optimizer, model=other)
    assert_same(snapshot(model, optimizer), before)


def test_an_optimizer_that_is_already_sparse_is_refused():
    refused("already", TypeError, inner=lambda params: SparseOptimizer(SGD(params, lr=0.1)))


@pytest.mark.parametrize("wrong", [None, 3, "sgd", SGD, [1]])
def test_something_else_than_an_optimizer_is_refused(wrong):
    with pytest.raises(TypeError, match="optimizer"):
        SparseOptimizer(wrong)


class WithInteger(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(6, 5))
        self.codes = nn.Parameter(torch.ones(5, 6, dtype=torch.int64), requires_grad=False)
        self.input_shape = (6,)
        self.double()


def test_integer_and_complex_parameters_are_refused_by_name_or_left_out():
    refused("codes.*int64", TypeError, network=WithInteger(), include=["codes", "0"])
    model = WithInteger()
    optimizer = SparseOptimizer(SGD(model.parameters(), lr=0.1), model=model)
    assert [layer.name for layer in optimizer.layers] == ["0.weight"]
    complex_weight = nn.Parameter(torch.ones(5, 6, dtype=torch.complex64))
    with pytest.raises(TypeError, match="complex64"):
        SparseOptimizer(SGD([complex_weight], lr=0.1), include=lambda name, weight: True)
    with pytest.raises((TypeError, ValueError)):
        SparseOptimizer(SGD([complex_weight], lr=0.1))


def test_a_complex_linear_layer_is_never_left_dense_in_silence():
    model = nn.Sequential(nn.Linear(6, 5, dtype=torch.complex64), nn.Linear(5, 6))
    with pytest.raises((TypeError, ValueError), match="0.weight"):
        SparseOptimizer(SGD(model.parameters(), lr=0.1), model=model)


@pytest.mark.parametrize("algo", ["static", "rigl"])
def test_sparse_gradients_are_refused_by_name(algo):
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 5))
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1), algo, model=model, include=["0", "1"]
    )
    before = copy.deepcopy((dict(model.state_dict()), dict(optimizer.masks)))
    with pytest.raises(TypeError, match="0.weight.*sparse"):
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
    assert optimizer.steps == 0
    assert_same((dict(model.state_dict()), dict(optimizer.masks)), before)


def test_sparse_gradients_set_by_hand_are_refused_too():
    p = nn.Parameter(torch.randn(4, 5))
    optimizer = SparseOptimizer(SGD([p], lr=0.1))
    before = p.detach().clone()
    p.grad = torch.ones(4, 5).to_sparse()
    with pytest.raises(TypeError, match="0.0.*sparse"):
        optimizer.step()
    assert torch.equal(p, before) and optimizer.steps == 0


def test_an_embedding_with_sparse_gradients_may_stay_dense():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 5))
    optimizer = SparseOptimizer(SGD(model.parameters(), lr=0.1), "rigl", model=model)
    model(torch.tensor([1, 2])).sum().backward()
    optimizer.step()
    assert [layer.name for layer in optimizer.layers] == ["1.weight"]


# --- topologies -----------------------------------------------------------------------------------


def masks(shape_of_first=(8, 6), active=(14, 12), dtype=torch.bool):
    result = {}
    for name, shape, k in zip(("0.weight", "2.weight"), (shape_of_first, (5, 8)), active,
                              strict=True):  # fmt: skip
        flat = torch.zeros(math.prod(shape), dtype=dtype)
        flat[:k] = 1
        result[name] = flat.view(shape)
    return result


@pytest.mark.parametrize(
    "topology",
    [
        masks((6, 8)), masks((8, 5)), masks(dtype=torch.float32), masks(dtype=torch.uint8),
        masks(active=(15, 12)), masks(active=(48, 40)), {}, {"0.weight": masks()["0.weight"]},
        {**masks(), "3.weight": torch.ones(2, 2, dtype=torch.bool)},
        {"0.weight": [[1]], "2.weight": masks()["2.weight"]}, 3, [masks()],
    ],
    ids=lambda t: str({n: tuple(getattr(m, "shape", ())) for n, m in t.items()})
    if isinstance(t, dict) else str(type(t)),
)  # fmt: skip
def test_a_topology_of_wrong_shape_type_count_or_name_is_refused(topology):
    refused("topology", (ValueError, TypeError), topology=topology, sparsity=1 - 26 / 88)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda layer, nnz, generator: torch.ones(3, 3, dtype=torch.bool),
        lambda layer, nnz, generator: torch.ones_like(layer.weight, dtype=torch.bool),
        lambda layer, nnz, generator: torch.zeros_like(layer.weight, dtype=torch.bool),
        lambda layer, nnz, generator: layer.weight.detach(),
        lambda layer, nnz, generator: None,
        lambda layer, nnz, generator: 1 / 0,
        lambda layer: layer.mask,
    ],
)
def test_a_callable_topology_that_gives_a_wrong_mask_is_refused(wrong):
    refused(None, (ValueError, TypeError, ZeroDivisionError), topology=wrong)


def test_a_good_topology_is_taken_as_it_is():
    model, given_masks = mlp(), masks()
    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", topology=given_masks,
                       sparsity=1 - 26 / 88)  # fmt: skip
    assert_same(dict(optimizer.masks), given_masks)
    assert_zeros(optimizer)
    train(model, optimizer, 4)
    assert_same(given_masks, masks())  # what was given is not written to


def test_a_callable_topology_sees_the_layer_the_count_and_a_private_generator():
    model, seen = mlp(), []

    def first_places(layer, nnz, generator):
        seen.append((layer.name, nnz, isinstance(generator, torch.Generator)))
        return (torch.arange(layer.weight.numel()) < nnz).view(layer.weight.shape)

    optimizer = sparse(model, SGD(model.parameters(), lr=0.1), "set", topology=first_places)
    assert [entry[0] for entry in seen] == ["0.weight", "2.weight"]
    assert [entry[1] for entry in seen] == numbers(optimizer) and all(e[2] for e in seen)


# --- grown_state ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [lambda p: SGD(p, lr=0.1, momentum=0.9), lambda p: AdamW(p, amsgrad=True), MuonLike],
)
def test_per_element_step_is_refused_where_it_cannot_be(inner):
    message = refused("per_element_step", inner=inner, grown_state="per_element_step")
    assert "zero" in message and "mean" in message
