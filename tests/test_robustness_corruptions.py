"""The 19 common corruptions: reproducible, of the published strength, checked at the door."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_robustness import (
    GRAY_LEVEL_RMSE_32,
    images,
    photo_crops,
    rmse,
)

from sparseopt.robustness import CORRUPTIONS, _blur, _digital, _resample, _weather, corrupt
from sparseopt.robustness._constants import SCALES
from sparseopt.robustness._streams import generator

cv2 = pytest.importorskip("cv2")

ROOT = Path(__file__).resolve().parents[1]
STRENGTH = ROOT / "benchmarks" / "results" / "corruption_strength.json"
SCALE_NAMES = ("cifar", "tiny", "imagenet")


def test_there_are_nineteen_in_the_published_order():
    assert len(CORRUPTIONS) == 19
    assert CORRUPTIONS[:3] == ("gaussian_noise", "shot_noise", "impulse_noise")
    assert CORRUPTIONS[14:] == (
        "jpeg_compression",
        "speckle_noise",
        "gaussian_blur",
        "spatter",
        "saturate",
    )


@pytest.mark.parametrize("scale", SCALE_NAMES)
def test_every_table_has_five_severities_of_every_corruption(scale):
    assert set(SCALES[scale]) == set(CORRUPTIONS)
    assert all(len(SCALES[scale][name]) == 5 for name in CORRUPTIONS)


@pytest.mark.parametrize("scale", SCALE_NAMES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_image_is_corrupted_alike_in_any_batch(name, scale):
    batch = images(7, 20, 26)
    for severity in (1, 3, 5):
        whole = corrupt(batch, name, severity, scale)
        alone = [corrupt(batch[i : i + 1], name, severity, scale, index=i) for i in range(7)]
        picked = corrupt(batch[[5, 2]], name, severity, scale, index=[5, 2])
        assert np.array_equal(whole, np.concatenate(alone))
        assert np.array_equal(whole[[5, 2]], picked)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_large_batches_worked_in_pieces_equal_single_images(name, monkeypatch):
    batch = images(5, 24, 24)
    whole = corrupt(batch, name, 4)
    monkeypatch.setattr("sparseopt.robustness._streams.VALUES_AT_ONCE", 1)
    assert np.array_equal(whole, corrupt(batch, name, 4))


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(CORRUPTIONS),
    severity=st.integers(1, 5),
    scale=st.sampled_from(SCALE_NAMES),
    size=st.tuples(st.integers(0, 3), st.integers(10, 40), st.integers(10, 40)),
    channels=st.sampled_from([None, 1, 3]),
)
def test_shape_and_dtype_survive_any_size(name, severity, scale, size, channels):
    batch = images(*size, channels)
    before = batch.copy()
    out = corrupt(batch, name, severity, scale)
    assert isinstance(out, np.ndarray) and out.dtype == np.uint8 and out.shape == batch.shape
    assert np.array_equal(batch, before), "the images given must not change"


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_torch_in_gives_the_same_values_as_torch(name):
    batch = images(2, 16, 18)
    out = corrupt(torch.from_numpy(batch), name, 3, "cifar")
    assert isinstance(out, torch.Tensor) and out.dtype == torch.uint8
    assert np.array_equal(out.numpy(), corrupt(batch, name, 3, "cifar"))


def test_the_seed_changes_the_draw_and_repeats_it():
    batch = images(2, 16, 16)
    first, again = (corrupt(batch, "gaussian_noise", 3, seed=4) for _ in range(2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, corrupt(batch, "gaussian_noise", 3, seed=5))


def test_equal_images_at_different_places_get_different_noise():
    batch = np.repeat(images(1, 16, 16), 2, axis=0)
    out = corrupt(batch, "shot_noise", 3)
    assert not np.array_equal(out[0], out[1])


def test_the_global_random_state_is_neither_used_nor_moved():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    for name in CORRUPTIONS:
        corrupt(images(1, 16, 16), name, 2)
    assert np.array_equal(before, np.random.get_state()[1])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "name",
    [
        "defocus_blur",
        "gaussian_blur",
        "motion_blur",
        "zoom_blur",
        "glass_blur",
        "elastic_transform",
        "pixelate",
        "contrast",
    ],
)
@pytest.mark.parametrize("scale", SCALE_NAMES)
def test_a_plain_image_has_nothing_to_blur(name, scale):
    plain = np.full((1, 24, 24, 3), 77, dtype=np.uint8)
    for severity in range(1, 6):
        out = corrupt(plain, name, severity, scale).astype(int)
        # the released disk is cut at its border before its blur: its weights sum to 1 +- 0.5 %
        assert np.abs(out - 77).max() <= (name == "defocus_blur"), severity


def test_strength_agrees_with_the_published_generators_at_32_pixels():
    """RMSE in grey levels of another sample of crops; the reference's own sample had 48."""
    crops = photo_crops(32, 480)
    written = json.loads(STRENGTH.read_text())["cifar"]["ratios"]  # what docs/robustness.md shows
    further = {}
    for name, reference in GRAY_LEVEL_RMSE_32.items():
        for severity, expected in enumerate(reference, start=1):
            ratio = rmse(corrupt(crops, name, severity, "cifar"), crops) / expected
            assert ratio == pytest.approx(written[name][severity - 1], abs=0.01), name
            if abs(ratio - 1) > 0.05:
                further[name, severity] = ratio
    # cells that depend on the detail and colour of the crops drawn are up to 10.5 % off
    content = {
        "defocus_blur",
        "motion_blur",
        "zoom_blur",
        "pixelate",
        "gaussian_blur",
        "saturate",
        "elastic_transform",
    }
    assert {name for name, _ in further} <= content, further
    assert all(abs(ratio - 1) < 0.105 for ratio in further.values()), further


def test_streaks_run_at_most_45_degrees_from_the_horizontal_and_flakes_fall(monkeypatch):
    drawn: dict[str, list[float]] = {"motion_blur": [], "snow": []}
    for module, name in ((_blur, "motion_blur"), (_weather, "snow")):

        def spy(layer, radius, sigma, angles, name=name):
            drawn[name] += angles
            return layer

        monkeypatch.setattr(module, "motion_blurred", spy)
        corrupt(images(400, 8, 8), name, 3)
    assert -45 <= min(drawn["motion_blur"]) < -42 and 42 < max(drawn["motion_blur"]) <= 45
    assert -135 <= min(drawn["snow"]) < -132 and -48 < max(drawn["snow"]) <= -45


def test_the_affine_part_moves_three_points_as_drawn():
    rngs, height, width, shift = [np.random.default_rng(3)], 40, 30, 4.0
    rows, columns = _digital._affine_coordinates(height, width, shift, rngs)
    moves = np.random.default_rng(3).uniform(-shift, shift, (3, 2))
    before = np.float32([[25, 30], [25, 10], [5, 10]])
    matrix = cv2.getAffineTransform(before, (before + moves).astype(np.float32))
    image = np.random.default_rng(0).uniform(0, 255, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(image, (9, 9), 2)
    expected = cv2.warpAffine(smooth, matrix, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    got = _resample.sampled(smooth[None, ..., None], rows, columns, "mirror")[0, ..., 0]
    assert np.abs(got - expected).max() < 1.0  # OpenCV rounds coordinates to 1/32 pixel


def test_mild_saturate_leaves_gray_images_alone():
    gray = images(2, 16, 16, None)
    for severity in (1, 2, 3):
        assert np.array_equal(corrupt(gray, "saturate", severity, "cifar"), gray)
    assert not np.array_equal(corrupt(gray, "saturate", 5, "cifar"), gray)


@pytest.mark.parametrize(
    "name",
    [
        "defocus_blur",
        "gaussian_blur",
        "brightness",
        "contrast",
        "fog",
        "motion_blur",
        "zoom_blur",
        "elastic_transform",
        "glass_blur",
        "pixelate",
    ],
)
def test_gray_images_fare_as_one_channel_of_a_colourless_image(name):
    gray = images(3, 20, 20, None)
    color = np.repeat(gray[..., None], 3, axis=-1)
    difference = corrupt(gray, name, 3).astype(int) - corrupt(color, name, 3)[..., 0]
    assert np.abs(difference).max() <= 1


def test_gray_noise_is_drawn_once_per_pixel_at_full_strength():
    gray = np.full((4, 64, 64), 128, dtype=np.uint8)
    noise = corrupt(gray, "gaussian_noise", 3, "cifar").astype(float) - 128
    assert noise.std() == pytest.approx(0.08 * 255, rel=0.03)


def test_impulse_noise_hits_the_stated_fraction_half_black_half_white():
    plain = np.full((4, 64, 64, 3), 128, dtype=np.uint8)
    out = corrupt(plain, "impulse_noise", 5, "imagenet")
    assert (out == 0).mean() == pytest.approx(0.135, abs=0.01)
    assert (out == 255).mean() == pytest.approx(0.135, abs=0.01)


def test_shot_noise_has_the_variance_of_counted_photons():
    plain = np.full((4, 64, 64, 3), 102, dtype=np.uint8)  # 0.4 of full range
    out = corrupt(plain, "shot_noise", 1, "imagenet").astype(float)
    assert out.std() == pytest.approx(255 * math.sqrt(0.4 / 60), rel=0.03)


def test_zoom_counts_include_the_rounding_of_arange():
    counts = {"cifar": (6, 11, 16, 21, 26), "imagenet": (11, 16, 11, 13, 11)}
    for scale in counts:
        for (stop, step), count in zip(SCALES[scale]["zoom_blur"], counts[scale], strict=True):
            assert len(np.arange(1, stop, step)) in (count, count + 1)
            assert math.ceil((stop - 1) / step) == len(np.arange(1, stop, step))


def test_missing_frost_photographs_fall_back_with_a_warning(monkeypatch):
    monkeypatch.setattr(_weather, "find_spec", lambda name: None)
    _weather._frost_photograph.cache_clear()
    _weather.frost_texture.cache_clear()
    try:
        with pytest.warns(UserWarning, match="photographs of frost are missing"):
            out = corrupt(images(1, 32, 32), "frost", 3)
        assert out.shape == (1, 32, 32, 3)
    finally:
        _weather._frost_photograph.cache_clear()
        _weather.frost_texture.cache_clear()


def test_frost_needs_only_the_data_files_of_the_other_package():
    if find_spec("imagecorruptions") is None:
        pytest.skip("imagecorruptions-imaug is not installed")
    code = (
        "import sys, numpy as np; from sparseopt.robustness import corrupt;"
        "corrupt(np.zeros((1, 32, 32, 3), np.uint8), 'frost', 3); "
        "assert 'numba' not in sys.modules and 'imagecorruptions' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_images_larger_than_the_frost_photographs_work():
    assert corrupt(images(1, 700, 640), "frost", 3).shape == (1, 700, 640, 3)


def test_random_streams_differ_between_corruptions_and_severities():
    keys = [(0, "fog", 1, 0), (0, "fog", 2, 0), (0, "snow", 1, 0), (0, "fog", 1, 1)]
    keys.append((1, "fog", 1, 0))
    assert len({generator(*key).random() for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"images": np.zeros((1, 32, 32, 3))}, TypeError, "float64; it must be uint8"),
        ({"images": np.zeros((1, 32, 32, 3), np.float32)}, TypeError, "values in \\[0, 1\\]"),
        ({"images": [[1]]}, TypeError, "not list"),
        ({"images": np.zeros((32, 32, 3), np.uint8)}, ValueError, "images\\[None\\]"),
        ({"images": np.zeros((32, 32), np.uint8)}, ValueError, r"\(N, H, W, C\)"),
        ({"images": np.zeros((1, 32, 32, 4), np.uint8)}, ValueError, "4 channels"),
        ({"images": np.zeros((1, 3, 32, 32), np.uint8)}, ValueError, "transpose"),
        ({"images": np.zeros((1, 3, 3, 3), np.uint8)}, ValueError, "too small for 'glass_blur'"),
        ({"images": np.zeros((1, 9, 32, 3), np.uint8)}, ValueError, "at least 10"),
        ({"name": "glas_blur"}, ValueError, "nearest: glass_blur"),
        ({"severity": 0}, ValueError, r"\(1, 2, 3, 4, 5\)"),
        ({"severity": 6}, ValueError, "severity=6"),
        ({"severity": 2.0}, TypeError, "severity=2.0"),
        ({"severity": True}, TypeError, "severity=True"),
        ({"scale": "cifar10"}, ValueError, "nearest: cifar"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"seed": "a"}, TypeError, "seed='a'"),
        ({"index": [1, 2]}, ValueError, "2 entries for 1 images"),
        ({"index": -3}, ValueError, "index=-3"),
    ],
)
def test_bad_input_is_refused_with_advice(change, error, says):
    good = {
        "images": np.zeros((1, 32, 32, 3), np.uint8),
        "name": "glass_blur",
        "severity": 5,
        "scale": "imagenet",
    }
    with pytest.raises(error, match=says):
        corrupt(**{**good, **change})


@pytest.mark.slow
def test_imagenet_constants_agree_with_imagecorruptions_where_that_follows_the_paper():
    """Same crops, same constants, another implementation: within 5 % per cell."""
    theirs = pytest.importorskip("imagecorruptions").corruption_dict
    from PIL import Image

    crops = photo_crops(224, 6)
    np.random.seed(0)
    # left out: its frost is enlarged, its elastic has other numbers, fog's draws vary by 10 %
    for name in [n for n in CORRUPTIONS if n not in ("frost", "elastic_transform", "fog")]:
        repeats = 8 if name in ("snow", "spatter", "motion_blur") else 1
        for severity in (1, 3, 5):
            ours = [rmse(corrupt(crops, name, severity, seed=r), crops) for r in range(repeats)]
            other = [_theirs(theirs[name], Image, crops, severity) for r in range(repeats)]
            assert np.mean(ours) == pytest.approx(np.mean(other), rel=0.05), (name, severity)


def _theirs(function, pillow, crops, severity):
    outs = [np.clip(np.asarray(function(pillow.fromarray(i), severity)), 0, 255) for i in crops]
    return rmse(np.stack(outs).astype(np.uint8), crops)
