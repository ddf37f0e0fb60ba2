"""Exact selection: the k best, k in proportion to a score, k of the candidates."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparseopt.select import choose, sample, top_k

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# Few distinct values, so that ties, zeros and infinities are common.
VALUES = st.sampled_from([-math.inf, -2.0, -0.0, 0.0, 0.25, 0.5, 1.0, 3.0, math.inf])
SHAPES = st.lists(st.integers(0, 6), min_size=0, max_size=4)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def top_k_by_sorting(score: torch.Tensor, k: int) -> torch.Tensor:
    values = score.flatten().tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    mask = [False] * len(values)
    for i in order[:k]:
        assert values[i] > -math.inf
        mask[i] = True
    return torch.tensor(mask, dtype=torch.bool).view(score.shape)


@st.composite
def scores(draw, values=VALUES):
    shape = draw(SHAPES)
    flat = draw(st.lists(values, min_size=math.prod(shape), max_size=math.prod(shape)))
    return torch.tensor(flat, dtype=draw(st.sampled_from(DTYPES))).view(shape)


@given(scores(), st.data())
def test_top_k_equals_a_stable_sort(score, data):
    k = data.draw(st.integers(0, int((score != -math.inf).sum())))
    assert torch.equal(top_k(score, k), top_k_by_sorting(score, k))


@given(st.integers(1, 400), st.integers(0, 2**31), st.data())
def test_top_k_of_distinct_scores_equals_a_sort(size, seed, data):
    score = torch.randn(size, generator=rng(seed), dtype=torch.float64)
    k = data.draw(st.integers(0, size))
    assert torch.equal(top_k(score, k), top_k_by_sorting(score, k))


def test_top_k_on_eight_numbers():
    score = torch.tensor([0.3, 0.9, 0.3, 0.0, 0.3, -math.inf, 0.1, 0.9])
    assert top_k(score, 3).nonzero().flatten().tolist() == [0, 1, 7]
    assert top_k(score, 4).nonzero().flatten().tolist() == [0, 1, 2, 7]
    assert top_k(score, 7).nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 6, 7]


@given(scores(), st.integers(0, 100))
def test_top_k_refuses_more_entries_than_lie_above_minus_infinity(score, excess):
    allowed = int((score != -math.inf).sum())
    with pytest.raises(ValueError, match=f"k={allowed + 1 + excess} must be between 0 and"):
        top_k(score, allowed + 1 + excess)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_top_k_refuses_nan_for_any_k(k):
    with pytest.raises(ValueError, match="score holds 1 NaN"):
        top_k(torch.tensor([1.0, math.nan, 2.0]), k)


def test_top_k_counts_positions_in_row_major_order_whatever_the_strides():
    score = torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    assert top_k(score, 7).flatten().nonzero().flatten().tolist() == list(range(7))
    assert top_k(score.transpose(0, 3), 7).flatten()[:7].all()


def test_top_k_leaves_the_score_alone_and_needs_no_gradient():
    score = torch.tensor([1.0, 3.0, 2.0], requires_grad=True)
    mask = top_k(score, 2)
    assert score.tolist() == [1.0, 3.0, 2.0] and not mask.requires_grad


def test_top_k_ranks_integers_and_bools():
    assert top_k(torch.tensor([3, -1, 2]), 2).tolist() == [True, False, True]
    assert top_k(torch.tensor([False, True, True]), 1).tolist() == [False, True, False]


@given(scores(st.sampled_from([-math.inf, 0.0, 0.0, 0.5, 1.0, 3.0])), st.integers(0, 99), st.data())
def test_sample_takes_exactly_k_and_zeros_only_after_all_positive(score, seed, data):
    allowed = score != -math.inf
    k = data.draw(st.integers(0, int(allowed.sum())))
    mask = sample(score, k, rng(seed))
    assert mask.shape == score.shape and mask.sum() == k and not (mask & ~allowed).any()
    positive = score > 0
    assert (mask & positive).sum() == min(k, int(positive.sum()))
    assert torch.equal(mask, sample(score, k, rng(seed)))


@given(st.integers(1, 60), st.integers(0, 99), st.data())
def test_sample_draws_candidates_only_and_ignores_scores_elsewhere(size, seed, data):
    candidates = torch.rand(size, generator=rng(seed)) < 0.5
    score = torch.rand(size, generator=rng(seed + 1)).masked_fill(~candidates, math.nan)
    k = data.draw(st.integers(0, int(candidates.sum())))
    mask = sample(score, k, rng(seed), candidates=candidates)
    assert mask.sum() == k and not (mask & ~candidates).any()


def shares(draw, runs: int, size: int) -> torch.Tensor:
    generator = rng(1)
    return torch.stack([draw(generator) for _ in range(runs)]).double().mean(0).view(size)


def assert_close_shares(seen: torch.Tensor, expected: torch.Tensor, runs: int) -> None:
    sigma = (expected * (1 - expected) / runs).sqrt()
    assert ((seen - expected).abs() <= 5 * sigma + 1e-12).all(), (seen, expected)


def inclusion(weights: list[float], k: int) -> list[float]:
    """Probability of every entry to be among k drawn one by one in proportion to weights."""
    if k == 0:
        return [0.0] * len(weights)
    result = [0.0] * len(weights)
    total = sum(weights)
    for first, weight in enumerate(weights):
        if weight == 0:
            continue
        rest = [0.0 if i == first else w for i, w in enumerate(weights)]
        later = inclusion(rest, k - 1)
        for i in range(len(weights)):
            result[i] += weight / total * (1.0 if i == first else later[i])
    return result


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("power", [1.0, 3.0, 0.0])
def test_sample_follows_the_law_of_successive_drawing(k, power):
    score, runs = torch.tensor([0.1, 1.0, 0.5, 2.0]), 4000
    seen = shares(lambda g: sample(score, k, g, power=power), runs, 4)
    expected = torch.tensor(inclusion((score.double() ** power).tolist(), k), dtype=torch.float64)
    assert_close_shares(seen, expected, runs)


def test_sample_fills_up_uniformly_among_zeros():
    score, runs = torch.tensor([0.0, 2.0, 0.0, -math.inf, 0.0]), 4000
    seen = shares(lambda g: sample(score, 2, g), runs, 5)
    assert_close_shares(seen, torch.tensor([1, 3, 1, 0, 1], dtype=torch.float64) / 3, runs)


def test_sample_does_not_underflow_at_high_powers():
    # 1e-20 ** 9 and 1e-30 ** 9 are zero even in float64; their ratio says the first is chosen.
    score = torch.tensor([1e-30, 1e-20])
    assert sample(score, 1, rng(), power=9.0).tolist() == [False, True]


def test_sample_approaches_top_k_as_the_power_grows():
    score = torch.rand(50, generator=rng(3))
    assert torch.equal(sample(score, 20, rng(), power=1e9), top_k(score, 20))


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_sample_refuses_scores_that_are_no_weights(bad):
    with pytest.raises(ValueError, match="must be finite and at least 0"):
        sample(torch.tensor([1.0, bad]), 1, rng())


@pytest.mark.parametrize("power", [-1.0, math.nan, math.inf])
def test_sample_refuses_a_power_that_is_negative_or_infinite(power):
    with pytest.raises(ValueError, match="power="):
        sample(torch.ones(2), 1, rng(), power=power)


@given(st.lists(st.booleans(), max_size=80), st.integers(0, 99), st.data())
def test_choose_draws_exactly_k_candidates(flags, seed, data):
    candidates = torch.tensor(flags, dtype=torch.bool)
    k = data.draw(st.integers(0, int(candidates.sum())))
    mask = choose(candidates, k, rng(seed))
    assert mask.sum() == k and not (mask & ~candidates).any()
    assert torch.equal(mask, choose(candidates, k, rng(seed)))
    assert candidates.tolist() == flags


@pytest.mark.parametrize("k", [1, 3, 6, 9])
def test_choose_is_uniform_over_candidates(k):
    candidates, runs = torch.ones(12, dtype=torch.bool), 4000
    candidates[[2, 7]] = False
    seen = shares(lambda g: choose(candidates, k, g), runs, 12)
    assert_close_shares(seen, candidates.double() * k / 10, runs)


def test_choose_draws_every_pair_equally_often():
    runs, counts = 6000, {}
    generator = rng(5)
    for _ in range(runs):
        mask = choose(torch.ones(4, dtype=torch.bool), 2, generator)
        pair = tuple(mask.nonzero().flatten().tolist())
        counts[pair] = counts.get(pair, 0) + 1
    assert len(counts) == 6
    # chi-square with 5 degrees of freedom passes 20.5 once in a thousand.
    assert sum((n - runs / 6) ** 2 / (runs / 6) for n in counts.values()) < 20.5


@given(st.integers(0, 99), st.integers(0, 99))
def test_choose_and_sample_do_not_touch_the_global_stream(seed, k):
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    choose(torch.ones(100, dtype=torch.bool), k, rng(seed))
    sample(torch.ones(100), k, rng(seed))
    assert torch.equal(torch.get_rng_state(), before)


def test_choose_does_not_depend_on_memory_layout():
    candidates = torch.rand(4, 6, 3, 2, generator=rng()) < 0.7
    strided = candidates.contiguous(memory_format=torch.channels_last)
    assert torch.equal(choose(candidates, 20, rng()), choose(strided, 20, rng()))


@pytest.mark.parametrize("k", [-1, 4])
@pytest.mark.parametrize("select", [top_k, sample, choose])
def test_k_out_of_range_is_refused(select, k):
    entries = torch.ones(3, dtype=torch.bool)
    with pytest.raises(ValueError, match=f"k={k} must be between 0 and 3"):
        select(entries, k) if select is top_k else select(entries, k, rng())


@pytest.mark.parametrize("k", [1.0, "2", None])
def test_k_must_be_a_whole_number(k):
    with pytest.raises(TypeError, match="k=.* must be a whole number"):
        top_k(torch.ones(3), k)


def test_wrong_kinds_of_input_are_named():
    with pytest.raises(TypeError, match="score must be a real tensor, not list"):
        top_k([1.0, 2.0], 1)
    with pytest.raises(TypeError, match="score must be a real tensor, not torch.complex64"):
        top_k(torch.ones(2, dtype=torch.complex64), 1)
    with pytest.raises(TypeError, match="candidates must be a bool tensor, not torch.float32"):
        choose(torch.ones(3), 1, rng())
    with pytest.raises(ValueError, match=r"candidates of shape \(2,\)"):
        sample(torch.ones(3), 1, rng(), candidates=torch.ones(2, dtype=torch.bool))
    with pytest.raises(TypeError, match="generator must be a torch.Generator, not int"):
        choose(torch.ones(3, dtype=torch.bool), 1, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_device_does_not_change_the_choice(dtype):
    score = torch.rand(300, 40, generator=rng()).to(dtype).masked_fill(torch.rand(300, 40) < 0.3, 0)
    for k in (0, 1, 3000, 12000):
        assert torch.equal(top_k(score.cuda(), k).cpu(), top_k(score, k))
        assert torch.equal(sample(score.cuda(), k, rng()).cpu(), sample(score, k, rng()))
        assert torch.equal(choose(score.cuda() >= 0, k, rng()).cpu(), choose(score >= 0, k, rng()))
