"""Distributions: the shares follow the formulas, the counts add up exactly."""

import functools
import math
import warnings
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparseopt import distributions
from sparseopt.distributions import allocate, check_sparsity, counts, densities, er, erk, uniform

LENET = [(300, 784), (100, 300), (10, 100)]
CONV3D = [(4, 2, 3, 3, 3), (8, 4, 1, 1, 1), (3, 8)]
TIED = [(4, 4), (4, 4), (64, 64)]

shape = st.lists(st.integers(1, 40), min_size=2, max_size=5).map(tuple)
networks = st.lists(shape, min_size=1, max_size=8)
names = st.sampled_from(["uniform", "er", "erk"])
sparsities = st.floats(0.0, 0.99)


def rigl_loop(scores, sizes, density):
    """The loop of Evci et al. (2020), literally: make layers dense until no share passes one."""
    dense = set()
    while True:
        rest = [i for i in range(len(sizes)) if i not in dense]
        if not rest:
            return [1.0] * len(sizes)
        rhs = sum(density * sizes[i] for i in rest) - sum((1 - density) * sizes[i] for i in dense)
        epsilon = rhs / sum(scores[i] * sizes[i] for i in rest)
        largest = max(scores[i] for i in rest)
        if epsilon * largest <= 1:
            return [1.0 if i in dense else epsilon * scores[i] for i in range(len(sizes))]
        dense |= {i for i in rest if scores[i] == largest}


def rounded_literally(ideal, sizes, budget, caps):
    """Section 1.3 of the specification, one weight at a time."""
    wanted = [d * n for d, n in zip(ideal, sizes, strict=True)]
    active = [min(cap, math.floor(q + 1e-9)) for q, cap in zip(wanted, caps, strict=True)]
    order = sorted(
        range(len(sizes)), key=lambda i: (-round(wanted[i] - math.floor(wanted[i] + 1e-9), 9), i)
    )
    while sum(active) < budget:
        for layer in order:
            if sum(active) < budget and active[layer] < caps[layer]:
                active[layer] += 1
    return active


def score_of(name, shape):
    if name == "uniform":
        return 1.0
    dims = shape[:2] if name == "er" else shape
    return sum(dims) / math.prod(dims)


def quietly(function, *arguments, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*arguments, **options)


# --- golden cases ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sparsity, expected",
    [(0.9, [18714, 6906, 1000]), (0.95, [9051, 3340, 919]), (0.5, [102100, 30000, 1000])],
)
def test_er_counts_of_lenet(sparsity, expected):
    assert er(LENET, sparsity) == expected


def test_er_densities_of_lenet_and_the_dense_last_layer():
    assert densities("er", LENET, 0.9) == pytest.approx([0.0795678, 0.2301887, 1.0], abs=1e-7)
    assert densities("er", LENET, 0.5) == pytest.approx([0.4340986, 1.0, 1.0], abs=1e-7)


def test_erk_of_a_3d_network_shares_equal_remainders_by_position():
    ideal = densities("erk", CONV3D, 0.8)
    assert ideal == pytest.approx([0.0921409, 0.6219512, 0.6081301], abs=1e-7)
    assert erk(CONV3D, 0.8) == [20, 20, 14]


def test_erk_makes_tied_layers_dense_together():
    assert densities("erk", TIED, 0.5) == pytest.approx([1.0, 1.0, 0.4960938], abs=1e-7)
    assert erk(TIED, 0.5) == [16, 16, 2032]


def test_erk_of_resnet50():
    """Forward-FLOP ratios and dense layers over all 54 weights, the classifier included."""
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        model = torchvision.models.resnet50()
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    shapes = [tuple(layer.weight.shape) for layer in layers]
    pixels = []
    for layer in layers:
        layer.register_forward_hook(lambda _, __, out: pixels.append(math.prod(out.shape[2:])))
    model(torch.empty(1, 3, 224, 224, device="meta"))
    # hooks fire in the order of execution; the shortcut of a stage comes after its third conv,
    # which is also its place among the modules
    macs = [math.prod(s) * p for s, p in zip(shapes, pixels, strict=True)]

    def ratio(sparsity):
        ideal = densities("erk", shapes, sparsity)
        return sum(d * m for d, m in zip(ideal, macs, strict=True)) / sum(macs)

    for sparsity, expected, dense in [(0.8, 0.4138, 8), (0.9, 0.2418, 1), (0.5, 0.7143, 32)]:
        assert ratio(sparsity) == pytest.approx(expected, abs=5e-5)
        assert densities("erk", shapes, sparsity).count(1.0) == dense
    assert ratio(0.1) == pytest.approx(0.9694, abs=1.5e-4)
    sparse = [s for s, d in zip(shapes, densities("erk", shapes, 0.1), strict=True) if d < 1]
    assert sparse == [(512, 512, 3, 3)] * 3
    last_stage = dict(zip(shapes, densities("erk", shapes, 0.8), strict=True))
    assert last_stage[512, 512, 3, 3] == pytest.approx(0.0435, abs=5e-5)
    assert last_stage[1000, 2048] == pytest.approx(0.1482, abs=5e-5)


# --- shares ---------------------------------------------------------------------------------------


@given(names, networks, sparsities)
def test_shares_equal_the_loop_of_the_reference(name, shapes, sparsity):
    sizes = [math.prod(s) for s in shapes]
    expected = rigl_loop([score_of(name, s) for s in shapes], sizes, 1 - sparsity)
    assert densities(name, shapes, sparsity) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(names, networks, sparsities)
def test_shares_lie_in_the_unit_interval_and_meet_the_density(name, shapes, sparsity):
    ideal = densities(name, shapes, sparsity)
    sizes = [math.prod(s) for s in shapes]
    assert all(0 < d <= 1 for d in ideal)
    total = sum(d * n for d, n in zip(ideal, sizes, strict=True))
    assert total == pytest.approx((1 - sparsity) * sum(sizes), rel=1e-9)


@given(networks, sparsities)
def test_a_layer_with_the_larger_score_is_denser(shapes, sparsity):
    pairs = sorted(
        zip([score_of("erk", s) for s in shapes], densities("erk", shapes, sparsity), strict=True)
    )
    assert all(low[1] <= high[1] + 1e-12 for low, high in zip(pairs, pairs[1:], strict=False))


@given(names, networks, sparsities, st.randoms(use_true_random=False))
def test_shares_move_with_the_order_of_the_layers(name, shapes, sparsity, random):
    order = random.sample(range(len(shapes)), len(shapes))
    shuffled = densities(name, [shapes[i] for i in order], sparsity)
    ideal = densities(name, shapes, sparsity)
    assert shuffled == pytest.approx([ideal[i] for i in order], rel=1e-9)


@given(names, networks, sparsities, sparsities)
def test_no_share_grows_with_the_sparsity(name, shapes, one, other):
    denser = densities(name, shapes, min(one, other))
    sparser = densities(name, shapes, max(one, other))
    assert all(s <= d + 1e-9 for s, d in zip(sparser, denser, strict=True))


def test_power_zero_of_erk_is_uniform():
    assert erk(LENET, 0.9, power=0.0) == uniform(LENET, 0.9)
    assert erk(LENET, 0.9, power=0.5) != erk(LENET, 0.9)


# --- counts ---------------------------------------------------------------------------------------


@given(names, networks, sparsities)
def test_counts_add_up_to_the_rounded_budget(name, shapes, sparsity):
    sizes = [math.prod(s) for s in shapes]
    budget = math.floor((1 - sparsity) * sum(sizes) + 0.5 + 1e-9)
    active = quietly(counts, name, shapes, 1 - sparsity)
    assert sum(active) == max(budget, len(shapes))
    assert all(1 <= n <= size for n, size in zip(active, sizes, strict=True))


@given(names, networks, sparsities)
def test_counts_equal_the_literal_rule(name, shapes, sparsity):
    sizes = [math.prod(s) for s in shapes]
    budget = math.floor((1 - sparsity) * sum(sizes) + 0.5 + 1e-9)
    expected = rounded_literally(densities(name, shapes, sparsity), sizes, budget, sizes)
    assume(all(expected))
    assert counts(name, shapes, 1 - sparsity) == expected


@given(networks, sparsities)
def test_uniform_counts_are_less_than_one_weight_off(shapes, sparsity):
    sizes = [math.prod(s) for s in shapes]
    assume((1 - sparsity) * min(sizes) >= 1)
    for n, size in zip(uniform(shapes, sparsity), sizes, strict=True):
        assert abs(n / size - (1 - sparsity)) <= 1 / size + 1e-9


@given(names, networks, st.lists(st.floats(0.02, 1.0), min_size=2, max_size=6))
def test_with_caps_no_layer_grows_while_the_total_shrinks(name, shapes, path):
    total = sum(math.prod(s) for s in shapes)
    active = quietly(counts, name, shapes, 1.0)
    for density in sorted(path, reverse=True):
        smaller = quietly(counts, name, shapes, density, caps=active)
        assert all(new <= old for new, old in zip(smaller, active, strict=True))
        assert sum(smaller) == max(math.floor(density * total + 0.5 + 1e-9), len(shapes))
        active = smaller


def test_caps_avoid_the_apportionment_paradox():
    shapes = [(5,), (3,), (5,)]
    assert counts("uniform", shapes, 7 / 13) == [3, 1, 3]
    assert counts("uniform", shapes, 6 / 13) == [2, 2, 2]
    assert counts("uniform", shapes, 6 / 13, caps=[3, 1, 3]) == [3, 1, 2]


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=6),
    st.floats(0.1, 1.0),
)
def test_the_remainder_of_capped_layers_goes_round_the_others(layers, density):
    sizes = [size for size, _ in layers]
    caps = [min(pair) for pair in layers]
    budget = math.floor(density * sum(sizes) + 0.5 + 1e-9)
    ideal = [density] * len(sizes)
    room = min(budget, sum(caps))
    expected = rounded_literally(ideal, sizes, room, caps)
    assume(all(n or not cap for n, cap in zip(expected, caps, strict=True)))
    assert allocate(ideal, sizes, budget, caps) == expected


def test_float_noise_does_not_lose_a_weight():
    assert allocate([0.29], [100], 29) == [29]  # 0.29 * 100 is just below 29
    assert uniform([(10, 10), (1, 10)], 0.9) == [10, 1]


@given(st.integers(1, 400), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98]))
def test_the_budget_rounds_halves_up_as_the_decimals_say(size, sparsity):
    """A tenth of 15 weights is 1.5, so 2: in floating point (1 - 0.9) * 15 is just below it."""
    budget = math.floor((1 - Fraction(str(sparsity))) * size + Fraction(1, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert sum(uniform([(size, 1)], sparsity)) == max(1, budget)


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
def test_density_one_is_dense_everywhere(name):
    full = [math.prod(s) for s in LENET]
    assert counts(name, LENET, 1.0) == counts(name, LENET, 1.0 + 1e-12) == full
    assert getattr(distributions, name)(LENET, 0.0) == full


def test_no_layers_give_no_counts():
    assert uniform([], 0.5) == er([], 0.5) == erk([], 0.5) == []


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
def test_a_layer_without_entries_gets_nothing(name):
    assert counts(name, [(4, 4), (0, 4)], 0.5) == [8, 0]


def test_an_empty_layer_keeps_one_weight_of_the_largest_with_a_warning():
    with pytest.warns(UserWarning, match="no weight to 1 of the layers.*keeps one.*largest"):
        active = uniform([(100, 100), (2, 2)], 0.99)
    assert active == [99, 1]


def test_fewer_weights_than_layers_gives_one_each_with_a_warning():
    with pytest.warns(UserWarning, match="keeps 2 more than asked"):
        assert uniform([(10,), (10,), (10,)], 0.98) == [1, 1, 1]


# --- callables ------------------------------------------------------------------------------------


def test_a_callable_decides_the_counts_itself():
    assert counts(lambda shapes, sparsity: [3, 1], [(5,), (3,)], 0.5) == [3, 1]
    assert densities(lambda shapes, sparsity: [3, 1], [(6,), (4,)], 0.5) == [0.5, 0.25]
    half = functools.partial(erk, power=0.5)
    assert counts(half, LENET, 0.1) == erk(LENET, 0.9, power=0.5)


def test_caps_hold_for_a_callable_too():
    assert counts(lambda *_: [3, 3], [(5,), (5,)], 0.6, caps=[2, 5]) == [2, 4]


@pytest.mark.parametrize("given_counts", [[1], [1, 2, 3], [1, 9], [-1, 1], [0.5, 1]])
def test_a_callable_with_unfit_counts_is_refused(given_counts):
    with pytest.raises(ValueError, match="the distribution gave"):
        counts(lambda *_: given_counts, [(5,), (3,)], 0.5)


# --- bad input ------------------------------------------------------------------------------------


def test_a_percentage_is_told_apart():
    message = r"sparsity=90 must be in \[0, 1\): the fraction of weights that are zero; for 90 % "
    with pytest.raises(ValueError, match=message + "write 0.9"):
        erk(LENET, 90)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 100, 1e9, math.nan, math.inf])
@pytest.mark.parametrize("distribute", [uniform, er, erk, functools.partial(densities, "erk")])
def test_sparsity_outside_its_range_is_refused(distribute, value):
    with pytest.raises(ValueError, match=r"sparsity=.* must be in \[0, 1\)"):
        distribute(LENET, value)


@pytest.mark.parametrize("value", [None, "0.9", True, [0.9]])
def test_sparsity_that_is_no_number_is_refused(value):
    with pytest.raises(TypeError, match=r"sparsity=.* must be a number in \[0, 1\)"):
        check_sparsity(value)


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match="'erkk' is not one of er, erk, uniform; did you mean"):
        counts("erkk", LENET, 0.1)
    with pytest.raises(ValueError, match="or 'er'"):
        counts("erkk", LENET, 0.1)
    with pytest.raises(ValueError, match="distribution=None is not one of .*; pass a callable"):
        densities(None, LENET, 0.9)


def test_er_refuses_a_vector():
    with pytest.raises(ValueError, match=r"shape \(5,\).*'er' needs two dimensions"):
        er([(5,)], 0.5)


@pytest.mark.parametrize("shapes", [[(2.5, 3)], [(-1, 3)]])
def test_shapes_that_are_no_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="must be made of whole numbers"):
        uniform(shapes, 0.5)


@pytest.mark.parametrize("name", ["uniform", "er", "erk"])
@pytest.mark.parametrize("shapes", [3, None, [3], [None]])
def test_something_else_than_a_list_of_shapes_is_refused(name, shapes):
    with pytest.raises(TypeError, match="shapes=.* must be a list of shapes"):
        getattr(distributions, name)(shapes, 0.5)


@pytest.mark.parametrize("density", [0.0, -1.0, math.nan])
def test_a_density_that_is_not_above_zero_is_refused(density):
    with pytest.raises(ValueError, match="must be above 0"):
        counts("uniform", LENET, density)


def test_allocate_refuses_what_cannot_add_up():
    with pytest.raises(ValueError, match="budget=3 is less than the 10"):
        allocate([1.0, 1.0], [5, 5], 3)
    with pytest.raises(ValueError, match="one of each per layer"):
        allocate([1.0], [5, 5], 3)
