"""CHT, CHTs, CHTss: link prediction, percolation, soft choices, early stop."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from common import Still, assert_zeros
from hypothesis import given, settings
from torch import Tensor, nn

from sparseopt import SparseOptimizer, links, topologies
from sparseopt.algorithms import cht, chts, chtss
from sparseopt.algorithms.hebbian import STOPPED, Softness, best_then_random
from sparseopt.layers import Layer
from sparseopt.schedules import Sigmoid
from sparseopt.scores import Context, LinkPrediction, RelativeImportance, magnitude
from sparseopt.select import top_k
from sparseopt.update import Levels, plan

HARD = Levels(0.3, None, 0.3)


def layer_of(shape: tuple[int, ...], density: float, seed: int = 0, name: str = "fc") -> Layer:
    source = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=source)
    layer = Layer(name, weight, (0, 0))
    k = math.floor(density * weight.numel())
    layer.set_mask(top_k(torch.rand(shape, generator=source), k))
    weight.mul_(layer.mask)
    return layer


# --- removal --------------------------------------------------------------------------------------


def test_golden_relative_importance() -> None:
    layer = Layer("fc", torch.tensor([[1.0, -2.0, 0.0], [0.0, 2.0, 4.0], [-3.0, 0.0, 0.0]]), (0, 0))
    layer.set_mask(layer.weight != 0)
    shares = RelativeImportance()(layer, Context())
    assert shares[layer.mask].tolist() == pytest.approx(
        [0.5833333, 1.1666667, 0.8333333, 1.6666667, 1.75]
    )
    between = RelativeImportance(0.5)(layer, Context())
    assert between[layer.mask].tolist() == pytest.approx([0.9, 1.8, 1.3714286, 2.7428571, 2.7])


def test_golden_exponents_of_the_soft_drop() -> None:
    for delta, exponent in ((0.5, 1.0), (0.6, 1.5), (0.75, 3.0), (0.9, 9.0)):
        assert Softness(delta, delta)(0.3) == pytest.approx(exponent)
    rising = Softness(0.5, 0.75)
    assert [rising(p) for p in (0.0, 0.4, 1.0, 2.0)] == pytest.approx([1.0, 1.5, 3.0, 3.0])


def test_importance_counts_active_weights_only() -> None:
    layer = Layer("fc", torch.ones(2, 2), (0, 0))
    layer.set_mask(torch.eye(2, dtype=torch.bool))
    assert RelativeImportance()(layer, Context()).tolist() == [[2.0, 0.0], [0.0, 2.0]]


def test_a_hard_drop_removes_the_smallest() -> None:
    layer = layer_of((12, 10), 0.3)
    (change,) = plan([layer], cht(0.7), HARD, Context())
    worth = layer.weight.abs().masked_fill(~layer.mask, -math.inf)
    kept = top_k(worth, layer.nnz - math.floor(0.3 * layer.nnz))
    assert (change.mask & kept == kept).all()


def test_a_soft_drop_is_sampled_by_the_score() -> None:
    """One of two weights, 1 and 3, is kept: the 3 with probability 1/2, 3/4, 27/28."""
    layer = Layer("fc", torch.tensor([[1.0, 3.0]]), (0, 0))
    for delta, share in ((0.0, 1 / 2), (0.5, 3 / 4), (0.75, 27 / 28)):
        algorithm = cht(0.5, soft_drop=True, grow="random", delta=(delta, delta),
                        regrow_same="reset", early_stop=None)  # fmt: skip
        kept = 0
        for seed in range(400):
            (change,) = plan([layer], algorithm, Levels(1.0, None, 0.5), Context(seed=seed))
            kept += int(change.fresh[0, 0])
        assert kept / 400 == pytest.approx(share, abs=4 * (share * (1 - share) / 400) ** 0.5)


def test_the_soft_drop_hardens_over_training() -> None:
    layer = layer_of((20, 20), 0.5)
    algorithm = cht(0.5, soft_drop=True, delta=(0.5, 0.99), stop=0.75)

    def kept(progress: float, seed: int) -> float:
        changes = plan([layer], algorithm, Levels(0.5, None, 0.3), Context(0, 0, progress, seed))
        return float(layer.weight[changes[0].mask & layer.mask].abs().sum())

    early, late = (sum(kept(p, seed) for seed in range(20)) for p in (0.0, 0.75))
    assert late > early


# --- growth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ch2_l3n", "ch3_l3n", "ch2_l3p", "ch3_l3p"])
@pytest.mark.parametrize("shape", [(14, 10), (6, 5, 2, 2)])
def test_growth_takes_the_best_predicted_links_after_the_drop(
    name: str, shape: tuple[int, ...]
) -> None:
    layer = layer_of(shape, 0.4)
    algorithm = cht(0.6, grow=name)
    (change,) = plan([layer], algorithm, HARD, Context())
    k = math.floor(0.3 * layer.nnz + 1e-9)
    kept = top_k(layer.weight.abs().masked_fill(~layer.mask, -math.inf), layer.nnz - k)
    score = getattr(links, name)(kept).masked_fill(kept, -math.inf)
    assert int((score > 0).sum()) >= k  # else chance decides
    assert torch.equal(change.mask, kept | top_k(score, k))
    assert change.grown == change.dropped == k


def test_places_that_no_path_leads_to_are_filled_at_random() -> None:
    score = torch.tensor([0.0, 2.0, 0.0, -math.inf, 1.0, 0.0, 0.0])
    seen = set()
    for seed in range(40):
        chosen = best_then_random(score, 4, torch.Generator().manual_seed(seed))
        assert int(chosen.sum()) == 4 and chosen[1] and chosen[4] and not chosen[3]
        seen |= {*chosen.nonzero().flatten().tolist()}
    assert seen == {0, 1, 2, 4, 5, 6}
    assert best_then_random(score, 1, torch.Generator()).nonzero().item() == 1


def test_soft_growth_is_sampled_and_reproducible() -> None:
    layer = layer_of((14, 10), 0.4)
    grown = []
    for seed in (0, 0, 1):
        (change,) = plan([layer], cht(0.6, soft_grow=True), HARD, Context(seed=seed))
        grown.append(change.mask)
    assert torch.equal(grown[0], grown[1]) and not torch.equal(grown[0], grown[2])


def test_drop_and_growth_of_one_update_draw_from_different_streams() -> None:
    seeds = []

    def noted(score: Tensor, k: int, generator: torch.Generator) -> Tensor:
        seeds.append(generator.initial_seed())
        return top_k(score, k)

    algorithm = dataclasses.replace(cht(0.6, grow="ch2_l3n"), drop_select=noted, grow_select=noted)
    plan([layer_of((14, 10), 0.4)], algorithm, HARD, Context())
    assert len(seeds) == 2 and seeds[0] != seeds[1]


def test_attention_projections_are_three_graphs() -> None:
    mask = torch.rand(12, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = Layer("attention.in_proj_weight", torch.zeros(12, 4), (0, 0))
    packed.set_mask(mask)
    score = LinkPrediction("ch2_l3n")(packed, Context())
    expected = torch.cat([links.ch2_l3n(part) for part in mask.chunk(3)])
    assert torch.equal(score, expected)
    assert not torch.equal(score, links.ch2_l3n(mask))


def test_the_soft_rules_differ_from_cht_in_their_choices_only() -> None:
    assert cht(0.9).drop is magnitude and chts(0.9).drop == RelativeImportance(0.0)
    assert cht(0.9).grow == LinkPrediction("ch3_l3p") and chts(0.9).grow.predictor == "ch2_l3n"
    assert cht(0.9).exchange.softness is None
    assert chts(0.9).exchange.softness == Softness(0.5, 0.75)
    released = chts(0.9, soft_grow=False)
    assert released.grow_select is best_then_random and released.exchange.softness is not None
    assert chtss(0.9).density == Sigmoid(0.5, 0.1, 0.0, 0.75)
    assert not cht(0.9).needs_gradient and cht(0.9, grow="gradient").needs_gradient


# --- the start ------------------------------------------------------------------------------------


def test_golden_bipartite_small_world_start() -> None:
    weight = nn.Parameter(torch.randn(6, 6))
    start = topologies.bipartite_small_world(beta=0.0)
    optimizer = SparseOptimizer(Still([weight]), "cht", sparsity=0.5, topology=start)
    columns = [
        {*column.nonzero().flatten().tolist()} for column in optimizer.layers[0].mask.unbind(1)
    ]
    assert columns == [{4, 5, 0}, {5, 0, 1}, {0, 1, 2}, {1, 2, 3}, {2, 3, 4}, {3, 4, 5}]


def test_correlated_start_asks_for_data_and_a_layer_that_reads_them() -> None:
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))

    def made(topology: Any) -> SparseOptimizer:
        inner = torch.optim.SGD(model.parameters(), lr=0.1)
        return SparseOptimizer(inner, "cht", sparsity=0.8, model=model, topology=topology)

    data = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="csti.*data"):
        made("csti")
    with pytest.raises(ValueError, match="csti.*2.weight.*fallback="):
        made(topologies.csti(data))
    first = made(topologies.csti(data, fallback="bsw")).layers[0]
    corr = torch.corrcoef(data.T.double()).abs().fill_diagonal_(0).repeat(2, 1)
    assert torch.equal(first.mask, top_k(corr, first.nnz))


# --- percolation ----------------------------------------------------------------------------------


def network(*shapes: tuple[int, int], seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(i, o, bias=False) for o, i in shapes))


def chained(model: nn.Sequential, algo: str = "cht", **options: Any) -> SparseOptimizer:
    chain = [f"{number}.weight" for number in range(len(model))]
    given = {"chains": [chain], "sparsity": 0.7, "model": model, "update_every": 1}
    return SparseOptimizer(Still(model.parameters()), algo, **given | options)


def test_golden_percolation_regrows_one_link() -> None:
    model = network((2, 2), (1, 2))
    masks = {
        "0.weight": torch.tensor([[True, False], [False, True]]),
        "1.weight": torch.tensor([[True, False]]),
    }
    optimizer = chained(
        model, topology=masks, sparsity=0.5, total_steps=10, include=lambda name, weight: True
    )
    optimizer.step()
    record = optimizer.history[0]
    assert record.layers == {"0.weight": 2, "1.weight": 1}
    assert (record.dropped, record.grown) == (1, 1)
    assert optimizer.masks["0.weight"][0, 0]  # the other was cut off, and one has grown


@given(
    widths=st.lists(st.integers(2, 9), min_size=3, max_size=5),
    sparsity=st.sampled_from([0.5, 0.8]),
    seed=st.integers(0, 100),
    algo=st.sampled_from(["cht", "chts"]),
)
@settings(max_examples=40)
@pytest.mark.filterwarnings("ignore:the density leaves no weight:UserWarning")
def test_percolation_never_changes_a_layers_count(
    widths: list[int], sparsity: float, seed: int, algo: str
) -> None:
    model = network(*[(o, i) for i, o in zip(widths, widths[1:], strict=False)])
    optimizer = chained(model, algo, sparsity=sparsity, seed=seed, total_steps=20, early_stop=None)
    before = [layer.nnz for layer in optimizer.layers]
    for _ in range(15):
        optimizer.step()
        assert_zeros(optimizer)
        assert [layer.nnz for layer in optimizer.layers] == before


def test_what_is_kept_leads_from_inputs_to_outputs() -> None:
    """Between drop and growth no hidden neuron has links on one side only."""
    model = network((9, 7), (5, 9), seed=1)
    optimizer = chained(model, sparsity=0.8, drop_fraction=0.5)
    kept: list[dict[str, Tensor]] = []

    def spied(self: Any, layers: Any, *args: Any) -> Any:
        low, active = original(self, layers, *args)
        kept.append({layer.name: mask for layer, mask in zip(layers, low, strict=True)})
        return low, active

    original = type(optimizer.algorithm.exchange).__call__
    pool = optimizer._pools[0]
    watched = dataclasses.replace(
        pool.algorithm, exchange=lambda *args: spied(pool.algorithm.exchange, *args)
    )
    plan(pool.layers, watched, Levels(0.2, None, 0.5), Context())
    low = kept[0]
    fed, feeds = low["0.weight"].any(1), low["1.weight"].any(0)
    assert torch.equal(fed, feeds)


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ([["0.weight", "9.weight"]], "9.weight"),
        ([["0.weight", "2.weight"]], "cannot feed"),
        ([["0.weight"]], "two layer names"),
        ([["0.weight", "1.weight", "0.weight"]], "twice"),
    ],
)
def test_chains_that_do_not_fit_are_refused_before_anything_changes(
    chains: Any, message: str
) -> None:
    model = network((9, 7), (5, 9), (4, 5))
    before = [p.detach().clone() for p in model.parameters()]
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=f"chains.*{message}"):
        SparseOptimizer(inner, "cht", sparsity=0.7, model=model, chains=chains)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_a_chain_over_layers_of_several_sparsities_says_how_to_keep_them_together() -> None:
    model = network((9, 7), (5, 9))
    groups = [
        {"params": [model[0].weight], "sparsity": 0.5},
        {"params": [model[1].weight], "sparsity": 0.7},
    ]
    inner = torch.optim.SGD(groups, lr=0.1)
    with pytest.raises(ValueError, match=r"'1\.weight'; near.*updated apart; distribution="):
        SparseOptimizer(inner, "cht", model=model, chains=[["0.weight", "1.weight"]])
    wanted = {"distribution": lambda shapes, sparsity: [31, 14]}
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    chain = [["0.weight", "1.weight"]]
    optimizer = SparseOptimizer(inner, "cht", model=model, chains=chain, **wanted)
    assert [layer.nnz for layer in optimizer.layers] == [31, 14]


# --- early stop -----------------------------------------------------------------------------------


def test_evolution_stops_for_good_once_every_layer_grows_what_it_drops() -> None:
    """Two complete blocks and equal weights: the same links go and come back."""
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4, :4] = mask[4:, 4:] = True
    weight = nn.Parameter(mask.float() * (1 + torch.arange(64.0).view(8, 8)))
    optimizer = SparseOptimizer(
        Still([weight]), "cht", sparsity=0.5, update_every=1, topology={"0.0": mask},
        drop_fraction=0.1,
    )  # fmt: skip
    layer = optimizer.layers[0]
    optimizer.step()
    assert optimizer.history[0].dropped == optimizer.history[0].regrown == 3
    assert bool(layer.extras[STOPPED])
    optimizer.step()
    assert optimizer.history[1].dropped == 0

    restless = SparseOptimizer(
        Still([weight]), "cht", sparsity=0.5, update_every=1, topology={"0.0": mask},
        drop_fraction=0.1, early_stop=None,
    )  # fmt: skip
    restless.step()
    restless.step()
    assert restless.history[1].dropped == 3


def test_one_restless_layer_keeps_all_going() -> None:
    model = network((8, 8), (8, 8))
    optimizer = chained(model, chains=[], early_stop=0.9, grow="random", sparsity=0.9)
    optimizer.step()
    optimizer.layers[0].extras[STOPPED] = torch.tensor(True)
    optimizer.layers[1].extras[STOPPED] = torch.tensor(False)
    optimizer.step()
    assert optimizer.history[-1].dropped > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": "smallest"}, "drop='smallest' is not one of 'magnitude'"),
        ({"grow": "ch4"}, "grow='ch4' is not one of 'ch2_l3n'"),
        ({"alpha": 2.0}, "alpha=2.0"),
        ({"delta": (0.5, 1.0)}, "delta="),
        ({"early_stop": 1.5}, "early_stop=1.5"),
    ],
)
def test_bad_input_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    for recipe in (cht, chts, chtss):
        with pytest.raises(ValueError, match=message):
            recipe(0.9, **options)


@pytest.mark.parametrize("wrong", [["fc1", "fc2"], "fc1", 3, None])
def test_chains_that_are_no_lists_are_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="chains="):
        cht(0.9, chains=wrong)


@pytest.mark.parametrize("wrong", [0.5, (0.5,), (0.1, 0.2, 0.3), None])
def test_a_delta_that_is_no_pair_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="delta=.* must be two numbers"):
        chts(0.9, delta=wrong)


def test_golden_sigmoid_density_of_chtss() -> None:
    density = chtss(0.95, initial_density=0.5, window=1.0).density
    assert [density(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.5, 0.4796705, 0.275, 0.0703295, 0.05]
    )
