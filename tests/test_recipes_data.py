"""The recipes of examples/recipes read data sets and corruption sets as they are published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from recipe_runs import NAMES, PRINTED, small

from sparseopt import robustness


@pytest.mark.parametrize("name", NAMES)
def test_labels_belong_to_their_pictures(example, name, tmp_path):
    """The made-up pictures are the brighter the higher their label."""
    recipe = example.recipe.override(
        example.recipe.load(name), [] if "fashion" in name or "tiny" in name else ["size=32"]
    )
    data = example.inputs.load(recipe, example.fake.write(recipe.data, tmp_path))
    for part, count in ((data.train, 16), (data.test, 8)):
        assert len(part) in (count, 20)
        pairs = [part[i] for i in range(len(part))]
        assert data.task == "segmentation" or pairs[0][0].shape == recipe.shape
        labels = [int(target.flatten().mode().values) for _, target in pairs]
        if data.task == "segmentation":
            pairs = [(x[:, (y > 0) & (y < 255)], y) for x, y in pairs]
            labels = [int(y[(y > 0) & (y < 255)].max()) if x.numel() else None for x, y in pairs]
        bright = [float(x.mean()) for x, _ in pairs]
        if isinstance(part, example.inputs.Pictures):  # augmentation pads with black
            bright = [float(np.asarray(part.picture(i)).mean()) for i in range(len(part))]
        known = [(b, k) for b, k in zip(bright, labels, strict=True) if k is not None]
        correlation = np.corrcoef(np.array(known).T)[0, 1]
        assert len(known) > 4 and correlation > 0.9


def test_cifar_has_its_planes_in_order(example, tmp_path):
    import pickle

    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    picture = np.zeros((1, 3, 32, 32), np.uint8)
    picture[0, 0], picture[0, 2, 5, 7] = 200, 99  # all red, one blue pixel
    content = {b"data": picture.reshape(1, -1), b"fine_labels": [42], b"coarse_labels": [1]}
    for part in ("train", "test"):
        (folder / part).write_bytes(pickle.dumps(content))
    recipe = example.recipe.load("resnet34-cifar100")
    for root in (tmp_path, folder):
        test = example.inputs.load(recipe, root).test
        assert test.images[0, 5, 7].tolist() == [200, 0, 99] and int(test.labels[0]) == 42


def test_masks_are_cropped_with_their_images(example, tmp_path):
    """Where the mask has a class the picture is bright; outside the picture it is void."""
    recipe = example.recipe.override(example.recipe.load("fcn-vgg16-voc"), ["size=48"])
    data = example.inputs.load(recipe, example.fake.write("voc", tmp_path))
    torch.manual_seed(0)
    seen_void = 0
    for i in range(8, 16):
        image, mask = data.train[i]
        assert image.shape == (3, 48, 48) and mask.shape == (48, 48)
        inside, around = image.mean(0)[(mask > 0) & (mask < 255)], image.mean(0)[mask == 0]
        assert not inside.numel() or not around.numel() or inside.mean() > around.mean() + 0.5
        seen_void += int((mask == 255).sum())
    assert seen_void > 0


OFFICIAL = {
    "vgg16-cifar10": ("CIFAR-10-C", "cifar"),
    "efficientnet-b0-tinyimagenet": ("Tiny-ImageNet-C", "tiny"),
    "resnet50-imagenet": ("ImageNet-C", "imagenet"),
}


@pytest.mark.parametrize("name", OFFICIAL)
@pytest.mark.parametrize("inside", [True, False])
def test_official_corruption_sets_are_read(example, name, inside, tmp_path):
    """Written in the layout of the download, they give what corrupting on the fly gives."""
    folder, scale = OFFICIAL[name]
    bad = ["brightness", "fog"]
    command = small(name, tmp_path / "run", "--robustness", "none", epochs=1, algo="dense")
    run = example.run.main(command)["run"]
    test = run.inputs.test
    if name == "vgg16-cifar10":
        source = (test.images, test.labels.numpy())
    else:
        source = tmp_path / "clean"
        for i in range(len(test)):
            place = source / run.inputs.classes[int(test.labels[i])]
            place.mkdir(parents=True, exist_ok=True)
            test.picture(i).save(place / f"{i}.png")
    robustness.generate(
        source, tmp_path / "sets" / folder, scale=scale, corruption=bad, progress=False
    )
    root = tmp_path / "sets" / ("" if inside else folder)
    (read,) = example.corrupted.official(run.recipe, run.inputs, root, bad, None)
    made = example.corrupted.generated(run.recipe, run.inputs, bad, None)
    assert read.name == folder and read.keys() == made.keys()
    ours = sorted((int(label), float(x.mean())) for x, label in made.part("brightness", 3))
    theirs = sorted((int(label), float(x.mean())) for x, label in read.part("brightness", 3))
    np.testing.assert_allclose(theirs, ours, atol=0.03)


def test_the_published_fashion_mnist_c_is_read(example, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "fmnist-c-test.npy", rng.integers(0, 256, (6, 28, 28), dtype=np.uint8))
    np.save(tmp_path / "fmnist-c-test-labels.npy", np.arange(6))
    command = small("mlp-fashionmnist", tmp_path / "run", "--robustness", str(tmp_path), epochs=1)
    result = example.run.main(command)
    assert result["robustness"]["Fashion-MNIST-C"].counts == {"mixed": {1: 6}}


def test_sets_without_a_download_say_so(example, tmp_path):
    with pytest.raises(ValueError, match="voc has no official corruption set"):
        example.run.main(
            small("fcn-vgg16-voc", tmp_path / "run", "--robustness", str(tmp_path), epochs=1)
        )


@pytest.mark.parametrize("name", PRINTED)
def test_the_corruptions_are_those_of_the_paper(example, name, tmp_path):
    recipe = example.recipe.load(name)
    data = example.inputs.load(recipe, example.fake.write(recipe.data, tmp_path))
    made = example.corrupted.generated(recipe, data, None, None)
    kinds, levels = {"ucf101": (16, 4), "tinyimagenet": (15, 5), "imagenet": (15, 5)}.get(
        recipe.data, (19, 5)
    )
    assert (len(made.corruptions), len(made.severities)) == (kinds, levels)
