"""Initial topologies that look at data: correlations of the inputs, gradients of the loss."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from common import rng
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparseopt.topologies import (
    bipartite_small_world,
    csti,
    grasp,
    magnitude,
    snip,
)


def layer_of(*shape: int, name: str = "fc", seed: int = 0) -> SimpleNamespace:
    return SimpleNamespace(name=name, weight=nn.Parameter(torch.randn(shape, generator=rng(seed))))


# --- correlation ----------------------------------------------------------------------------------


def literal_csti(data: torch.Tensor, copies: int, nnz: int) -> torch.Tensor:
    correlation = torch.corrcoef(data.double().T).abs().nan_to_num(0.0)
    correlation = torch.atleast_2d(correlation).fill_diagonal_(0).clamp(max=1)
    upper = correlation.triu(1)
    flat = (upper + upper.T).repeat(copies, 1).flatten().tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:nnz]] = True
    return mask.view(copies * data.shape[1], data.shape[1])


@given(st.integers(2, 8), st.integers(1, 3), st.integers(3, 20), st.integers(0, 99), st.data())
def test_csti_links_the_most_correlated_inputs(features, copies, samples, seed, data):
    x = torch.randn(samples, features, generator=rng(seed), dtype=torch.float64)
    nnz = data.draw(st.integers(0, copies * features * (features - 1)))
    layer = layer_of(copies * features, features)
    # A pair has 2 places in each copy: the cut falls between pairs or within equal values.
    found = csti(x)(layer, nnz, rng())
    assert found.sum() == nnz
    assert torch.equal(found, literal_csti(x, copies, nnz))


def test_csti_links_no_constant_feature_and_no_feature_to_itself():
    x = torch.rand(5001, 12, generator=rng(), dtype=torch.float64)
    # Plain sums of squares would give some of these a variance above 0, and so correlations.
    x[:, 6:] = torch.tensor([0.1, 0.3, 0.7, 1.1, 3.3, 1e6 / 3], dtype=torch.float64)
    correlation = csti(x).correlation
    assert (correlation[:6, :6] > 0).sum() == 30
    assert not correlation[6:].any() and not correlation[:, 6:].any()
    mask = csti(x)(layer_of(12, 12), 30, rng())
    assert mask[:6, :6].sum() == 30 and not mask.diagonal().any()


def test_csti_reads_tensors_loaders_and_generators_alike():
    x, y = torch.rand(23, 1, 2, 3, generator=rng()), torch.zeros(23)
    layer, expected = layer_of(12, 6), csti(x)(layer_of(12, 6), 20, rng())
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(x, y), batch_size=5, shuffle=True
    )
    before = torch.get_rng_state()
    assert torch.equal(csti(loader)(layer, 20, rng()), expected)
    assert torch.equal(torch.get_rng_state(), before)
    topology = csti(part for part in x.split(7))
    assert torch.equal(topology(layer, 20, rng()), expected)
    assert torch.equal(topology(layer, 20, rng()), expected)  # read once


def test_csti_errors_name_the_layer_and_the_widths():
    topology = csti(torch.rand(9, 4))
    with pytest.raises(ValueError, match=r"'fc2'.*\(8, 6\).* is 6 wide, the data have 4 features"):
        topology(layer_of(8, 6, name="fc2"), 5, rng())
    with pytest.raises(ValueError, match=r"'fc1'.*its 6 outputs are not a whole multiple of its 4"):
        topology(layer_of(6, 4, name="fc1"), 5, rng())
    named = csti(torch.rand(9, 4), layers=["fc2"], fallback="random")
    with pytest.raises(ValueError, match=r"'fc2'.*take it out of layers="):
        named(layer_of(8, 6, name="fc2"), 5, rng())
    with pytest.raises(ValueError, match=r"'fc1'.*not one of layers=\['fc2'\]; pass fallback="):
        csti(torch.rand(9, 4), layers=["fc2"])(layer_of(8, 4, name="fc1"), 5, rng())


def test_csti_leaves_other_layers_to_the_fallback():
    x = torch.rand(9, 4)
    first, second = layer_of(8, 4, name="fc1"), layer_of(4, 4, name="fc2")
    topology = csti(x, layers=["fc1"], fallback="magnitude")
    assert torch.equal(topology(first, 9, rng()), csti(x)(first, 9, rng()))
    assert torch.equal(topology(second, 9, rng()), magnitude(second, 9, rng()))
    ring = bipartite_small_world(beta=0.0)
    assert torch.equal(
        csti(x, fallback=ring)(layer_of(3, 5), 4, rng()), ring(layer_of(3, 5), 4, rng())
    )


def test_csti_names_whole_layers_and_falls_back_on_single_ones():
    with pytest.raises(TypeError, match=r"layers='fc1' must be a list of names"):
        csti(torch.rand(9, 4), layers="fc1")  # "fc" is a part of it, and another layer
    ranked = csti(torch.rand(9, 4), fallback=snip(lambda: torch.zeros(())))
    with pytest.raises(ValueError, match="fallback=snip.*ranks all layers together"):
        ranked(layer_of(3, 5), 4, rng())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data=int must be a tensor"),
        ("mnist", "data=str must be a tensor"),
        ([{"x": 1}], "a batch of dict"),
        ([torch.ones(3)], r"a batch of \(3,\)"),
        (torch.ones(1, 4), "data has 1 samples"),
        ([], "data has 0 samples"),
        (torch.full((3, 4), math.nan), "data has values that are not finite"),
        ([torch.ones(2, 4), torch.ones(2, 5)], "batches of 4 and 5 features"),
    ],
)
def test_csti_refuses_data_it_cannot_correlate(data, message):
    with pytest.raises(ValueError, match=message):
        csti(data)(layer_of(4, 4), 3, rng())


# --- from the loss --------------------------------------------------------------------------------


def small_model() -> tuple[nn.Sequential, list[SimpleNamespace], torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3)).double()
    layers = [SimpleNamespace(name=f"{i}.weight", weight=model[i].weight) for i in (0, 3)]
    return model, layers, torch.randn(11, 5).double()


def finite_differences(loss, weights, epsilon=1e-5) -> list[torch.Tensor]:
    """Gradient of the loss, one weight at a time."""
    found = []
    for weight in weights:
        gradient = torch.zeros_like(weight)
        for i in range(weight.numel()):
            flat, was = weight.data.view(-1), weight.data.view(-1)[i].item()
            flat[i] = was + epsilon
            high = loss()
            flat[i] = was - epsilon
            gradient.view(-1)[i] = (high - loss()) / (2 * epsilon)
            flat[i] = was
        found.append(gradient)
    return found


def test_snip_scores_are_gradient_times_weight():
    model, layers, x = small_model()
    model.eval()
    weights = [layer.weight for layer in layers]
    expected = finite_differences(lambda: model(x).square().sum().item(), weights)
    found = snip(lambda: model(x).square().sum()).scores(layers)
    for score, gradient, weight in zip(found, expected, weights, strict=True):
        torch.testing.assert_close(score, (gradient * weight.detach()).abs(), rtol=1e-5, atol=1e-6)


def test_grasp_scores_are_minus_half_the_change_of_the_squared_gradient_norm():
    model, layers, x = small_model()
    model.eval()
    weights = [layer.weight for layer in layers]

    def squared_norm() -> float:
        gradients = torch.autograd.grad(model(x).square().sum(), weights)
        return sum(g.square().sum().item() for g in gradients)

    slopes = finite_differences(squared_norm, weights)
    found = grasp(lambda: model(x).square().sum()).scores(layers)
    for score, slope, weight in zip(found, slopes, weights, strict=True):
        # Removing w changes the squared norm by -w * slope; GraSP leaves out the largest change.
        torch.testing.assert_close(score, weight.detach() * slope / 2, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [snip, grasp])
def test_the_largest_scores_of_all_layers_stay(kind):
    model, layers, x = small_model()
    model.eval()
    topology = kind(lambda: model(x).square().sum())
    masks = topology.masks(layers, 20)
    flat = torch.cat([score.flatten() for score in topology.scores(layers)])
    kept = torch.cat([masks[layer.name].flatten() for layer in layers])
    assert kept.sum() == 20 and list(masks) == ["0.weight", "3.weight"]
    assert flat[kept].min() >= flat[~kept].max()


@pytest.mark.parametrize("kind", [snip, grasp])
def test_the_loss_callback_leaves_no_trace(kind):
    model, layers, x = small_model()
    model[3].weight.grad = torch.ones(3, 7).double()
    model[0].weight.requires_grad_(True)
    weights = copy.deepcopy(model.state_dict())
    before = torch.get_rng_state()
    with torch.no_grad():
        kind(lambda: model(x).square().mean()).masks(layers, 10)
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].weight.grad is None and (model[3].weight.grad == 1).all()
    assert model[0].bias.grad is None and model.training
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, weights[name])


@pytest.mark.parametrize("kind", [snip, grasp])
def test_no_layer_is_left_empty(kind):
    weak, strong = layer_of(4, 4, name="weak"), layer_of(4, 4, name="strong")
    unused = layer_of(2, 2, name="unused")
    topology = kind(lambda: 1e-6 * weak.weight.pow(3).sum() + strong.weight.pow(3).sum())
    masks = topology.masks([weak, strong, unused], 6)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {
        "weak": 1,
        "strong": 4,
        "unused": 1,
    }
    for nnz in (2, 37):
        with pytest.raises(ValueError, match=f"{kind.__name__}: {nnz} active weights asked for"):
            topology.masks([weak, strong, unused], nnz)


@pytest.mark.parametrize("kind", [snip, grasp])
@pytest.mark.parametrize("value", [torch.ones(2, requires_grad=True), torch.ones(()), 3.0])
def test_a_loss_that_is_no_scalar_with_a_graph_is_refused(kind, value):
    with pytest.raises(ValueError, match=rf"{kind.__name__}: loss\(\) gave"):
        kind(lambda: value).masks([layer_of(2, 2)], 2)


@pytest.mark.parametrize("kind", [snip, grasp])
def test_a_loss_in_place_of_its_function_is_refused(kind):
    with pytest.raises(TypeError, match=f"{kind.__name__}: loss=.* must be a function"):
        kind(torch.ones(3).sum())


@pytest.mark.parametrize("kind", [snip, grasp])
def test_scores_that_are_not_finite_name_the_layer(kind):
    layer = layer_of(2, 2)
    with pytest.raises(ValueError, match="scores of 'fc' that are not finite"):
        kind(lambda: layer.weight.square().sum() * math.inf).masks([layer], 2)


def test_grasp_of_a_linear_loss_scores_zero_and_keeps_the_count():
    layer = layer_of(3, 3)
    masks = grasp(lambda: layer.weight.sum()).masks([layer], 4)
    assert masks["fc"].flatten().nonzero().flatten().tolist() == [0, 1, 2, 3]
