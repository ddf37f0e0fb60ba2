"""Growth scores, relative importance and percolation against literal path enumeration."""

import time

import pytest
import references_links as reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseopt import links
from sparseopt.links import ch2_l3n, ch2_l3p, ch3_l3n, ch3_l3p, percolate, relative_importance

SCORES = {
    ch2_l3n: lambda m: reference.by_nodes(m, local=True),
    ch3_l3n: lambda m: reference.by_nodes(m, local=False),
    ch2_l3p: lambda m: reference.by_paths(m, local=True),
    ch3_l3p: lambda m: reference.by_paths(m, local=False),
}
every_score = pytest.mark.parametrize("score", SCORES, ids=lambda f: f.__name__)


SIZES = st.integers(1, 9)


@st.composite
def masks(draw, rows=SIZES, columns=SIZES):
    shape = draw(rows), draw(columns)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    return torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]))


def literal(score, mask: torch.Tensor) -> torch.Tensor:
    return torch.tensor(SCORES[score](mask.int().tolist()), dtype=torch.float64)


@every_score
@given(mask=masks())
def test_scores_equal_literal_path_enumeration(score, mask):
    torch.testing.assert_close(score(mask, dtype=torch.float64), literal(score, mask))
    torch.testing.assert_close(score(mask), literal(score, mask).float())


@every_score
@given(mask=masks(rows=st.integers(2, 12), columns=st.integers(2, 4)))
def test_scores_of_uneven_layers_equal_literal_path_enumeration(score, mask):
    for each in (mask, mask.T):
        torch.testing.assert_close(score(each, dtype=torch.float64), literal(score, each))


@every_score
@given(mask=masks())
def test_a_score_is_positive_exactly_where_a_path_of_length_three_exists(score, mask):
    rows, found = mask.int().tolist(), score(mask)
    for i, row in enumerate(rows):
        for a, linked in enumerate(row):
            assert (found[i, a] > 0) == (not linked and bool(reference.paths(rows, i, a)))
    assert (found >= 0).all() and found.isfinite().all()


@every_score
@given(mask=masks())
def test_transposing_a_mask_transposes_its_scores(score, mask):
    torch.testing.assert_close(score(mask.T), score(mask).T)


@every_score
@given(mask=masks(), seed=st.integers(0, 99))
def test_reordering_neurons_reorders_the_scores(score, mask, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(mask.shape[0], generator=generator)
    columns = torch.randperm(mask.shape[1], generator=generator)
    torch.testing.assert_close(score(mask[rows][:, columns]), score(mask)[rows][:, columns])


@every_score
def test_scores_of_a_convolution_are_those_of_its_flattened_matrix(score):
    mask = torch.rand(6, 3, 2, 2, generator=torch.Generator().manual_seed(0)) < 0.3
    expected = score(mask.flatten(1))
    assert torch.equal(score(mask), expected.view(6, 3, 2, 2))
    strided = mask.contiguous(memory_format=torch.channels_last)
    assert torch.equal(score(strided), expected.view(6, 3, 2, 2))


@every_score
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (1, 1), (1, 5), (5, 1)])
def test_layers_too_small_for_a_path_score_zero(score, shape):
    found = score(torch.ones(shape, dtype=torch.bool))
    assert found.shape == shape and not found.any()


@every_score
def test_scores_need_a_matrix(score):
    with pytest.raises(ValueError, match=r"mask has shape \(4,\)"):
        score(torch.ones(4, dtype=torch.bool))


@every_score
def test_scores_are_no_whole_numbers(score):
    with pytest.raises(ValueError, match="dtype=torch.int64 must be a floating-point type"):
        score(torch.ones(4, 4, dtype=torch.bool), torch.int64)


@every_score
def test_counts_stay_exact_under_autocast(score):
    mask = torch.rand(40, 700, generator=torch.Generator().manual_seed(0)) < 0.8
    expected = score(mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(mask), expected)


@pytest.mark.parametrize("score", [ch2_l3n, ch3_l3n])
def test_node_scores_do_not_depend_on_the_block_size(score, monkeypatch):
    mask = torch.rand(37, 53, generator=torch.Generator().manual_seed(0)) < 0.2
    expected = score(mask, dtype=torch.float64)
    monkeypatch.setattr(links, "BLOCK", 5 * 37)
    torch.testing.assert_close(score(mask, dtype=torch.float64), expected)


@pytest.mark.parametrize("score", [ch2_l3p, ch3_l3p])
@given(mask=masks())
def test_path_scores_are_the_same_however_shared_links_are_counted(score, mask):
    found = {}
    for at_once in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            counted = (lambda inputs, rows: inputs @ inputs.T) if at_once else (lambda *_: None)
            patch.setattr(links, "_counted", counted)
            found[at_once] = score(mask, dtype=torch.float64)
    torch.testing.assert_close(found[True], found[False])
    torch.testing.assert_close(found[True], literal(score, mask))


def test_path_score_of_a_wide_layer_takes_less_than_two_seconds():
    mask = torch.rand(1568, 1568, generator=torch.Generator().manual_seed(0)) < 0.05
    start = time.process_time()
    ch3_l3p(mask)
    assert time.process_time() - start < 2.0


WEIGHT = torch.tensor([[1.0, 2.0, 0.0], [0.0, 2.0, 4.0], [3.0, 0.0, 0.0]])


def test_relative_importance_of_a_worked_example():
    expected = torch.tensor([[0.5833333, 1.1666667, 0], [0, 0.8333333, 1.6666667], [1.75, 0, 0]])
    torch.testing.assert_close(relative_importance(WEIGHT), expected)
    expected = torch.tensor([[0.9, 1.8, 0], [0, 1.3714286, 2.7428571], [2.7, 0, 0]])
    torch.testing.assert_close(relative_importance(WEIGHT, alpha=0.5), expected)
    torch.testing.assert_close(relative_importance(WEIGHT, alpha=1.0), 2 * WEIGHT)


@given(mask=masks(), alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_relative_importance_equals_its_formula(mask, alpha, seed):
    weight = torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)).double() * mask
    expected = reference.relative_importance(weight.tolist(), alpha)
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(relative_importance(weight, alpha), expected)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_relative_importance_refuses_alpha_outside_zero_to_one(alpha):
    with pytest.raises(ValueError, match="alpha="):
        relative_importance(WEIGHT, alpha)


def test_relative_importance_does_not_overflow_in_half_precision():
    assert (relative_importance(torch.full((3, 70000), 2.0, dtype=torch.float16)) > 0).all()


def test_percolation_of_a_worked_example():
    first, second = torch.eye(2, dtype=torch.bool), torch.tensor([[True, False]])
    after = percolate({"a": first, "b": second}, [["a", "b"]])
    assert after["a"].tolist() == [[True, False], [False, False]]
    assert torch.equal(after["b"], second)
    assert first.sum() == 2


@st.composite
def chains(draw):
    widths = draw(st.lists(st.integers(1, 6), min_size=3, max_size=6))
    sizes = zip(widths[1:], widths, strict=False)
    return [draw(masks(st.just(out), st.just(inputs))) for out, inputs in sizes]


@given(chains())
def test_percolation_equals_two_literal_sweeps(layers):
    names = [f"layer{i}" for i in range(len(layers))]
    after = percolate(dict(zip(names, layers, strict=True)), [names])
    expected = reference.percolate([mask.int().tolist() for mask in layers])
    assert [after[name].int().tolist() for name in names] == expected


@given(chains().filter(lambda layers: len(layers) == 2))
@settings(max_examples=50)
def test_percolation_of_two_layers_leaves_no_neuron_half_connected(layers):
    once = percolate({"a": layers[0], "b": layers[1]}, [["a", "b"]])
    assert torch.equal(once["a"].any(1), once["b"].any(0))
    assert (once["a"] <= layers[0]).all() and (once["b"] <= layers[1]).all()
    twice = percolate(once, [["a", "b"]])
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_percolation_crosses_convolutions_by_channel():
    first = torch.ones(3, 2, 3, 3, dtype=torch.bool)
    second = torch.zeros(4, 3, 2, 3, dtype=torch.bool)  # two links, from channels 0 and 2
    second[0, 0, 1, 2] = second[1, 2, 0, 0] = True
    strided = first.contiguous(memory_format=torch.channels_last)
    second = second.contiguous(memory_format=torch.channels_last)
    after = percolate({"one": strided, "two": second}, [["one", "two"]])
    assert after["one"].flatten(1).any(1).tolist() == [True, False, True]
    assert torch.equal(after["two"], second)
    turned = second.transpose(2, 3)  # whose kernel cannot be seen as one dimension
    assert torch.equal(percolate({"one": first, "two": turned}, [["one", "two"]])["two"], turned)
    fed_by_none = percolate({"one": torch.zeros_like(first), "two": second}, [["one", "two"]])
    assert not fed_by_none["two"].any()


def test_percolation_crosses_a_flatten_by_the_columns_of_each_channel():
    conv = torch.ones(3, 2, 3, 3, dtype=torch.bool)
    linear = torch.zeros(5, 12, dtype=torch.bool)
    linear[0, 1] = linear[4, 11] = True  # channels 0 and 2, four columns each
    after = percolate({"conv": conv, "linear": linear}, [["conv", "linear"]])
    assert after["conv"].flatten(1).any(1).tolist() == [True, False, True]
    conv[2] = False
    after = percolate({"conv": conv, "linear": linear}, [["conv", "linear"]])
    assert after["linear"].nonzero().tolist() == [[0, 1]]


def test_percolation_leaves_layers_outside_the_chains_alone():
    some = {name: torch.zeros(2, 2, dtype=torch.bool) for name in "ab"}
    other = torch.eye(3, dtype=torch.bool)
    after = percolate({**some, "other": other}, [["a", "b"]])
    assert torch.equal(after["other"], other) and after["other"] is not other


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (["fc1"], "at least two layer names"),
        ("fc1", "at least two layer names"),
        (["fc1", "fc3"], r"no sparse layer is called 'fc3'; near: \['fc2', 'fc1', 'bias'\]"),
        (["fc1", "fc2", "fc1"], "names a layer twice"),
        (["fc1", "bias"], r"'bias' has shape \(4,\); it needs outputs and inputs"),
        (["fc2", "fc1"], r"'fc2' of shape \(2, 4\) cannot feed 'fc1' of shape \(4, 6\)"),
    ],
)
def test_chains_that_do_not_fit_are_named(chain, message):
    layers = {"fc1": torch.ones(4, 6) > 0, "fc2": torch.ones(2, 4) > 0, "bias": torch.ones(4) > 0}
    with pytest.raises(ValueError, match=message):
        percolate(layers, [chain])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every_score
def test_scores_on_a_gpu_equal_those_on_the_cpu(score):
    mask = torch.rand(64, 96, generator=torch.Generator().manual_seed(0)) < 0.1
    torch.testing.assert_close(score(mask.cuda()).cpu(), score(mask))
