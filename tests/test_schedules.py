"""Schedules: golden values, and what holds of every one of them."""

import copy
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseopt.schedules import (
    Constant,
    Cosine,
    Cubic,
    Linear,
    Phases,
    Polynomial,
    Scaled,
    Sigmoid,
    starting_at,
)

FRACTIONS = st.floats(0, 1)
DECAYS = st.one_of(
    st.builds(Linear, FRACTIONS),
    st.builds(Cosine, FRACTIONS),
    st.builds(Polynomial, FRACTIONS, st.floats(0.001, 5)),
)
RAMPS = st.one_of(
    st.builds(Cubic, FRACTIONS, FRACTIONS),
    st.builds(Sigmoid, FRACTIONS, FRACTIONS, steepness=st.floats(0.5, 20)),
    st.builds(Cubic, FRACTIONS, FRACTIONS, st.floats(0, 0.4), st.floats(0.5, 1)),
    st.builds(Sigmoid, FRACTIONS, FRACTIONS, st.floats(0, 0.4), st.floats(0.5, 1)),
)
ALL = st.one_of(DECAYS, RAMPS, st.builds(Constant, FRACTIONS))


def values(schedule, *progress):
    return [schedule(p) for p in progress]


def test_golden_decays():  # G1
    quarters = (0, 0.25, 0.5, 0.75, 1)
    assert values(Cosine(0.3), *quarters) == pytest.approx(
        [0.3, 0.2560660, 0.15, 0.0439340, 0], abs=5e-8
    )
    assert values(Cosine(0.5, end=0.005), 0, 0.5, 1) == pytest.approx([0.5, 0.2525, 0.005])
    assert values(Polynomial(0.1), 0, 0.5, 0.9, 0.99, 1) == pytest.approx(
        [0.1, 0.0993092, 0.0977237, 0.0954993, 0], abs=5e-8
    )
    assert values(Polynomial(0.3, power=3), 0.25, 0.5, 0.75) == pytest.approx(
        [0.1265625, 0.0375, 0.0046875]
    )
    assert values(Linear(0.4), *quarters) == pytest.approx([0.4, 0.3, 0.2, 0.1, 0])


def test_golden_cubic_and_sigmoid():  # G2, G3
    quarters = (0, 0.25, 0.5, 0.75, 1)
    assert values(Cubic(0.8, 0.3), *quarters) == pytest.approx(
        [0.8, 0.5109375, 0.3625, 0.3078125, 0.3]
    )
    assert values(Sigmoid(0.5, 0.95), *quarters) == pytest.approx(
        [0.5, 0.5203295, 0.725, 0.9296705, 0.95], abs=5e-8
    )
    ends = [Cubic(1.0, 0.0)(k / 4) for k in range(4)]
    assert sum(ends) / 4 == pytest.approx(25 / 64)


@given(DECAYS)
def test_a_decay_starts_at_its_value_never_rises_and_ends_at_zero(schedule):  # invariant 17
    course = [schedule(k / 50) for k in range(51)]
    assert course[0] == schedule.start
    assert all(a >= b >= 0 for a, b in zip(course, course[1:], strict=False))
    assert course[-1] == 0


@given(RAMPS)
def test_a_ramp_meets_both_ends_exactly_and_stays_between(schedule):
    course = [schedule(k / 50) for k in range(51)]
    assert (course[0], course[-1]) == (schedule.initial, schedule.final)
    low, high = sorted((schedule.initial, schedule.final))
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in course)
    steps = [b - a for a, b in zip(course, course[1:], strict=False)]
    assert all(s >= -1e-12 for s in steps) or all(s <= 1e-12 for s in steps)


@given(ALL, st.floats(-10, 10))
def test_a_schedule_is_finite_everywhere_and_holds_its_ends_outside(schedule, progress):
    value = schedule(progress)
    assert isinstance(value, float) and math.isfinite(value)
    if progress >= 1:
        assert value == schedule(1.0)
    if progress <= 0:
        assert value == schedule(0.0)


@given(ALL)
def test_schedules_print_compare_copy_and_pickle(schedule):
    names = {kind.__name__: kind for kind in (Constant, Cosine, Cubic, Linear, Polynomial, Sigmoid)}
    assert eval(repr(schedule), names) == schedule
    assert copy.deepcopy(schedule) == schedule == pickle.loads(pickle.dumps(schedule))
    assert hash(schedule) == hash(copy.deepcopy(schedule))
    with pytest.raises(AttributeError):
        schedule.start = 0.5


def test_phases_hold_their_values_and_name_their_jumps():
    phases = Phases((0.0, 0.25, 0.5), (1.0, 0.1, 1.0))
    assert values(phases, 0, 0.2, 0.25, 0.49, 0.5, 1) == [1, 1, 0.1, 0.1, 1, 1]
    assert phases.events(40) == (10, 20)
    for step in phases.events(40):
        assert phases(step / 40) != phases((step - 1) / 40)


@given(st.integers(2, 500), st.data())
def test_a_phase_begins_at_the_step_that_it_announces(total, data):
    start = data.draw(st.integers(1, total - 1))
    phases = Phases((0.0, start / total), (1.0, 0.5))
    assert phases.events(total) == (start,)
    assert phases((start - 1) / total) == 1.0 and phases(start / total) == 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: Cubic(0.8, 0.3, start=0.6, stop=0.5),
        lambda: Sigmoid(0.8, 0.3, start=-0.1),
        lambda: Cubic(0.8, 0.3, stop=1.5),
        lambda: Phases((0.1,), (1.0,)),
        lambda: Phases((0.0, 0.5, 0.5), (1.0, 0.5, 1.0)),
        lambda: Phases((0.0, 0.5), (1.0,)),
        lambda: Phases((), ()),
        lambda: Sigmoid(0.8, 0.3, steepness=0.0),
        lambda: Sigmoid(0.8, 0.3, steepness=math.nan),
        lambda: Polynomial(0.1, power=-1.0),
        lambda: Polynomial(0.1, power=0.0),
    ],
)
def test_windows_and_phases_that_make_no_sense_are_refused(make):
    with pytest.raises(ValueError, match="start|values|steepness|power"):
        make()


def test_a_number_changes_the_start_and_a_schedule_replaces():
    assert starting_at(Cosine(0.3, end=0.01), 0.2) == Cosine(0.2, end=0.01)
    assert starting_at(Cosine(0.3), Linear(0.2)) == Linear(0.2)
    assert starting_at(Polynomial(0.1, power=2), 1) == Polynomial(1.0, power=2)


@pytest.mark.parametrize("schedule", [Scaled(Cosine(0.3), 0.5), Phases((0.0,), (0.3,)), abs])
def test_a_number_is_refused_where_there_is_no_start(schedule):
    assert starting_at(schedule, Linear(0.2)) == Linear(0.2)
    with pytest.raises(TypeError, match="drop_fraction=0.2: .* has no start"):
        starting_at(schedule, 0.2)
