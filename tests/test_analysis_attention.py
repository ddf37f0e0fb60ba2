"""Grad-CAM agrees with the grad-cam package; highlighted areas are shares of pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparseopt.analysis import grad_cam, highlight_area, weighted_area


def small_network(inplace: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace), nn.Conv2d(8, 6, 3), nn.ReLU(inplace),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5), nn.Linear(24, 5),
    )  # fmt: skip


IMAGES = torch.rand(3, 3, 32, 40, generator=torch.Generator().manual_seed(1))


def literal_grad_cam(model, images, targets):
    """Layers 0 to 2, then the rest, gradients by finite graph surgery."""
    model.eval()
    maps = []
    for image, target in zip(images, targets, strict=True):
        activation = model[:3](image[None]).detach().requires_grad_()
        model[3:](activation)[0, target].backward()
        total = torch.zeros(activation.shape[2:])
        for channel in range(activation.shape[1]):
            total += activation.grad[0, channel].mean() * activation[0, channel].detach()
        total = total.clamp(min=0)[None, None]
        total = nn.functional.interpolate(total, image.shape[1:], mode="bilinear")[0, 0]
        maps.append((total - total.min()) / (total.max() - total.min()))
    return torch.stack(maps)


def test_maps_are_those_of_the_definition():
    expected = literal_grad_cam(small_network(), IMAGES, [1, 4, 0])
    assert torch.allclose(grad_cam(small_network(), "2", IMAGES, [1, 4, 0]), expected, atol=1e-5)


@pytest.mark.parametrize("target", range(5))
def test_an_in_place_activation_behind_the_layer_changes_nothing(target):
    plain = grad_cam(small_network(), "2", IMAGES, target)
    assert torch.allclose(grad_cam(small_network(inplace=True), "2", IMAGES, target), plain)


@pytest.mark.parametrize("targets", [None, [0, 3, 2]])
def test_maps_agree_with_the_grad_cam_package(targets):
    package = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = small_network().eval()
    wanted = None if targets is None else [ClassifierOutputTarget(t) for t in targets]
    with package.GradCAM(model=model, target_layers=[model[2]]) as cam:
        theirs = torch.from_numpy(cam(input_tensor=IMAGES, targets=wanted))
    ours = grad_cam(small_network(), "2", IMAGES, targets)
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_the_predicted_class_is_the_default():
    model = small_network().eval()
    predicted = model(IMAGES).argmax(dim=1)
    assert torch.equal(grad_cam(model, model[2], IMAGES), grad_cam(model, "2", IMAGES, predicted))


def test_model_gradients_and_modes_are_left_alone():
    model = small_network().train()
    model[0].eval()
    model[7].weight.requires_grad_(False)
    with torch.no_grad():  # works inside too
        grad_cam(model, "2", IMAGES)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training and model[6].training and not model[0].training
    assert not model[2]._forward_hooks


def test_a_frozen_network_has_maps_too():
    model = small_network().requires_grad_(False)
    expected = grad_cam(small_network(), "2", IMAGES, 1)
    assert torch.allclose(grad_cam(model, "2", IMAGES, 1), expected)


def test_tokens_are_reshaped_to_maps():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = (
                nn.Conv2d(3, 8, 8, 8),
                nn.LayerNorm(8),
                nn.Linear(8, 5),
            )

        def forward(self, x):
            return self.head(self.norm(self.conv(x).flatten(2).transpose(1, 2)).mean(dim=1))

    def to_map(tokens):
        return tokens.transpose(1, 2).reshape(-1, 8, 4, 5)

    with pytest.raises(ValueError, match="reshape="):
        grad_cam(Tokens(), "norm", IMAGES)
    assert grad_cam(Tokens(), "norm", IMAGES, reshape=to_map).shape == (3, 32, 40)


def test_a_layer_that_does_not_reach_the_scores_is_refused():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.aside, self.conv = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x):
            self.aside(x)
            return self.conv(x).mean(dim=(2, 3))

    assert grad_cam(Aside(), "conv", IMAGES).shape == (3, 32, 40)
    with pytest.raises(ValueError, match="layer 'aside' does not lead to the scores"):
        grad_cam(Aside(), "aside", IMAGES)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"layer": "22"}, ValueError, "layer='22' is not a module"),
        ({"layer": nn.Conv2d(3, 3, 1)}, ValueError, "gave 0 tensors"),
        ({"layer": "5"}, ValueError, "choose a convolution"),
        ({"images": IMAGES[0]}, ValueError, r"must be \(N, C, H, W\)"),
        ({"images": (IMAGES * 255).byte()}, TypeError, "float tensor"),
        ({"targets": [1, 2]}, ValueError, "2 entries for 3 images"),
        ({"targets": 5}, ValueError, r"0\.\.4"),
    ],
)
def test_bad_input_to_grad_cam_is_refused(change, error, says):
    good = {"model": small_network(), "layer": "2", "images": IMAGES}
    with pytest.raises(error, match=says):
        grad_cam(**{**good, **change})


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(2, 9), st.floats(0.05, 0.95), st.integers(0, 99))
def test_the_area_counts_pixels_above_the_threshold(count, side, threshold, seed):
    maps = torch.rand(count, side, side, generator=torch.Generator().manual_seed(seed)) * 7 - 2
    expected = []
    for one in maps:
        scaled = (one.double() - one.min()) / (one.max() - one.min())
        expected.append(sum(v >= threshold for v in scaled.flatten().tolist()) / side**2)
    area = highlight_area(maps, threshold, per_image=True)
    assert torch.allclose(area, torch.tensor(expected).double(), atol=1.01 / side**2)
    assert highlight_area(maps, threshold).item() == pytest.approx(area.mean().item())


def test_the_area_falls_with_the_threshold_and_is_the_whole_image_at_zero():
    maps = torch.rand(4, 10, 10)
    areas = highlight_area(maps, [0.0, 0.3, 0.5, 0.7])
    assert areas[0] == 1 and (areas.diff() <= 0).all()


def test_thresholds_may_be_a_list_an_array_or_a_tensor():
    maps, levels = torch.rand(3, 6, 6), [0.2, 0.9]
    expected = highlight_area(maps, levels)
    assert torch.equal(highlight_area(maps, np.array(levels)), expected)
    assert torch.equal(highlight_area(maps, torch.tensor(levels, dtype=torch.float64)), expected)
    assert highlight_area(maps, torch.tensor(0.2, dtype=torch.float64)) == expected[0]


def test_a_map_without_contrast_highlights_nothing():
    assert highlight_area(torch.full((2, 5, 5), 3.0)).item() == 0
    assert weighted_area(torch.zeros(5, 5)).item() == 0


def test_bad_maps_and_thresholds_are_refused():
    with pytest.raises(ValueError, match="threshold=1.5"):
        highlight_area(torch.rand(1, 4, 4), 1.5)
    with pytest.raises(ValueError, match=r"\(N, H, W\)"):
        highlight_area(torch.rand(1, 1, 4, 4))


def test_attention_is_drawn_row_by_image_column_by_network():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    from sparseopt.analysis.plotting import plot_attention

    maps = torch.rand(2, 32, 40)
    axes = plot_attention(IMAGES[:2], {"dense": maps, "SET": maps})
    assert axes.shape == (2, 3) and len(axes[0][1].images) == 2
    pyplot.close("all")
