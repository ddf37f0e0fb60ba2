"""The cost of sparse networks and of runs: sums that a loop over every step confirms."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseopt import flops
from sparseopt.schedules import Constant, Cubic, Phases, Polynomial

pytest.importorskip("fvcore")

EXAMPLES = Path(__file__).parents[1] / "examples"
spec = importlib.util.spec_from_file_location("example_models", EXAMPLES / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        nn.Linear(6, 5),
    )


COST = flops.count(small_network(), torch.zeros(1, 3, 9, 9))
# multiply-adds by hand
MACS = {"0.weight": 81 * 3 * 4 * 9, "3.0.weight": 16 * 4 * 6 * 9, "4.weight": 30}
REST = 2 * 4 * 81 + 6 * 16  # batch norm 2 per element, pooling 1

shares = st.floats(0.0, 1.0)
tables = st.dictionaries(st.sampled_from(list(MACS)), shares)


def forward(densities):
    return REST + sum(2 * macs * densities.get(name, 1.0) for name, macs in MACS.items())


# --- one network ----------------------------------------------------------------------------------


@given(tables)
def test_inference_scales_every_product_by_the_density_of_its_weight(densities):
    assert flops.inference_flops(COST, densities) == pytest.approx(forward(densities), rel=1e-12)


@given(tables)
def test_parameters_are_active_weights_and_all_the_rest(densities):
    model = small_network()
    expected = sum(p.numel() * densities.get(name, 1.0) for name, p in model.named_parameters())
    assert abs(flops.parameters(COST, densities) - expected) <= 0.5 + 1e-6


def test_dense_is_the_default():
    assert flops.inference_flops(COST) == flops.inference_flops(COST, {}) == COST.flops
    assert flops.parameters(COST) == COST.parameters
    assert flops.training_flops(COST, None, 10, 4) == 3 * 10 * 4 * COST.flops


def test_live_counts_give_whole_numbers_of_parameters():
    densities = {name: 7 / COST.sizes[name] for name in MACS}
    biases_and_norms = COST.parameters - sum(COST.sizes[name] for name in MACS)
    assert flops.parameters(COST, densities) == 3 * 7 + biases_and_norms


def test_a_number_stands_for_every_weight():
    every = dict.fromkeys(MACS, 0.25)
    assert flops.inference_flops(COST, 0.25) == flops.inference_flops(COST, every)
    assert flops.parameters(COST, 0.25) == flops.parameters(COST, every)


def test_a_module_name_stands_for_the_weights_in_it():
    named = flops.inference_flops(COST, {"3.0.weight": 0.5})
    assert flops.inference_flops(COST, {"3.0": 0.5}) == named
    assert flops.inference_flops(COST, {"3": 0.5}) == named
    assert flops.inference_flops(COST, {"": 0.5}) == flops.inference_flops(COST, 0.5)
    assert flops.parameters(COST, {"3.0": 0.0}) == COST.parameters - 6 * 4 * 9  # not the bias


@pytest.mark.parametrize("order", [1, -1])
def test_the_closest_name_wins_in_any_order(order):
    densities = dict([("", 0.9), ("3", 0.5), ("3.0.weight", 0.1)][::order])
    expected = {"0.weight": 0.9, "4.weight": 0.9, "3.0.weight": 0.1}
    assert flops.inference_flops(COST, densities) == flops.inference_flops(COST, expected)


def test_a_bias_may_be_named_and_costs_no_flops():
    assert flops.inference_flops(COST, {"4.bias": 0.2}) == COST.flops
    assert flops.parameters(COST, {"4.bias": 0.2}) == COST.parameters - 4


def test_names_of_wrapped_models_are_understood():
    for name in ("_orig_mod.3.0.weight", "module.3.0.weight", "3._orig_mod.0.weight"):
        assert flops.inference_flops(COST, {name: 0.5}) == flops.inference_flops(COST, {"3": 0.5})


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(ValueError, match=r"densities names '3.1.weight'.*nearest: '3.0.weight'"):
        flops.inference_flops(COST, {"3.1.weight": 0.5})
    with pytest.raises(ValueError, match="neither a parameter nor a module"):
        flops.parameters(COST, {"encoder": 0.5})
    with pytest.raises(ValueError, match="names '1', which is neither .* a module with weights"):
        flops.inference_flops(COST, {"1": 0.5})  # a norm


@pytest.mark.parametrize("value", [-0.1, 1.1, 90, math.nan, "0.5", None, True])
def test_a_density_outside_the_unit_interval_is_refused(value):
    with pytest.raises(
        ValueError, match=r"densities\['4.weight'\]=.* must be a number in \[0, 1\]"
    ):
        flops.inference_flops(COST, {"4.weight": value})
    if value is not None:
        with pytest.raises(ValueError, match=r"densities=.* must be a number in \[0, 1\]"):
            flops.parameters(COST, value)


# --- runs -----------------------------------------------------------------------------------------


def step_by_step(densities_at, steps, batch_size, update_every, events=()):
    """Training FLOPs, one optimizer step after the other."""
    total, densities = 0.0, {}
    for step in range(steps):
        if step % update_every == 0 or step in events:
            densities = densities_at(step / steps)
        total += 3 * batch_size * forward(densities)
    return total


@given(
    st.floats(0.05, 1.0),
    st.floats(0.05, 1.0),
    st.integers(1, 300),
    st.integers(1, 7),
    st.integers(1, 50),
)
def test_a_schedule_is_summed_exactly(initial, final, steps, batch, every):
    schedule = Cubic(initial, final, 0.1, 0.6)
    expected = step_by_step(lambda p: dict.fromkeys(MACS, schedule(p)), steps, batch, every)
    found = flops.training_flops(COST, schedule, steps, batch, update_every=every)
    assert found == pytest.approx(expected, rel=1e-12)


@given(st.integers(1, 300), st.integers(1, 50), st.floats(0.01, 0.5), st.floats(0.51, 0.99))
def test_phases_change_at_their_own_steps(steps, every, first, second):
    schedule = Phases((0.0, first, second), (1.0, 0.1, 1.0))
    events = schedule.events(steps)
    expected = step_by_step(lambda p: dict.fromkeys(MACS, schedule(p)), steps, 2, every, events)
    found = flops.training_flops(COST, schedule, steps, 2, update_every=every)
    assert found == pytest.approx(expected, rel=1e-12)


def test_layers_may_have_schedules_of_their_own():
    schedule = {"0": 0.5, "3.0.weight": Polynomial(0.8), "4": lambda p: 1 - p}

    def literal(p):
        return {"0.weight": 0.5, "3.0.weight": 0.8 * (1 - p) ** 0.01, "4.weight": 1 - p}

    expected = step_by_step(literal, 70, 3, 20)
    found = flops.training_flops(COST, schedule, 70, 3, update_every=20)
    assert found == pytest.approx(expected, rel=1e-12)
    assert flops.training_flops(COST, literal, 70, 3, update_every=20) == found


def test_events_of_single_layers_count_too():
    schedule = {"0": Phases((0.0, 0.33), (1.0, 0.5)), "3": Constant(0.5)}
    record = flops.density_record(COST, schedule, 100, update_every=50)
    assert [step for step, _ in record] == [0, 33, 50]
    assert record[1][1] == {"0.weight": 0.5, "3.0.weight": 0.5}


def test_half_the_weights_half_the_time():
    """Worked by hand: ten steps dense, ten steps at one half, four samples each."""
    products = 2 * sum(MACS.values())
    expected = 3 * 4 * (10 * (REST + products) + 10 * (REST + products / 2))
    schedule = Phases((0.0, 0.5), (1.0, 0.5))
    assert flops.training_flops(COST, schedule, 20, 4) == expected


def test_acdc_costs_its_phases():
    """AC/DC at 90 % on ImageNet: half of the epochs dense (mean density 0.55)."""
    epochs = "D" * 10 + ("S" * 5 + "D" * 5) * 6 + "S" * 5 + "D" * 10 + "S" * 15
    starts = [0] + [i for i in range(1, 100) if epochs[i] != epochs[i - 1]]
    values = tuple(1.0 if epochs[i] == "D" else 0.1 for i in starts)
    schedule = Phases(tuple(i / 100 for i in starts), values)
    steps = 100 * 37  # no multiple of the update interval
    run = flops.training_flops(COST, schedule, steps, update_every=1000)
    assert run == pytest.approx(3 * steps * forward(dict.fromkeys(MACS, 0.55)), rel=1e-9)


def test_growth_is_counted_apart_and_only_on_request():
    rest = 2 * 0.9 * sum(MACS.values())
    growth = flops.growth_flops(COST, 0.1, steps=1000, batch_size=8)
    assert growth == pytest.approx(9 * 8 * rest)  # after steps 100, ..., 900, not after the last
    plain = flops.training_flops(COST, 0.1, 1000, 8)
    assert flops.training_flops(COST, 0.1, 1000, 8, include_growth=True) == plain + growth
    assert flops.growth_flops(COST, 0.1, 1000, 8, stop=0.75) == pytest.approx(7 * 8 * rest)
    assert flops.growth_flops(COST, None, 1000, 8) == 0.0


def test_growth_uses_the_densities_of_the_step_that_gives_the_gradient():
    """The gradient of step 100 is taken before the density falls at step 100."""
    record = [(0, 1.0), (100, 0.5)]
    half = sum(MACS.values())
    assert flops.run_cost(COST, record, 300, growth_steps=[100]).growth == 0.0
    assert flops.run_cost(COST, record, 300, growth_steps=[101, 300]).growth == 2 * half
    assert flops.run_cost(COST, record, 300, growth_steps=[0, 301]).growth == 0.0


# --- records --------------------------------------------------------------------------------------


def test_a_record_is_summed_up_to_any_step():
    record = [(0, {"3": 0.5}), (30, {"3": 0.25}), (50, {"3": 0.25, "4": 0.0})]
    one, two, three = (forward(d) for d in (
        {"3.0.weight": 0.5}, {"3.0.weight": 0.25}, {"3.0.weight": 0.25, "4.weight": 0.0}
    ))  # fmt: skip
    for steps, expected in [(10, 10 * one), (40, 30 * one + 10 * two),
                            (60, 30 * one + 20 * two + 10 * three)]:  # fmt: skip
        run = flops.run_cost(COST, record, steps, batch_size=2)
        assert run.training == pytest.approx(3 * 2 * expected)
        assert run.dense == 3 * 2 * steps * COST.flops
        assert run.share == run.training / run.dense
        assert run.steps == steps and run.growth == 0.0
    assert run.inference == pytest.approx(three)
    assert run.parameters == flops.parameters(COST, {"3": 0.25, "4": 0.0})
    assert flops.run_cost(COST, record, 30).inference == pytest.approx(two)


def test_a_run_prints_its_share_of_dense():
    text = str(flops.run_cost(COST, [(0, 1.0), (5, 0.0)], 10, growth_steps=[6]))
    assert text.startswith("10 steps: ") and "% of dense" in text
    assert f"{REST:,} FLOPs per sample" in text


def test_a_run_of_no_steps_costs_nothing():
    run = flops.run_cost(COST, [(0, 0.5)], steps=0)
    assert (run.training, run.dense) == (0.0, 0.0) and math.isnan(run.share)
    assert run.inference == flops.inference_flops(COST, 0.5)


@pytest.mark.parametrize("schedule", [None, 0.5, Cubic(0.8, 0.3), {"4.weight": 0.5}])
def test_a_planned_run_of_no_steps_costs_nothing(schedule):
    assert flops.training_flops(COST, schedule, steps=0, include_growth=True) == 0.0
    assert flops.growth_flops(COST, schedule, steps=0) == 0.0
    assert [step for step, _ in flops.density_record(COST, schedule, 0)] == [0]


def test_whole_numbers_may_be_written_as_floats():
    schedule = Cubic(0.8, 0.3)
    wanted = flops.training_flops(COST, schedule, 1000, include_growth=True, update_every=50)
    found = flops.training_flops(COST, schedule, 1e3, include_growth=True, update_every=50.0)
    assert found == wanted
    assert isinstance(flops.run_cost(COST, [(0, 0.5)], 1e3).steps, int)


def test_a_planned_record_costs_what_its_schedule_costs():
    schedule = Cubic(0.8, 0.3, 0.0, 0.5)
    record = flops.density_record(COST, schedule, 500, update_every=30)
    run = flops.run_cost(COST, record, 500, 7)
    assert run.training == flops.training_flops(COST, schedule, 500, 7, update_every=30)
    assert [step for step, _ in record] == list(range(0, 500, 30))


@pytest.mark.parametrize("record", [[], [(1, 0.5)], [(0, 0.5), (9, 0.5), (5, 0.5)]])
def test_a_record_that_has_gaps_or_no_order_is_refused(record):
    with pytest.raises(ValueError, match="the first at step 0"):
        flops.run_cost(COST, record, 10)


def test_a_bad_schedule_names_the_step():
    with pytest.raises(ValueError, match=r"the schedule at step 100 of 200: densities=1.5 must"):
        flops.training_flops(COST, lambda p: 0.5 + 2 * p, 200)
    with pytest.raises(ValueError, match=r"the schedule at step 0 of 200: densities names 'x'"):
        flops.training_flops(COST, {"x": 0.5}, 200)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"steps": -1}, "steps=-1"),
        ({"steps": 1.5}, "steps=1.5"),
        ({"steps": math.nan}, "steps=nan"),
        ({"steps": "10"}, "steps='10'"),
        ({"steps": 10, "batch_size": math.inf}, "batch_size=inf"),
        ({"steps": 10, "batch_size": 0}, "batch_size=0"),
        ({"steps": 10, "update_every": 0}, "update_every=0"),
    ],
)
def test_bad_lengths_are_refused(arguments, name):
    for function in (flops.training_flops, flops.growth_flops):
        with pytest.raises(ValueError, match=name):
            function(COST, 0.5, **arguments)


# --- the paper ------------------------------------------------------------------------------------


def test_training_flops_of_dense_vgg16_are_those_of_the_paper():
    cost = flops.count(models.vgg16(), torch.zeros(1, 3, 32, 32))
    run = flops.training_flops(cost, None, steps=160 * 500, batch_size=100)
    assert run == 3 * cost.flops * 50_000 * 160
    assert round(run / 1e16, 2) == 1.51
