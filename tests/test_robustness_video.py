"""The 16 video perturbations, and UCF101 and VOC in their official layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references_robustness import photo_crops
from torch import nn

from sparseopt.robustness import (
    CORRUPTIONS,
    VIDEO,
    CorruptedUCF101,
    CorruptedVOC,
    corrupt_video,
    corrupted_image,
    evaluate,
)
from sparseopt.robustness.video import TEMPORAL

cv2 = pytest.importorskip("cv2")


def counted(frames: int, side: int = 8) -> np.ndarray:
    """A clip whose frame t is plain grey t."""
    values = np.arange(frames, dtype=np.uint8)[:, None, None, None]
    return np.broadcast_to(values, (frames, side, side, 3)).copy()


def order(clip: np.ndarray) -> list[int]:
    return clip[:, 0, 0, 0].tolist()


def test_there_are_sixteen():
    assert len(VIDEO) == 16 and set(TEMPORAL) < set(VIDEO)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(VIDEO), st.integers(1, 5), st.integers(1, 40), st.booleans())
def test_every_perturbation_repeats_and_keeps_the_frame_size(name, severity, frames, gray):
    rng = np.random.default_rng(0)
    clip = rng.integers(0, 256, (frames, 12, 14) if gray else (frames, 12, 14, 3), dtype=np.uint8)
    out = corrupt_video(clip, name, severity, index=3)
    assert out.dtype == np.uint8 and out.shape[1:] == clip.shape[1:] and 1 <= len(out) <= frames
    again = corrupt_video(torch.from_numpy(clip), name, severity, index=3)
    assert np.array_equal(again.numpy(), out)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 5), st.integers(1, 100), st.integers(0, 20))
def test_frames_are_reordered_as_stated(severity, frames, index):
    clip = counted(frames, 4)
    step = 2**severity
    assert order(corrupt_video(clip, "sampling", severity)) == list(range(0, frames, step))
    reverse = order(corrupt_video(clip, "reverse_sampling", severity))
    assert reverse == list(range(0, frames, step))[::-1]
    jumbled = order(corrupt_video(clip, "jumble", severity, index=index))
    length = 2 ** (6 - severity)
    for start in range(0, frames, length):
        segment = list(range(start, min(start + length, frames)))
        assert sorted(jumbled[start : start + length]) == segment
    boxes = order(corrupt_video(clip, "box_jumble", severity, index=index))
    box = (severity + 1) ** 2
    assert sorted(boxes) == list(range(frames))
    assert all(b == a + 1 or b % box == 0 or a % box == box - 1 or a == frames - 1
               for a, b in zip(boxes, boxes[1:], strict=False))  # fmt: skip


@pytest.mark.parametrize(("severity", "kept"), [(1, 40), (2, 20), (3, 10), (4, 5), (5, 1)])
def test_freeze_holds_few_frames_and_loses_the_beginning(severity, kept):
    shown = order(corrupt_video(counted(100), "freeze", severity))
    assert len(set(shown)) == kept and shown == sorted(shown)
    assert len(shown) == 100 - shown[0]
    lost = shown[0]
    assert all(shown[frame - lost] == frame for frame in set(shown))


def test_static_rotation_turns_all_frames_by_the_stated_angle():
    clip = np.random.default_rng(0).integers(0, 256, (3, 15, 15, 3), dtype=np.uint8)
    out = corrupt_video(clip, "static_rotate", 5)
    assert np.abs(out.astype(int) - np.rot90(clip, axes=(1, 2))).max() <= 1
    mild = corrupt_video(np.full((2, 21, 21), 200, np.uint8), "static_rotate", 3)
    assert mild[0, 0, 0] == 0 and mild[0, 10, 10] == 200  # corners leave the frame


def test_rotation_draws_a_small_angle_for_every_frame():
    clip = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 21, 21), dtype=np.uint8), 6, 0)
    out = corrupt_video(clip, "rotate", 4)
    assert len({frame.tobytes() for frame in out}) > 1


def test_noise_differs_between_frames_but_not_with_the_clip_around_it():
    clip = np.full((6, 16, 16, 3), 128, np.uint8)
    out = corrupt_video(clip, "gaussian_noise", 3)
    assert not np.array_equal(out[0], out[1])
    assert np.array_equal(corrupt_video(clip[:2], "gaussian_noise", 3), out[:2])
    assert not np.array_equal(corrupt_video(clip, "gaussian_noise", 3, index=1), out)


def test_translate_moves_all_frames_alike_and_fills_with_zeros():
    clip = np.random.default_rng(0).integers(1, 256, (3, 40, 40, 3), dtype=np.uint8)
    out = corrupt_video(clip, "translate", 4, index=2)
    down, right = ((out[0, ..., 0] == 0).all(axis=1).sum(), (out[0, ..., 0] == 0).all(axis=0).sum())
    assert 0 <= down < 32 and 0 <= right < 32
    assert np.array_equal(out[:, : 40 - down, : 40 - right], clip[:, down:, right:])
    window = corrupt_video(clip, "translate", 1, size=30)
    assert window.shape == (3, 30, 30, 3) and (window > 0).all()


def test_bad_clips_are_refused():
    with pytest.raises(ValueError, match="clip has no frames"):
        corrupt_video(np.zeros((0, 8, 8, 3), np.uint8), "rotate", 1)
    with pytest.raises(TypeError, match="clip has dtype"):
        corrupt_video(np.zeros((2, 8, 8, 3)), "rotate", 1)
    with pytest.raises(ValueError, match="nearest: rotate"):
        corrupt_video(counted(2), "rotated", 1)
    with pytest.raises(ValueError, match="index=-1"):
        corrupt_video(counted(2), "rotate", 1, index=-1)
    with pytest.raises(ValueError, match="size=-3"):
        corrupt_video(counted(2), "translate", 1, size=-3)
    with pytest.raises(ValueError, match="size=2 is for 'translate'"):
        corrupt_video(counted(2), "rotate", 1, size=2)


@pytest.fixture
def ucf(tmp_path: Path) -> Path:
    """Two classes of one video each: 20 frames getting brighter."""
    names = ["ApplyLipstick/v_ApplyLipstick_g01_c01.avi", "Archery/v_Archery_g01_c01.avi"]
    for i, name in enumerate(names):
        path = tmp_path / "UCF-101" / name
        path.parent.mkdir(parents=True)
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (48, 40))
        assert writer.isOpened()
        for t in range(20):
            writer.write(np.full((40, 48, 3), 40 + 5 * t + 50 * i, np.uint8))
        writer.release()
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 ApplyLipstick\n2 Archery\n")
    (lists / "testlist01.txt").write_text("\n".join(names) + "\n")
    return tmp_path


def test_ucf101_clips_are_sampled_at_segment_middles(ucf):
    data = CorruptedUCF101(ucf, size=32, frames=4)
    assert data.corruptions == VIDEO and data.severities == (1, 2, 3, 4)
    assert data.num_classes == 2 and len(data.part("rotate", 1)) == 2
    clip, label = data.clean[1]
    assert clip.shape == (3, 4, 32, 32) and int(label) == 1
    expected = [40 + 5 * t + 50 for t in (2, 7, 12, 17)]
    assert (clip.mean(dim=(0, 2, 3)) * 255).tolist() == pytest.approx(expected, abs=3)


@pytest.mark.parametrize("name", VIDEO)
def test_ucf101_clips_have_one_shape_under_every_perturbation(ucf, name):
    data = CorruptedUCF101(ucf, corruption=name, severity=[1, 4], size=32, frames=8)
    for key in data.keys():
        clip, _ = data.part(*key)[0]
        assert clip.shape == (3, 8, 32, 32) and 0 <= clip.min() <= clip.max() <= 1
        assert torch.equal(clip, data.part(*key)[0][0])


def test_ucf101_reads_the_training_list_when_asked(ucf):
    tests = (ucf / "ucfTrainTestlist" / "testlist01.txt").read_text().split()
    (ucf / "ucfTrainTestlist" / "trainlist01.txt").write_text(f"{tests[1]} 2\n")
    train = CorruptedUCF101(ucf, size=32, frames=4, train=True).clean
    everything = CorruptedUCF101(ucf, size=32, frames=4).clean
    assert len(train) == 1 and len(everything) > 1
    assert torch.equal(train[0][0], everything[1][0]) and train[0][1] == everything[1][1]


def test_time_runs_backwards_under_reverse_sampling(ucf):
    clip, _ = CorruptedUCF101(ucf, corruption="reverse_sampling", size=32).part(
        "reverse_sampling", 1
    )[0]
    brightness = clip.mean(dim=(0, 2, 3)).tolist()
    assert brightness == sorted(brightness, reverse=True)


def test_ucf101_names_what_is_missing_or_damaged(ucf):
    for options in ({"frames": 0}, {"size": -1}):
        with pytest.raises(ValueError, match="must be >= 1"):
            CorruptedUCF101(ucf, **options)
    video = next((ucf / "UCF-101" / "Archery").iterdir())
    video.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=rf"{video.name} is damaged"):
        CorruptedUCF101(ucf, size=32).clean[1]
    video.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{video.name} is missing"):
        CorruptedUCF101(ucf)
    (ucf / "ucfTrainTestlist" / "classInd.txt").write_text("Archery 2\n")
    with pytest.raises(ValueError, match=r"classInd\.txt is damaged"):
        CorruptedUCF101(ucf)
    (ucf / "ucfTrainTestlist" / "classInd.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"classInd\.txt is missing"):
        CorruptedUCF101(ucf)


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images of different sizes; the mask is class 5 on the left, void at the top."""
    pillow = pytest.importorskip("PIL.Image")
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    photo = photo_crops(64, 1)[0]
    for i, width in enumerate((40, 48, 64)):
        mask = np.zeros((40, width), np.uint8)
        mask[:, : width // 2], mask[:4] = 5, 255
        pillow.fromarray(photo[:40, :width]).save(root / "JPEGImages" / f"2007_{i}.jpg")
        image = pillow.fromarray(mask)
        image.putpalette([value % 256 for value in range(768)])
        image.save(root / "SegmentationClass" / f"2007_{i}.png")
    listing = root / "ImageSets" / "Segmentation" / "val.txt"
    listing.write_text("2007_0\n2007_1\n2007_2\n")
    return tmp_path


class Segments(nn.Module):
    """Says class 5 left of the middle and class 0 right of it; wrong on dark pixels."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = torch.zeros(len(x), 21, *x.shape[2:])
        scores[:, 5, :, : x.shape[3] // 2] = 1
        scores[:, 7][x.mean(dim=1) < 0.02] = 2
        return {"out": scores}


def test_voc_masks_are_classes_with_void(voc):
    data = CorruptedVOC(voc, corruption="fog", severity=3)
    image, mask = data.part("fog", 3)[1]
    assert image.shape == (3, 40, 48) and mask.shape == (40, 48) and mask.dtype == torch.int64
    assert mask.unique().tolist() == [0, 5, 255]
    small = CorruptedVOC(voc, "fog", 3, size=24)
    assert small[2][0].shape == (3, 24, 24) and small[2][1].unique().tolist() == [0, 5, 255]


def test_files_are_indexed_from_their_end_too(voc, ucf):
    for part in (CorruptedVOC(voc).part("fog", 3), CorruptedUCF101(ucf, size=32).part("rotate", 2)):
        assert torch.equal(part[-1][0], part[len(part) - 1][0])
        with pytest.raises(IndexError):
            part[len(part)]


def test_segmentation_is_evaluated_in_pixel_accuracy_and_miou(voc):
    data = CorruptedVOC(voc, corruption=["contrast", "gaussian_noise"], severity=[1, 5])
    report = evaluate(Segments(), data, clean=data.clean, progress=False)
    assert report.pixel_accuracy.clean_accuracy > 0.9
    assert report.pixel_accuracy.metric == "pixel accuracy" and report.mean_iou.metric == "mIoU"
    assert set(report.mean_iou.accuracy) == {"contrast", "gaussian_noise"}
    pixels = 36 * (40 + 48 + 64)
    assert report.pixel_accuracy.counts["contrast"] == {1: pixels, 5: pixels}
    assert "gaussian_noise" in str(report) and "mean_iou" in report.to_json()


def test_voc_names_what_is_missing(voc):
    root = voc / "VOCdevkit" / "VOC2012"
    assert len(CorruptedVOC(root).names) == len(CorruptedVOC(root.parent).names) == 3
    (root / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2007_1\.png is missing"):
        CorruptedVOC(voc)
    with pytest.raises(FileNotFoundError, match=r"trainval\.txt is missing"):
        CorruptedVOC(voc, split="trainval")
    with pytest.raises(FileNotFoundError, match="VOC2012 is missing"):
        CorruptedVOC(root / "JPEGImages")
    with pytest.raises(ValueError, match="nearest: imagecorruptions"):
        CorruptedVOC(voc, engine="imagecorruption")
    with pytest.raises(ValueError, match="size=0"):
        CorruptedVOC(voc, size=0)
    (root / "ImageSets" / "Segmentation" / "none.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"none\.txt is empty"):
        CorruptedVOC(voc, split="none")


@pytest.mark.parametrize("engine", ["sparseopt", "imagecorruptions"])
def test_both_engines_refuse_the_same(engine):
    image = np.zeros((40, 48, 3), np.uint8)
    for options, says in [
        ({"severity": 0}, "severity=0"),
        ({"severity": 9}, "severity=9"),
        ({"index": -1}, "index=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"name": "fogg"}, "nearest: fog"),
    ]:
        with pytest.raises(ValueError, match=says):
            corrupted_image(image, **{"name": "fog", "severity": 1, "engine": engine, **options})


@pytest.mark.slow
def test_the_other_engine_repeats_and_leaves_numpys_random_state_alone():
    pytest.importorskip("imagecorruptions")
    image = photo_crops(64, 1)[0]
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    for name in CORRUPTIONS:
        first = corrupted_image(image, name, 3, "imagecorruptions", index=4)
        assert np.array_equal(first, corrupted_image(image, name, 3, "imagecorruptions", index=4))
        assert first.shape == image.shape and first.dtype == np.uint8
    assert np.array_equal(before, np.random.get_state()[1])
