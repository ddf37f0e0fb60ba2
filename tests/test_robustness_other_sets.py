"""C-bar, 3DCC and codec corruptions: reproducible, of published strength, right about depth."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from references_robustness import C_BAR_RMSE, photo_crops, rmse, write_image_tree

from sparseopt import robustness
from sparseopt.robustness import (
    C_BAR,
    CORRUPTIONS,
    THREE_D,
    ImageNetCBar,
    c_bar,
    codec,
    corrupt,
    generate,
    three_d,
)

pytest.importorskip("cv2")

MAP_FREE = ("color_quant", "iso_noise", "low_light")
MAP_TAKING = ("near_focus", "far_focus", "fog_3d", "flash", "xy_motion_blur", "z_motion_blur")


def noise_images(count: int = 3, side: int = 24, channels: int = 3) -> np.ndarray:
    shape = (count, side, side + 4, channels)
    return np.random.default_rng(0).integers(40, 200, shape, dtype=np.uint8)


def test_the_sets_have_the_names_of_the_paper():
    assert len(C_BAR) == 10 and len(THREE_D) == 11
    assert set(THREE_D) == {*MAP_FREE, *MAP_TAKING, "bit_error", "h265_abr"}
    assert not set(C_BAR) & set(CORRUPTIONS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", [*C_BAR, *MAP_FREE])
def test_an_image_is_corrupted_alike_in_any_batch(name, channels):
    batch = noise_images(channels=channels)
    for severity in (1, 5):
        whole = corrupt(batch, name, severity)
        alone = [corrupt(batch[i : i + 1], name, severity, index=i) for i in range(3)]
        assert whole.dtype == np.uint8 and whole.shape == batch.shape
        assert np.array_equal(whole, np.concatenate(alone))
    assert torch.equal(corrupt(torch.from_numpy(batch), name, 5), torch.from_numpy(whole))


@pytest.mark.slow
@pytest.mark.parametrize("name", C_BAR)
def test_c_bar_has_the_published_strength_at_224_pixels(name):
    crops = photo_crops(224, 12)
    for severity, expected in enumerate(C_BAR_RMSE[name], start=1):
        got = rmse(corrupt(crops, name, severity), crops)
        assert got == pytest.approx(expected, rel=0.35 if name == "sparkles" else 0.17), severity


def test_cifar_constants_exist_for_five_of_c_bar():
    assert corrupt(noise_images(), "sparkles", 2, "cifar").shape == (3, 24, 28, 3)
    with pytest.raises(ValueError, match="'perlin_noise' has constants for imagenet only"):
        corrupt(noise_images(), "perlin_noise", 2, "cifar")


def test_generated_c_bar_folders_are_named_by_strength(tmp_path):
    write_image_tree(tmp_path / "clean", ("a", "b"), 1, side=16)
    folder = generate(
        tmp_path / "clean", tmp_path / "set", corruption=C_BAR, scale="imagenet", progress=False
    )
    assert (folder / "caustic_refraction" / "9.15" / "a").is_dir()
    assert len(ImageNetCBar(folder)) == 10 * 5 * 2


def literal_caustic(time: float, size: float, side: int) -> np.ndarray:
    """Pixel by pixel."""
    out = np.zeros((side, side))
    for row in range(side):
        for column in range(side):
            p = np.array([row / size, column / size]) % 1 * 2 * np.pi - 250
            i, total = p.copy(), 1.0
            for n in range(5):
                t = time * (1 - 3.5 / (n + 1))
                first = np.cos(t - i[0]) + np.sin(t + i[1])
                second = np.sin(t - i[1]) + np.cos(t + i[0])
                i = p + np.array([first, second])
                down, right = p[0] / (np.sin(i[0] + t) / 0.005), p[1] / (np.cos(i[1] + t) / 0.005)
                total += 1 / np.hypot(down, right)
            out[row, column] = min(abs(1.17 - (total / 5) ** 1.4) ** 8, 1)
    return out


def test_the_caustic_pattern_is_that_of_the_literal_loop():
    got = c_bar._caustic(np.random.default_rng(5), 14, 14, 14)
    rng = np.random.default_rng(5)
    time, size = rng.uniform(0.5, 2), rng.uniform(0.75, 1.25) * 14
    assert np.allclose(got, literal_caustic(time, size, 14), atol=1e-5)


def test_light_is_bent_by_snells_law():
    for slope in (0.1, 0.5, 2.0):
        normal_angle = np.arctan(slope)
        inside = np.arcsin(np.sin(normal_angle) / 4)
        shift = np.sin(normal_angle - inside)
        got = c_bar._refraction(np.float32([[slope]]))[0, 0] * slope
        assert got == pytest.approx(shift, rel=1e-5)
    assert c_bar._refraction(np.float32([[0.01]]))[0, 0] == 0  # nearly straight stays straight


def test_blue_noise_blackens_the_stated_share():
    plain = np.full((2, 128, 128, 3), 200, dtype=np.uint8)
    out = corrupt(plain, "blue_noise_sample", 5)
    assert set(np.unique(out)) == {0, 200}
    # P(normal < 0.56 * 3 - 2.5) = 0.206
    assert (out == 0).mean() == pytest.approx(0.206, abs=0.02)
    assert ((out == 0).all(axis=-1) == (out == 0).any(axis=-1)).all()


def test_color_quant_keeps_the_upper_bits():
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for severity, bits in enumerate((5, 4, 3, 2, 1), start=1):
        assert np.array_equal(
            corrupt(ramp, "color_quant", severity), ramp >> (8 - bits) << (8 - bits)
        )


def test_low_light_darkens_with_severity():
    means = [corrupt(noise_images(), "low_light", s).mean() for s in range(1, 6)]
    assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("name", MAP_TAKING)
def test_corruptions_that_take_a_map_say_so(name):
    with pytest.raises(ValueError, match=rf"{name}\(images, severity, (depth|shading)\)"):
        corrupt(noise_images(), name, 3)
    with pytest.raises(ValueError, match="does not fit"):
        getattr(robustness, name)(noise_images(), 3, np.ones((5, 5)))
    with pytest.raises(ValueError, match="finite and >= 0"):
        getattr(robustness, name)(noise_images(), 3, np.full((24, 28), np.nan))
    with pytest.raises(ValueError, match="severity=6"):
        getattr(robustness, name)(noise_images(), 6, np.ones((24, 28)))


@pytest.mark.parametrize("name", MAP_TAKING)
def test_map_taking_corruptions_keep_type_and_shape(name):
    batch, depth = noise_images(2), np.random.default_rng(0).uniform(0.1, 0.5, (2, 24, 28))
    function = getattr(robustness, name)
    out = function(torch.from_numpy(batch), 4, torch.from_numpy(depth))
    assert isinstance(out, torch.Tensor) and out.dtype == torch.uint8
    assert np.array_equal(out.numpy(), function(batch, 4, depth))
    assert function(batch[..., 0], 4, depth[0]).shape == (2, 24, 28)


def test_fog_hides_what_is_far_and_leaves_what_is_near():
    batch, depth = noise_images(1), np.zeros((24, 28))
    depth[12:] = 50
    out = robustness.fog_3d(batch, 3, depth)
    assert np.array_equal(out[0, :12], batch[0, :12])
    assert np.abs(out[0, 12:] - batch[0].mean(axis=(0, 1))).max() <= 1


def test_flash_brightens_by_the_map_over_the_distance():
    plain = np.full((1, 8, 8, 3), 60, dtype=np.uint8)
    shading = np.zeros((8, 8))
    shading[:4] = 0.6
    out = robustness.flash(plain, 4, shading)
    assert (out[0, :4] == 120).all() and (out[0, 4:] == 60).all()


def _detail(image: np.ndarray) -> float:
    return float(np.abs(np.diff(image.astype(float), axis=1)).mean())


def test_focus_keeps_one_end_of_the_depths_sharp():
    batch, depth = noise_images(1, side=48), np.full((48, 52), 0.1)
    depth[:, 26:] = 0.5
    near, far = (f(batch, 3, depth)[0] for f in (robustness.near_focus, robustness.far_focus))
    assert np.array_equal(near[:, :20], batch[0, :, :20])
    assert np.array_equal(far[:, 32:], batch[0, :, 32:])
    assert _detail(near[:, 30:]) < 0.3 * _detail(batch[0, :, 30:])
    assert _detail(far[:, :20]) < 0.3 * _detail(batch[0, :, :20])


@pytest.mark.parametrize("name", ["xy_motion_blur", "z_motion_blur"])
def test_camera_moves_blur_near_things_more_and_longer_exposures_more(name):
    batch, depth = noise_images(1, side=64), np.full((64, 68), 0.05)
    depth[:, 34:] = 1.0
    function = getattr(robustness, name)
    out = function(batch, 3, depth)[0]
    assert _detail(out[:, 4:30]) < _detail(out[:, 40:60])
    errors = [rmse(function(batch, s, depth), batch) for s in (1, 5)]
    assert errors[0] < errors[1]
    assert not np.array_equal(function(batch, 3, depth, seed=1)[0], out)


def test_depth_is_taken_from_arrays_and_tensors_alike():
    disparity = np.array([[4096.0, 256.0], [np.nan, -1.0]])
    depth = robustness.depth_from_disparity(disparity)
    assert depth.tolist() == [[0.125, 0.5], [0.5, 0.5]] and depth.dtype == np.float32
    tensor = torch.tensor(disparity, requires_grad=True)
    assert np.array_equal(robustness.depth_from_disparity(tensor), depth)


def test_real_depth_makes_real_photographs_foggier_with_distance():
    data = pytest.importorskip("skimage.data")
    left, _, disparity = data.stereo_motorcycle()
    depth = robustness.depth_from_disparity(disparity, unit=4.0)
    assert depth.dtype == np.float32 and 0 < depth.min() and depth.max() == 0.5
    errors = [rmse(robustness.fog_3d(left[None], s, depth), left[None]) for s in range(1, 6)]
    assert errors == sorted(errors)


@pytest.fixture
def ffmpeg():
    try:
        return codec.ffmpeg()
    except ImportError:
        pytest.skip("ffmpeg is not installed")


def test_a_missing_ffmpeg_is_named(monkeypatch):
    monkeypatch.setattr(codec.shutil, "which", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match="imageio-ffmpeg"):
        corrupt(noise_images(1, side=40), "bit_error", 3)


def test_codec_corruptions_need_room():
    with pytest.raises(ValueError, match="at least 32 pixels"):
        corrupt(noise_images(1, side=20), "h265_abr", 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bit_error", "h265_abr"])
def test_codec_damage_grows_with_severity_and_repeats(name, ffmpeg):
    crops = photo_crops(96, 4)
    errors = [rmse(corrupt(crops, name, s), crops) for s in (1, 3, 5)]
    assert errors == sorted(errors) and errors[-1] > 10
    assert np.array_equal(corrupt(crops[1:2], name, 5, index=1), corrupt(crops, name, 5)[1:2])


def test_the_pan_shows_the_image_at_its_middle_frame():
    image = noise_images(1, side=33)[0]
    clip = codec._pan(image)
    start = codec._offset(codec.FRAMES // 2)
    assert clip.shape[1] % 2 == clip.shape[2] % 2 == 0
    assert np.array_equal(clip[codec.FRAMES // 2][start : start + 33, start : start + 37], image)


def test_every_three_d_kernel_has_five_constants():
    for table in (three_d.CONSTANTS, codec.CONSTANTS):
        assert all(len(values) == 5 for values in table.values())
