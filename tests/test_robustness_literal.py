"""The common corruptions equal literal versions of their steps, scipy's and Pillow's included."""

from __future__ import annotations

import math

import numpy as np
import pytest
from references_robustness import (
    images,
    literal_glass_scan,
    literal_motion_blur,
    photo_crops,
)

from sparseopt.robustness import _blur, _digital, _resample, corrupt
from sparseopt.robustness._constants import SCALES

pytest.importorskip("cv2")


def test_glass_blur_is_the_scan_over_single_pixels():
    for reach, iterations, height, width in [(1, 2, 9, 12), (2, 3, 13, 11), (4, 2, 16, 14)]:
        rngs = [np.random.default_rng(i) for i in range(3)]
        source = _blur._scattered(height, width, reach, iterations, rngs)
        for i in range(3):
            expected = literal_glass_scan(height, width, reach, iterations, seed=i)
            got = source.reshape(3, -1)[i] - i * height * width
            assert np.array_equal(got, expected.ravel())


@pytest.mark.parametrize("angle", [-44.0, -13.0, 0.0, 30.0, 45.0, -90.0, -120.0])
@pytest.mark.parametrize("size", [(20, 15), (6, 2.5)])
def test_motion_blur_is_a_weighted_sum_of_moved_images(size, angle):
    image = images(1, 30, 26).astype(np.float32)
    fast = _resample.motion_blurred(image, *size, [angle])
    assert np.allclose(fast[0], literal_motion_blur(image[0], *size, angle), atol=1e-2)


@pytest.mark.parametrize("factor", [1.01, 1.13, 1.31, 2.25, 4.5])
@pytest.mark.parametrize("side", [28, 33])
def test_zooming_is_scipys_linear_zoom_of_the_centre(side, factor):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    image = images(1, side, side).astype(np.float64)
    crop = math.ceil(side / factor)
    top = (side - crop) // 2
    large = zoom(image[0, top : top + crop, top : top + crop], (factor, factor, 1), order=1)
    trim = (large.shape[0] - side) // 2
    expected = large[trim : trim + side, trim : trim + side]
    got = _resample.zoomed(image.astype(np.float32), factor)[0]
    assert np.allclose(got, expected, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 2.5])
def test_gaussian_blur_is_scipys(sigma):
    filters = pytest.importorskip("scipy.ndimage")
    image = images(1, 21, 30).astype(np.float64)
    expected = filters.gaussian_filter(image[0], (sigma, sigma, 0), mode="nearest", truncate=4)
    got = _resample.gaussian_blurred(image.astype(np.float32), sigma)[0]
    assert np.allclose(got, expected, atol=1e-2)


@pytest.mark.parametrize("sigma", [0.3, 2.0, 40.0, 170.0])
def test_displacements_are_smoothed_as_scipy_does_it(sigma):
    filters = pytest.importorskip("scipy.ndimage")
    field = np.random.default_rng(0).uniform(-1, 1, (1, 30, 22))
    expected = filters.gaussian_filter(field[0], sigma, mode="reflect", truncate=3)
    got = _resample.smoothed(field.astype(np.float32), sigma, 3.0)[0]
    assert np.allclose(got, expected, atol=1e-5)


def test_displaced_pixels_are_scipys_map_coordinates():
    mapped = pytest.importorskip("scipy.ndimage").map_coordinates
    rng = np.random.default_rng(0)
    image = rng.uniform(0, 255, (1, 17, 23, 1))
    rows, columns = (rng.uniform(-9, 30, (1, 17, 23)) for _ in range(2))
    for border, mode in (("reflect", "reflect"), ("mirror", "mirror"), ("edge", "nearest")):
        expected = mapped(image[0, ..., 0], [rows[0], columns[0]], order=1, mode=mode)
        got = _resample.sampled(
            image.astype(np.float32), rows.astype(np.float32), columns.astype(np.float32), border
        )
        assert np.allclose(got[0, ..., 0], expected, atol=2e-2), border


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.65, 0.9, 0.95])
def test_pixelate_is_pillows_box_filter(factor):
    pillow = pytest.importorskip("PIL.Image")
    batch = images(2, 32, 28)
    small = (int(28 * factor), int(32 * factor))
    expected = [
        np.asarray(pillow.fromarray(i).resize(small, pillow.BOX).resize((28, 32), pillow.BOX))
        for i in batch
    ]
    got = _digital.pixelate(batch.astype(np.float32), factor, [])
    assert np.array_equal(got.astype(np.uint8), np.stack(expected))


def test_jpeg_is_pillows_file_of_that_quality():
    pillow = pytest.importorskip("PIL.Image")
    import io

    batch = photo_crops(32, 2)
    buffer = io.BytesIO()
    pillow.fromarray(batch[0]).save(buffer, "JPEG", quality=58)
    expected = np.asarray(pillow.open(buffer))
    assert np.array_equal(corrupt(batch, "jpeg_compression", 3, "cifar")[0], expected)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_colour_changes_are_those_of_the_hsv_model(name, severity):
    color = pytest.importorskip("skimage.color")
    batch = images(1, 12, 12)
    batch[0, :2, :2], batch[0, 2, 2] = 0, 200
    hsv = color.rgb2hsv(batch[0] / 255)
    constants = SCALES["imagenet"][name][severity - 1]
    if name == "brightness":
        hsv[..., 2] = np.clip(hsv[..., 2] + constants, 0, 1)
    else:
        hsv[..., 1] = np.clip(hsv[..., 1] * constants[0] + constants[1], 0, 1)
    expected = np.clip(color.hsv2rgb(hsv), 0, 1) * 255
    got = corrupt(batch, name, severity)[0].astype(float)
    assert np.abs(got - np.floor(expected + 1e-3)).max() <= 1
