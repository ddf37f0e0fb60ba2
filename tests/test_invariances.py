"""The choice of weights does not depend on scale, signs, places or other layers."""

import math

import torch
from by_hand import give_gradients, weights
from common import (
    rng,
    single,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD

from sparseopt import SparseOptimizer


def masks_after(weight, gradient, mask, algo, **options):
    p, optimizer = single(weight, mask, algo, drop_fraction=0.4, **options)
    p.grad = gradient.clone()
    optimizer.step()
    return optimizer.masks["0.0"].clone(), optimizer


@st.composite
def trained(draw):
    shape = draw(st.lists(st.integers(1, 7), min_size=2, max_size=4))
    size = math.prod(shape)
    seed = draw(st.integers(0, 2**20))
    magnitudes = torch.randperm(size, generator=rng(seed)).double() + 1
    signs = torch.randint(2, (size,), generator=rng(seed + 1)) * 2 - 1
    gradient = (torch.randperm(size, generator=rng(seed + 2)).double() + 1) * signs.flip(0)
    active = draw(st.integers(1, size))
    mask = torch.zeros(size, dtype=torch.bool)
    mask[torch.randperm(size, generator=rng(seed + 3))[:active]] = True
    return [t.view(shape) for t in (magnitudes * signs * mask, gradient, mask)]


@given(trained(), st.sampled_from([0.25, 3.0, 1024.0]), st.sampled_from([0.5, 1e3]))
def test_masks_do_not_depend_on_the_scale_of_weights_or_gradients(layer, c, d):
    weight, gradient, mask = layer
    for algo in ("set", "rigl"):
        one, _ = masks_after(weight, gradient, mask, algo)
        other, _ = masks_after(c * weight, d * gradient, mask, algo)
        assert torch.equal(one, other)


@given(trained(), st.integers(0, 2**20))
def test_masks_do_not_depend_on_signs(layer, seed):
    weight, gradient, mask = layer
    flips = torch.randint(2, weight.shape, generator=rng(seed)) * 2 - 1
    for algo in ("set", "rigl"):
        one, _ = masks_after(weight, gradient, mask, algo)
        other, _ = masks_after(weight * flips, gradient * flips.flip(0), mask, algo)
        assert torch.equal(one, other)


@given(trained(), st.integers(0, 2**20))
def test_permuted_positions_give_a_permuted_mask(layer, seed):
    order = torch.randperm(layer[0].numel(), generator=rng(seed))
    permuted = [t.flatten()[order].view(t.shape) for t in layer]
    one, _ = masks_after(*layer, "rigl")
    other, _ = masks_after(*permuted, "rigl")
    assert torch.equal(one.flatten()[order].view(one.shape), other)


@given(trained())
def test_rigl_grows_the_largest_gradients_and_drops_the_smallest_weights(layer):
    weight, gradient, mask = layer
    new, optimizer = masks_after(weight, gradient, mask, "rigl", regrow_same="forbid")
    dropped, kept, grown = mask & ~new, mask & new, new & ~mask
    if dropped.any() and kept.any():
        assert weight[dropped].abs().max() <= weight[kept].abs().min()
    left = ~(mask | grown)
    if grown.any() and left.any():
        assert gradient[grown].abs().min() >= gradient[left].abs().max()
    k = math.floor(0.4 * int(mask.sum()) + 1e-9)
    assert int(grown.sum()) == min(k, int((~mask).sum())) == optimizer.history[0].grown


def test_another_layer_has_no_influence_layerwise_and_has_globally():
    results = {}
    for scope in ("layer", "global"):
        for scale in (1.0, 100.0):
            parameters = weights([(8, 8), (8, 8)])
            parameters[1].data.mul_(scale)
            optimizer = SparseOptimizer(
                SGD(parameters, lr=1e-9), "rigl", sparsity=0.5, update_every=1, scope=scope
            )
            give_gradients(parameters, 1)
            optimizer.step()
            results[scope, scale] = optimizer.masks["0.0"].clone()
    assert torch.equal(results["layer", 1.0], results["layer", 100.0])
    assert not torch.equal(results["global", 1.0], results["global", 100.0])


def test_random_growth_is_uniform_over_the_candidates():
    """Chi-square with 35 cells over 1200 seeds: 66.6 is passed once in a thousand times."""
    weight = torch.arange(1, 41, dtype=torch.float64).view(5, 8)
    mask = torch.zeros(5, 8, dtype=torch.bool)
    mask[0, :] = True
    seen = torch.zeros(5, 8)
    for seed in range(1200):
        new, _ = masks_after(weight, weight, mask, "set", seed=seed)
        assert new[0, 3:].all()  # the kept are never touched
        seen += new
    seen[0, 3:] = 0
    cells = torch.cat([seen[0, :3], seen[1:].flatten()])
    expected = 1200 * 3 / 35
    assert float(((cells - expected) ** 2 / expected).sum()) < 66.6


def test_random_growth_of_a_layer_does_not_depend_on_the_other_layers():
    masks = []
    for others in (1, 3):
        parameters = weights([(8, 8)] * (1 + others))
        optimizer = SparseOptimizer(
            SGD(parameters, lr=1e-9), "set", update_every=1, distribution="uniform"
        )
        for step in range(3):
            give_gradients(parameters, step)
            optimizer.step()
        masks.append(optimizer.masks["0.0"].clone())
    assert torch.equal(*masks)
