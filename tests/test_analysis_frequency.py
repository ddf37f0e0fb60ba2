"""Attenuation keeps the frequencies it says; curves are accuracies on attenuated images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseopt.analysis import attenuate, radius_accuracy


def literal_attenuation(image: np.ndarray, radius: float, keep: str) -> np.ndarray:
    """Centred spectrum, one entry after another."""
    height, width = image.shape
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    for row in range(height):
        for column in range(width):
            distance = np.hypot(row - height // 2, column - width // 2)
            if (distance <= radius) != (keep == "low"):
                spectrum[row, column] = 0
    return np.clip(np.fft.ifft2(np.fft.ifftshift(spectrum)).real, 0, 1)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.one_of(st.integers(0, 8), st.floats(0, 9)),
    st.sampled_from(["low", "high"]),
    st.integers(0, 99),
)
def test_attenuation_is_a_circle_in_the_centred_spectrum(height, width, radius, keep, seed):
    image = np.random.default_rng(seed).uniform(0, 1, (2, height, width))
    got = attenuate(torch.from_numpy(image), radius, keep).numpy()
    for channel in range(2):
        assert np.allclose(got[channel], literal_attenuation(image[channel], radius, keep))


@pytest.mark.parametrize("size", [(64, 64), (33, 20)])
def test_half_the_diagonal_keeps_everything(size):
    images = torch.rand(2, 3, *size)
    reach = np.hypot(size[0] // 2, size[1] // 2)
    assert torch.allclose(attenuate(images, reach), images, atol=1e-5)
    assert attenuate(images, reach, keep="high").abs().max() < 1e-5


def test_a_fine_stripe_is_high_frequency_and_the_mean_is_low():
    stripes = torch.tensor([0.25, 0.75]).repeat(8).expand(1, 1, 16, 16)
    assert torch.allclose(attenuate(stripes, 7.9), torch.full_like(stripes, 0.5), atol=1e-6)
    assert torch.allclose(attenuate(stripes, 0, "high"), (stripes - 0.5).clamp(min=0), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_shape_are_kept(dtype):
    images = torch.rand(3, 9, 12).to(dtype)
    out = attenuate(images, 4)
    assert out.dtype == dtype and out.shape == images.shape and 0 <= out.min() <= out.max() <= 1


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": torch.zeros(1, 8, 8, dtype=torch.uint8)}, TypeError, "divide by 255"),
        ({"images": np.zeros((8, 8))}, TypeError, "ndarray"),
        ({"images": torch.full((8, 8), 2.0)}, ValueError, "attenuate before normalising"),
        ({"images": torch.rand(8)}, ValueError, r"\(\.\.\., H, W\)"),
        ({"radius": -1}, ValueError, "radius=-1"),
        ({"radius": float("nan")}, ValueError, "radius=nan"),
        ({"keep": "middle"}, ValueError, "keep='middle'"),
    ],
)
def test_bad_input_is_refused(change, error, says):
    good = {"images": torch.rand(1, 8, 8), "radius": 3, "keep": "low"}
    with pytest.raises(error, match=says):
        attenuate(**{**good, **change})


class SeesStripes(nn.Module):
    """Class 1 if neighbouring columns differ, after undoing a normalisation by 10."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        contrast = (x / 10).diff(dim=-1).abs().mean(dim=(1, 2, 3))
        return torch.stack([torch.full_like(contrast, 0.1), contrast], dim=1)


def test_the_curve_is_the_accuracy_on_attenuated_images():
    stripes = torch.tensor([0.25, 0.75]).repeat(8).expand(3, 1, 16, 16)
    plain = torch.full((1, 1, 16, 16), 0.5)
    data = TensorDataset(torch.cat([stripes, plain]), torch.tensor([1, 1, 1, 0]))
    model = SeesStripes().train()
    for source in (data, DataLoader(data, batch_size=3)):
        curve = radius_accuracy(model, source, [2, 7, 12], normalize=lambda x: 10 * x)
        assert curve.tolist() == [0.25, 0.25, 1.0]
    assert model.training


def test_no_data_is_refused():
    with pytest.raises(ValueError, match="data is empty"):
        radius_accuracy(SeesStripes(), [], [1])


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (3, 0, 8), (3, 8, 0)])
def test_no_images_have_no_frequencies(shape):
    assert attenuate(torch.rand(shape), 2).shape == shape


def test_labels_that_are_not_one_index_per_image_are_refused():
    images = torch.rand(3, 1, 16, 16)
    for labels in (torch.zeros(3, 1), torch.eye(3), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"\(3, 2\) for labels of shape .* N class indices"):
            radius_accuracy(SeesStripes(), [(images, labels)], [2])


def test_curves_are_drawn_in_percent():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    from sparseopt.analysis.plotting import plot_radius_accuracy

    ax = plot_radius_accuracy([1, 2], {"dense": torch.tensor([0.1, 0.4])})
    assert ax.lines[0].get_ydata().tolist() == [pytest.approx(10), pytest.approx(40)]
    pyplot.close("all")
