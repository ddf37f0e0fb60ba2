"""Loaders read the official layouts and say what is missing; `generate` writes such layouts."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from references_robustness import write_image_tree

from sparseopt.robustness import (
    C_BAR,
    CIFARC,
    CORRUPTIONS,
    THREE_D,
    Corrupted,
    FashionMNISTC,
    ImageNet3DCC,
    ImageNetC,
    ImageNetCBar,
    ImageNetR,
    ImageNetV2,
    TinyImageNetC,
    corrupt,
    generate,
)

pytest.importorskip("cv2")
pytest.importorskip("PIL")


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    """CIFAR-10-C with three images: value 10 * severity + image number, + 100 for fog."""
    root = tmp_path / "CIFAR-10-C"
    root.mkdir()
    values = np.array([10 * s + i for s in range(1, 6) for i in range(3)], dtype=np.uint8)
    for name in CORRUPTIONS:
        images = np.broadcast_to(values[:, None, None, None], (15, 32, 32, 3))
        np.save(root / f"{name}.npy", images + np.uint8(100 * (name == "fog")))
    np.save(root / "labels.npy", np.tile(np.array([3, 8, 1], dtype=np.uint8), 5))
    return root


def test_cifar_c_severities_are_consecutive_blocks(cifar):
    data = CIFARC(cifar)
    assert data.corruptions == CORRUPTIONS and len(data) == 19 * 15 and data.num_classes == 10
    image, label = data.part("fog", 3)[1]
    assert image.shape == (3, 32, 32) and image.dtype == torch.float32
    assert image.unique().tolist() == [pytest.approx(131 / 255)]
    assert int(label) == 8 and label.dtype == torch.int64


def test_indexing_runs_through_all_parts(cifar):
    data = CIFARC(cifar, corruption=["snow", "fog"], severity=[2, 5])
    assert len(data) == 12
    values = [round(float(data[i][0].max()) * 255) for i in range(12)]
    assert values == [20, 21, 22, 50, 51, 52, 120, 121, 122, 150, 151, 152]
    assert round(float(data[-1][0].max()) * 255) == 152
    with pytest.raises(IndexError):
        data[12]


def test_cifar_c_is_memory_mapped(cifar):
    assert isinstance(CIFARC(cifar).arrays["fog"], np.memmap)


def test_cifar_c_is_found_inside_a_parent_and_labels_may_come_once(cifar):
    np.save(cifar / "labels.npy", np.array([3, 8, 1]))
    data = CIFARC(cifar.parent, "fog", 5)
    assert [int(label) for _, label in data.part("fog", 5)] == [3, 8, 1]


def test_a_transform_gets_the_pillow_image(cifar):
    data = CIFARC(cifar, "fog", 1, transform=lambda image: image.size)
    assert data[0][0] == (32, 32)


def test_cifar_c_names_the_missing_file(cifar):
    (cifar / "snow.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"snow\.npy is missing; expected uint8 images"):
        CIFARC(cifar)
    assert len(CIFARC(cifar, "fog")) == 15


def test_cifar_c_names_the_damaged_file(cifar):
    path = cifar / "snow.npy"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"snow\.npy is damaged"):
        CIFARC(cifar)
    np.save(path, np.zeros((14, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"snow\.npy holds uint8 \(14, 32, 32, 3\)"):
        CIFARC(cifar)
    np.save(path, np.zeros((10, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match="expected 15 as the others|expected 10 as the others"):
        CIFARC(cifar)


def test_cifar_c_refuses_labels_of_another_length(cifar):
    np.save(cifar / "labels.npy", np.zeros(7))
    with pytest.raises(ValueError, match=r"labels\.npy has shape \(7,\); expected 15 labels, or 3"):
        CIFARC(cifar)


def test_an_unknown_corruption_gets_the_nearest_names(cifar):
    with pytest.raises(ValueError, match="nearest: fog"):
        CIFARC(cifar, corruption="fogg")
    with pytest.raises(ValueError, match=r"\(1, 2, 3, 4, 5\)"):
        CIFARC(cifar, severity=6)


def test_an_empty_choice_is_refused_and_not_taken_for_all(cifar, tmp_path):
    write_image_tree(tmp_path / "tiny" / "fog" / "1", ("n0",), 1)
    for load in (
        lambda: CIFARC(cifar, corruption=[]),
        lambda: TinyImageNetC(tmp_path / "tiny", corruption=()),
        lambda: ImageNetV2(tmp_path, variant=[]),
    ):
        with pytest.raises(ValueError, match=r"=\[\] selects nothing"):
            load()


def test_a_missing_root_is_named(tmp_path):
    for loader in (CIFARC, TinyImageNetC, ImageNetC, ImageNetR, ImageNetV2, FashionMNISTC):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            loader(tmp_path / "nowhere")


WNIDS = ("n01443537", "n01629819", "n01641577")


@pytest.mark.parametrize(
    ("loader", "names"), [(TinyImageNetC, CORRUPTIONS[:15]), (ImageNet3DCC, THREE_D)]
)
def test_folder_sets_read_severity_and_class_folders(loader, names, tmp_path):
    for name in names:
        for severity in range(1, 6):
            write_image_tree(tmp_path / name / str(severity), WNIDS, 2, value=10 * severity)
    data = loader(tmp_path)
    assert data.corruptions == tuple(names) and data.num_classes == 3
    part = data.part(names[3], 4)
    assert [int(label) for _, label in part] == [0, 0, 1, 1, 2, 2]
    assert round(float(part[0][0].mean()) * 255) == 40


def test_imagenet_c_groups_of_the_archives_may_stay(tmp_path):
    group = {name: "noise" if "noise" in name else "rest" for name in CORRUPTIONS[:15]}
    for name in CORRUPTIONS[:15]:
        for severity in range(1, 6):
            write_image_tree(tmp_path / group[name] / name / str(severity), WNIDS, 1)
    assert len(ImageNetC(tmp_path)) == 15 * 5 * 3


def test_extra_corruptions_take_part_where_they_are(tmp_path):
    for name in (*CORRUPTIONS[:15], "spatter"):
        for severity in range(1, 6):
            write_image_tree(tmp_path / name / str(severity), WNIDS, 1)
    assert TinyImageNetC(tmp_path).corruptions == (*CORRUPTIONS[:15], "spatter")


def test_h265_crf_is_read_where_it_is_named(tmp_path):
    for name in (*THREE_D, "h265_crf"):
        for severity in range(1, 6):
            write_image_tree(tmp_path / name / str(severity), WNIDS, 1)
    assert ImageNet3DCC(tmp_path).corruptions == THREE_D
    for names in ("h265_crf", ["h265_crf"], ["fog_3d", "h265_crf"]):
        assert "h265_crf" in ImageNet3DCC(tmp_path, names).corruptions


def test_a_missing_severity_folder_is_named(tmp_path):
    write_image_tree(tmp_path / "fog" / "1", WNIDS, 1)
    with pytest.raises(FileNotFoundError, match=r"fog/2 is missing; expected a severity"):
        TinyImageNetC(tmp_path, "fog")
    with pytest.raises(FileNotFoundError, match="gaussian_noise is missing"):
        TinyImageNetC(tmp_path)


def test_labels_follow_the_training_classes_when_given(tmp_path):
    for severity in range(1, 6):
        write_image_tree(tmp_path / "fog" / str(severity), WNIDS[1:], 1)
    data = TinyImageNetC(tmp_path, "fog", 1, classes=WNIDS)
    assert [int(label) for _, label in data.part("fog", 1)] == [1, 2]
    with pytest.raises(ValueError, match="n01641577 is no class"):
        TinyImageNetC(tmp_path, "fog", 1, classes=WNIDS[:2])


def test_a_damaged_image_is_named(tmp_path):
    write_image_tree(tmp_path / "fog" / "1", WNIDS, 1)
    broken = next((tmp_path / "fog" / "1" / WNIDS[0]).iterdir())
    broken.write_bytes(b"not an image")
    data = TinyImageNetC(tmp_path, "fog", 1)
    with pytest.raises(ValueError, match=rf"{broken.name} is damaged"):
        data[0]


def test_c_bar_strength_folders_sorted_by_number_are_severities(tmp_path):
    strengths = ("2.35", "3.20", "4.90", "6.60", "10.15")  # as text, 10.15 would come first
    for name in C_BAR:
        for level, strength in enumerate(strengths, start=1):
            write_image_tree(tmp_path / name / strength, WNIDS, 1, value=20 * level)
    data = ImageNetCBar(tmp_path)
    assert round(float(data.part("sparkles", 5)[0][0].mean()) * 255) == 100
    strength = tmp_path / "sparkles" / "2.35"
    strength.rename(tmp_path / "sparkles" / "elsewhere")
    with pytest.raises(FileNotFoundError, match="sparkles holds the strengths"):
        ImageNetCBar(tmp_path)


def test_imagenet_r_keeps_imagenet_labels_and_200_outputs(tmp_path):
    write_image_tree(tmp_path / "imagenet-r", ("n01443537", "n01484850", "n12267677"), 1)
    data = ImageNetR(tmp_path)
    assert [int(label) for _, label in data.part("rendition", 1)] == [1, 2, 988]
    assert data.logit_indices.shape == (200,)
    write_image_tree(tmp_path / "imagenet-r", ("n00000000",), 1)
    with pytest.raises(ValueError, match="n00000000 is no class"):
        ImageNetR(tmp_path)


def test_imagenet_v2_class_folders_are_read_as_numbers(tmp_path):
    for name in ImageNetV2.variants:
        write_image_tree(tmp_path / f"imagenetv2-{name}-format-val", ("2", "10", "100"), 1)
    data = ImageNetV2(tmp_path)
    labels = sorted(int(label) for _, label in data.part("threshold0.7", 1))
    assert labels == [2, 10, 100]
    assert data.part("threshold0.7", 1).samples[0][0].parent.name in ("2", "10", "100")
    assert all(int(path.parent.name) == label for path, label in data.part("top-images", 1).samples)


def _idx(array: np.ndarray) -> bytes:
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_c_idx_files_are_read_gzipped_or_not(tmp_path, packed):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    pack = gzip.compress if packed else bytes
    (tmp_path / "fmnist-c-test-ubyte.gz").write_bytes(pack(_idx(images)))
    (tmp_path / "fmnist-c-test-labels-ubyte.gz").write_bytes(pack(_idx(np.arange(6))))
    data = FashionMNISTC(tmp_path)
    assert len(data) == 6 and data[2][0].shape == (1, 28, 28) and int(data[2][1]) == 2
    assert np.array_equal((data[4][0][0] * 255).round().numpy(), images[4])


def test_fashion_mnist_c_arrays_are_read_from_npy(tmp_path):
    np.save(tmp_path / "fmnist-c-train.npy", np.zeros((6, 28, 28), np.uint8))
    np.save(tmp_path / "fmnist-c-train-labels.npy", np.arange(6))
    assert len(FashionMNISTC(tmp_path, train=True)) == 6
    with pytest.raises(FileNotFoundError, match=r"fmnist-c-test\.npy is missing"):
        FashionMNISTC(tmp_path)


def test_a_cut_idx_file_is_named(tmp_path):
    whole = _idx(np.zeros((6, 28, 28)))
    (tmp_path / "fmnist-c-test-ubyte.gz").write_bytes(whole[:-5])
    (tmp_path / "fmnist-c-test-labels-ubyte.gz").write_bytes(_idx(np.arange(6)))
    with pytest.raises(ValueError, match=r"fmnist-c-test-ubyte\.gz is damaged"):
        FashionMNISTC(tmp_path)
    (tmp_path / "fmnist-c-test-ubyte.gz").write_bytes(gzip.compress(whole)[:-5])
    with pytest.raises(ValueError, match=r"fmnist-c-test-ubyte\.gz is damaged .*end-of-stream"):
        FashionMNISTC(tmp_path)


CLEAN = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
LABELS = [0, 1, 2, 1, 0]


def test_generated_arrays_are_what_corrupt_gives(tmp_path):
    folder = generate((CLEAN, LABELS), tmp_path, corruption=["fog", "shot_noise"], progress=False)
    data = CIFARC(folder, ["fog", "shot_noise"])
    assert np.array_equal(data.arrays["fog"][10:15], corrupt(CLEAN, "fog", 3, "cifar"))
    assert data.labels.tolist() == LABELS * 5


def test_large_sets_are_generated_in_chunks_of_the_same_images(tmp_path, monkeypatch):
    monkeypatch.setattr("sparseopt.robustness.generation._CHUNK", 2)
    folder = generate((CLEAN, LABELS), tmp_path, corruption="shot_noise", progress=False)
    written = np.load(folder / "shot_noise.npy")
    for severity in range(1, 6):
        rows = written[5 * (severity - 1) : 5 * severity]
        assert np.array_equal(rows, corrupt(CLEAN, "shot_noise", severity, "cifar"))


def test_generating_again_keeps_finished_files_and_adds_missing_ones(tmp_path):
    generate((CLEAN, LABELS), tmp_path, corruption=["fog", "snow"], progress=False)
    before = (tmp_path / "fog.npy").stat().st_mtime_ns
    snow = (tmp_path / "snow.npy").read_bytes()
    (tmp_path / "snow.npy").rename(tmp_path / "snow.npy.part")  # as an interrupted run leaves it
    generate((CLEAN, LABELS), tmp_path, corruption=["fog", "snow"], progress=True)
    assert (tmp_path / "fog.npy").stat().st_mtime_ns == before
    assert (tmp_path / "snow.npy").read_bytes() == snow
    assert not (tmp_path / "snow.npy.part").exists()


def test_a_set_made_with_other_settings_is_not_mixed_in(tmp_path):
    generate((CLEAN, LABELS), tmp_path, corruption="fog", progress=False)
    with pytest.raises(ValueError, match="other scale"):
        generate((CLEAN, LABELS), tmp_path, corruption="snow", scale="tiny", progress=False)
    with pytest.raises(ValueError, match="other images"):
        generate((CLEAN[:4], LABELS[:4]), tmp_path, corruption="snow", progress=False)


@pytest.mark.slow
def test_workers_write_the_same_files(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    generate((CLEAN, LABELS), one, corruption=["snow", "glass_blur"], progress=False)
    generate((CLEAN, LABELS), two, corruption=["snow", "glass_blur"], workers=2, progress=False)
    for name in ("snow", "glass_blur"):
        assert (one / f"{name}.npy").read_bytes() == (two / f"{name}.npy").read_bytes()


def test_generated_folders_are_read_back_and_resumed(tmp_path):
    write_image_tree(tmp_path / "clean", WNIDS, 2, side=80)
    options = {"corruption": CORRUPTIONS[:15], "severity": [1, 5], "size": 56, "progress": False}
    folder = generate(tmp_path / "clean", tmp_path / "set", **options)
    data = TinyImageNetC(folder, severity=[1, 5])
    assert len(data) == 15 * 2 * 6 and data[0][0].shape == (3, 56, 56)
    path = folder / "fog" / "5" / WNIDS[1] / "image_1.JPEG"
    content, other = path.read_bytes(), folder / "fog" / "1" / WNIDS[1] / "image_1.JPEG"
    path.unlink()
    stamp = other.stat().st_mtime_ns
    generate(tmp_path / "clean", tmp_path / "set", **options)
    assert path.read_bytes() == content and other.stat().st_mtime_ns == stamp


def test_generate_refuses_bad_input_before_writing(tmp_path):
    with pytest.raises(TypeError, match="uint8"):
        generate((CLEAN / 255.0, LABELS), tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="5 images but 2 labels"):
        generate((CLEAN, [1, 2]), tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match=r"labels of shape \(5, 1\) must be \(N,\)"):
        generate((CLEAN, np.zeros((5, 1))), tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="size=16: arrays keep"):
        generate((CLEAN, LABELS), tmp_path / "a", size=16, progress=False)
    with pytest.raises(TypeError, match=r"source must be \(images, labels\), or a folder"):
        generate(CLEAN, tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="'perlin_noise' has constants for imagenet only"):
        generate((CLEAN, LABELS), tmp_path / "a", corruption=["fog", "perlin_noise"])
    with pytest.raises(ValueError, match="too small for 'glass_blur'"):
        generate((CLEAN[:, :9], LABELS), tmp_path / "a", scale="imagenet", progress=False)
    assert not (tmp_path / "a").exists()


def test_generate_refuses_folders_that_it_could_not_finish(tmp_path):
    write_image_tree(tmp_path / "clean", WNIDS, 1, side=40)
    options = {"corruption": ["fog", "perlin_noise"], "progress": False}
    with pytest.raises(ValueError, match="'perlin_noise' has constants for imagenet only"):
        generate(tmp_path / "clean", tmp_path / "a", **options)
    with pytest.raises(ValueError, match="size=0 must be >= 1"):
        generate(tmp_path / "clean", tmp_path / "a", corruption="fog", size=0, progress=False)
    image = next((tmp_path / "clean" / WNIDS[1]).iterdir())
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(ValueError, match=rf"{image.stem}.*differ in their ending only"):
        generate(tmp_path / "clean", tmp_path / "a", corruption="fog", progress=False)
    assert not (tmp_path / "a").exists()


def test_what_cannot_be_corrupted_is_refused_when_the_set_is_made():
    with pytest.raises(ValueError, match="'perlin_noise' has constants for imagenet only"):
        Corrupted(CLEAN, LABELS, "cifar", corruption=["fog", "perlin_noise"])
    with pytest.raises(ValueError, match="too small for 'glass_blur'"):
        Corrupted(CLEAN[:, :9], LABELS, "imagenet")
    for labels in (torch.zeros(5, 1), np.eye(5)):
        with pytest.raises(ValueError, match=r"one class index per image"):
            Corrupted(CLEAN, labels, "cifar")
    with pytest.raises(ValueError, match="seed=-1"):
        Corrupted(CLEAN, LABELS, "cifar", seed=-1)


def test_images_corrupted_on_the_fly_equal_a_generated_set(tmp_path):
    folder = generate((CLEAN, LABELS), tmp_path, corruption="elastic_transform", progress=False)
    written, lazy = CIFARC(folder, "elastic_transform"), Corrupted(CLEAN, LABELS, "cifar")
    loader = torch.utils.data.DataLoader(lazy.part("elastic_transform", 2), batch_size=2)
    images = torch.cat([batch for batch, _ in loader])
    expected = torch.stack([image for image, _ in written.part("elastic_transform", 2)])
    assert torch.equal(images, expected)


def test_a_part_is_indexed_from_its_end_too():
    part = Corrupted(CLEAN, LABELS, "cifar").part("fog", 3)
    assert torch.equal(part[-1][0], part[4][0]) and int(part[-4][1]) == LABELS[1]
    with pytest.raises(IndexError):
        part[5]
    assert len(list(part)) == 5


def test_real_published_fashion_mnist_c_files_are_read():
    """The first 100 images of the published set, where a copy of them is at hand."""
    import os

    folder = os.environ.get("SPARSEOPT_FASHION_MNIST_C")
    if folder is None:
        pytest.skip("set SPARSEOPT_FASHION_MNIST_C to a folder with fmnist-c-test-ubyte.gz")
    data = FashionMNISTC(folder)
    assert data[0][0].shape == (1, 28, 28) and 0 <= int(data[0][1]) < 10
