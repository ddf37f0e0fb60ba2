"""The recipes of examples/recipes: the numbers of Table 3, and runs that stop and go on."""

from __future__ import annotations

import csv
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_stacks_examples import free_port

import sparseopt
from sparseopt import robustness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # their own
    for needed in ("cv2", "PIL", "fvcore", "timm", "torchvision", "tqdm"):
        pytest.importorskip(needed)

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "recipes"

# Table 3 of arXiv 2410.03030 as it is printed: model, data, epochs, LR, batch, LR schedule,
# optimizer, weight decay, distribution, update interval, drop-fraction schedule, P.
TABLE_3 = """
vgg16-cifar10                | VGG16           | CIFAR10         | 160 | 0.1    | 100 | Cosine     | SGD   | 5e-4 | Uniform | 500  | polynomial | 0.1
resnet34-cifar100            | ResNet34        | CIFAR100        | 160 | 0.1    | 100 | Cosine     | SGD   | 5e-4 | Uniform | 500  | polynomial | 0.1
efficientnet-b0-tinyimagenet | EfficientNet-B0 | TinyImageNet    | 100 | 0.1    | 128 | Cosine     | SGD   | 5e-4 | Uniform | 100  | polynomial | 0.1
resnet50-imagenet            | ResNet50        | ImageNet        | 90  | 0.1    | 256 | Step       | SGD   | 1e-4 | ERK     | 2000 | polynomial | 0.1
deit-base-imagenet           | DeiT-base       | ImageNet        | 200 | 0.0005 | 512 | Cosine     | AdamW | 5e-2 | Uniform | 7000 | polynomial | 0.5
resnet50-3d-ucf101           | 3D ResNet50     | UCF101          | 80  | 0.1    | 8   | Cosine     | SGD   | 1e-3 | ERK     | 300  | polynomial | 0.1
i3d-ucf101                   | I3D             | UCF101          | 80  | 0.1    | 8   | Cosine     | SGD   | 1e-3 | ERK     | 300  | polynomial | 0.1
mlp-fashionmnist             | MLP             | Fashion-MNIST   | 100 | 0.025  | 8   | Cosine     | SGD   | 5e-4 | ERK     | 300  | polynomial | 0.1
fcn-vgg16-voc                | FCN-VGG16       | Pascal VOC 2012 | 80  | 0.0001 | 4   | polynomial | SGD   | 1e-4 | ERK     | 500  | cosine     | 0.5
"""  # noqa: E501
PRINTED = {
    name: columns
    for name, *columns in (
        [cell.strip() for cell in line.split("|")] for line in TABLE_3.strip().splitlines()
    )
}
MODELS = {
    "VGG16": "vgg16", "ResNet34": "resnet34", "EfficientNet-B0": "efficientnet_b0",
    "ResNet50": "resnet50", "DeiT-base": "deit_base", "3D ResNet50": "slow_resnet50",
    "I3D": "i3d_resnet50", "MLP": "mlp", "FCN-VGG16": "fcn_vgg16",
}  # fmt: skip
SAMPLES = {  # training images or videos of each set
    "cifar10": 50_000, "cifar100": 50_000, "tinyimagenet": 100_000, "imagenet": 1_281_167,
    "ucf101": 9_537, "fashionmnist": 60_000, "voc": 1_464,
}  # fmt: skip
CHT = "mlp-fashionmnist-cht"
NAMES = [*PRINTED, CHT]


@pytest.fixture(scope="module")
def example() -> Iterator[SimpleNamespace]:
    """The modules of examples/recipes; afterwards they are forgotten."""
    local = {path.stem for path in (*FOLDER.glob("*.py"), *FOLDER.parent.glob("*.py"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        patch.setattr(sys, "path", [*sys.path])
        names = ("corrupted", "fake", "inputs", "logs", "networks", "recipe", "run", "training")
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    for name in local & set(sys.modules):
        del sys.modules[name]


def small(name: str, out: Path, *more: str, algo: str = "rigl", **changed: Any) -> list[str]:
    """A command that runs a recipe on made-up data in about a second."""
    side = {"tinyimagenet": 64, "fashionmnist": 28}.get(name.split("-")[-1], 32)
    side = 28 if name == CHT else side
    values = {"epochs": 2, "batch_size": 4, "update_every": 2, "size": side} | changed
    values |= {"frames": 4} if "ucf101" in name else {}
    bad = ("jumble", "gaussian_noise") if "ucf101" in name else ("contrast", "gaussian_noise")
    command = [
        name, "--data", "fake", "--tiny", "--algo", algo, "--out", str(out),
        "--set", *(f"{key}={value}" for key, value in values.items()),
    ]  # fmt: skip
    parts = [] if "--robustness" in more else ["--corruption", *bad, "--severity", "1", "4"]
    return [*command, *parts, *more]


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRINTED)
def test_a_recipe_has_the_numbers_of_table_3(example, name):
    (model, data, epochs, rate, batch, schedule, optimizer, decay, distribution, every, drop,
     fraction) = PRINTED[name]  # fmt: skip
    recipe = example.recipe.load(name)
    assert recipe.model == MODELS[model]
    assert data.lower().replace("-", "").replace("pascal voc 2012", "voc") == recipe.data
    numbers = (recipe.epochs, recipe.learning_rate, recipe.batch_size, recipe.weight_decay,
               recipe.update_every, recipe.drop_fraction)  # fmt: skip
    assert numbers == tuple(map(float, (epochs, rate, batch, decay, every, fraction)))
    words = (recipe.learning_rate_schedule, recipe.optimizer, recipe.distribution)
    assert words == (schedule.lower(), optimizer.lower(), distribution.lower())
    assert recipe.drop_schedule == drop and recipe.momentum == 0.9 and recipe.stop == 1.0
    assert recipe.samples == SAMPLES[recipe.data] and "Table 3" in recipe.source


def test_every_row_has_a_recipe_and_every_recipe_a_row(example):
    assert set(example.recipe.names()) == {*PRINTED, CHT}


def test_the_preset_of_cannistraci_hebb_training_differs_where_its_code_does(example):
    ours, printed = example.recipe.load(CHT), example.recipe.load("mlp-fashionmnist")
    assert (ours.epochs, ours.learning_rate, ours.weight_decay) == (100, 0.025, 5e-4)
    assert (ours.batch_size, ours.learning_rate_schedule, ours.distribution) == (
        32, "linear", "uniform",
    )  # fmt: skip
    assert (ours.drop_fraction, ours.drop_schedule) == (0.3, "constant")
    assert ours.update_every == ours.steps_per_epoch == 1875
    assert ours.widths == [784, 1568, 1568, 1568, 10] and ours.exclude == ["7"]
    assert ours.data == printed.data and ours.algorithm_options("chts")["stop"] == 0.75


def test_the_drop_fraction_of_the_table_reaches_the_algorithm(example):
    from sparseopt.schedules import Cosine, Polynomial

    vgg, fcn = (example.recipe.load(name) for name in ("vgg16-cifar10", "fcn-vgg16-voc"))
    chosen = vgg.algorithm_options("rigl")
    assert chosen == {
        "drop_fraction": Polynomial(0.1, power=0.01), "stop": 1.0, "distribution": "uniform",
    }  # fmt: skip
    assert fcn.algorithm_options("set")["drop_fraction"] == Cosine(0.5)
    assert fcn.algorithm_options("set")["topology"] == "magnitude"
    assert "drop_fraction" not in vgg.algorithm_options("mest_g")  # its P is the bound
    assert "drop_fraction" not in vgg.algorithm_options("static")


def test_mest_and_granet_start_where_the_paper_says(example):
    tiny, imagenet = (
        example.recipe.load(name) for name in ("efficientnet-b0-tinyimagenet", "resnet50-imagenet")
    )
    for recipe, sparsity, mest, granet in ((tiny, 0.7, 0.33, 0.8), (imagenet, 0.1, 0.92, 0.95)):
        for algo, density in (("mest_g", mest), ("granet_g", granet)):
            made = getattr(sparseopt.algorithms, algo)(sparsity, **recipe.algorithm_options(algo))
            assert made.density(0.0) == pytest.approx(density), (recipe.name, algo)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("cosine", [1.0, 0.5, 0.0]),
        ("polynomial", [1.0, 0.5**0.9, 0.0]),
        ("linear", [1.0, 1 - 0.99 / 1.8, 0.01]),
        ("step", [1.0, 0.1, 0.001]),
    ],
)
def test_learning_rates_at_the_start_the_middle_and_the_end(example, schedule, expected):
    epochs, per_epoch = 90 if schedule == "step" else 10, 7
    steps = (0, epochs * per_epoch // 2, epochs * per_epoch)
    got = [example.training.learning_rate_factor(schedule, t, per_epoch, epochs) for t in steps]
    assert got == pytest.approx(expected)


def test_a_value_can_be_changed_and_a_wrong_name_is_named(example):
    recipe = example.recipe.load("vgg16-cifar10")
    changed = example.recipe.override(recipe, ["epochs=3", "topology=magnitude", "exclude=null"])
    assert (changed.epochs, changed.topology, changed.exclude) == (3, "magnitude", None)
    with pytest.raises(ValueError, match="did you mean 'epochs'"):
        example.recipe.override(recipe, ["epoch=3"])
    with pytest.raises(ValueError, match="did you mean 'vgg16-cifar10'"):
        example.recipe.load("vgg16-cifar")
    with pytest.raises(ValueError, match="learning_rate_schedule='cosin' must be one of"):
        example.recipe.override(recipe, ["learning_rate_schedule=cosin"])


def test_the_examples_in_the_docstrings_run(example):
    for module in (example.recipe, example.training):
        tried = doctest.testmod(module)
        assert tried.attempted > 0 and tried.failed == 0


def test_the_page_has_the_table_and_every_recipe(example):
    page = (FOLDER / "README.md").read_text()
    assert example.recipe.table() in page


def test_the_sample_on_the_page_is_what_its_command_prints_but_for_the_numbers(
    example, tmp_path, capsys
):
    page = (FOLDER / "README.md").read_text()
    sample = page.partition("<!-- table: recipe -->\n```\n$ python ")[2].partition("\n```")[0]
    command, printed = re.split(r"(?<!\\)\n", sample, maxsplit=1)
    script, *arguments = shlex.split(command.replace("\\\n", ""))
    assert script == "examples/recipes/run.py"
    quick = ["--set", "epochs=2", "batch_size=4", "update_every=2", "--data", "fake", "--tiny"]
    example.run.main([*arguments, *quick, "--out", str(tmp_path)])
    assert without_numbers(capsys.readouterr().out) == without_numbers(printed)


def without_numbers(text: str) -> str:
    return re.sub(r"\d[\d,.]*(e[+-]\d+)?", "#", " ".join(text.split()))


# Tables 4-6: training FLOPs, FLOPs of a sample, parameters at S = 0.5, each in its unit
@pytest.mark.parametrize(
    "name, training, inference, parameters",
    [
        ("vgg16-cifar10", 0.76e16, 3.17e8, 7.89e6),
        ("resnet34-cifar100", 2.79e16, 1.18e9, 10.70e6),
        ("efficientnet-b0-tinyimagenet", 1.04e15, 3.48e7, 2.29e6),  # printed a column too far right
    ],
)
def test_the_plan_costs_what_the_paper_prints(
    example, capsys, name, training, inference, parameters
):
    found = example.run.main([name, "--plan", "--algo", "set", "--sparsity", "0.5"])["flops"]
    assert found.training == pytest.approx(training, rel=0.003)
    assert found.inference == pytest.approx(inference, rel=0.02)
    assert found.parameters == pytest.approx(parameters, rel=0.002)
    assert f"{found.parameters:,}" in capsys.readouterr().out


def test_the_plan_of_resnet50_has_the_parameters_of_table_7(example):
    found = example.run.main(["resnet50-imagenet", "--plan", "--sparsity", "0.1"])["flops"]
    assert found.parameters == pytest.approx(23.00e6, rel=0.001)
    assert found.steps == 90 * 5005


# --- runs -----------------------------------------------------------------------------------------

# Different algorithms, so that what each keeps between updates goes through a checkpoint too.
ALGORITHMS = {
    "vgg16-cifar10": "rigl", "resnet34-cifar100": "mest_g", "fcn-vgg16-voc": "set",
    "efficientnet-b0-tinyimagenet": "granet_r", "resnet50-imagenet": "gmp", CHT: "chts",
    "deit-base-imagenet": "snfs", "resnet50-3d-ucf101": "dense", "i3d-ucf101": "granet_g",
    "mlp-fashionmnist": "cht",
}  # fmt: skip


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    """The same structure and the same bits."""
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {"seconds"}:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


class Killed(Exception):
    pass


def interrupted(example: Any, command: list[str], monkeypatch: Any, after: int) -> None:
    """Run the command, and die in the middle of the second epoch."""
    steps, real = [0], example.training.step

    def dying(*arguments: Any) -> Any:
        steps[0] += 1
        if steps[0] > after:
            raise Killed
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(example.training, "step", dying)
        with pytest.raises(Killed):
            example.run.main(command)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_killed_goes_on_as_if_nothing_had_happened(
    example, name, tmp_path, monkeypatch, capsys
):
    algo = ALGORITHMS[name]
    whole = example.run.main(small(name, tmp_path / "whole", algo=algo))
    command = small(name, tmp_path / "killed", "--resume", algo=algo)
    interrupted(example, command, monkeypatch, after=len(whole["run"].loader) + 1)
    assert len(rows(tmp_path / "killed")) == 1
    again = example.run.main(command)
    saved = [
        torch.load(tmp_path / run / "checkpoint.pt", weights_only=True)
        for run in ("whole", "killed")
    ]
    assert_same(*saved)
    assert again["robustness"] == whole["robustness"] and again["flops"] == whole["flops"]
    assert_complete(tmp_path / "killed", again, algo, name, capsys.readouterr().out)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_complete(
    folder: Path, result: dict[str, Any], algo: str, name: str, printed: str
) -> None:
    """The log, both reports and the exact sparsity are there."""
    logged = rows(folder)
    assert [int(row["epoch"]) for row in logged] == [1, 2]
    metric = "mean_iou" if "voc" in name else "accuracy"
    assert 0 <= float(logged[-1][metric]) <= 1 and float(logged[-1]["loss"]) > 0
    assert len(list(folder.glob("robustness-*.json"))) == 1
    cost = json.loads((folder / "flops.json").read_text())
    assert cost["share"] == pytest.approx(result["flops"].share)
    assert result["run"].loader.sampler.epoch == 1  # every epoch in an order of its own
    assert "training FLOPs" in printed and "gaussian_noise" in printed
    if algo == "dense":
        assert cost["share"] == 1.0 and "sparsity" not in logged[-1]
        assert not (folder / "report.html").exists()
    else:
        assert float(logged[-1]["sparsity"]) == pytest.approx(0.5, abs=0.001)
        assert cost["share"] < 1.0 and "sparsity 50.00 %" in printed
        assert "FLOPs" in (folder / "report.html").read_text()


@pytest.mark.parametrize("algo", ["dense", *sparseopt.available()])
def test_every_algorithm_runs_under_a_recipe(example, algo, tmp_path):
    option = ["--option", "n=2", "m=4"] if algo == "nm" else []
    more = (*option, "--robustness", "none")
    values = {"epochs": 3, "batch_size": 1} if algo == "acdc" else {}  # its phases need steps
    result = example.run.main(small("mlp-fashionmnist", tmp_path, *more, algo=algo, **values))
    optimizer = result["run"].optimizer
    if algo == "dense":
        assert type(optimizer) is torch.optim.SGD
    else:
        assert optimizer.algorithm.name == algo
        assert optimizer.sparsity == pytest.approx(0.5, abs=0.01)


def test_a_network_learns_the_made_up_data(example, tmp_path):
    values = {"epochs": 80, "learning_rate": 0.05}
    command = small("mlp-fashionmnist", tmp_path, "--robustness", "none", **values)
    result = example.run.main([*command, "--sparsity", "0.8"])
    assert result["run"].rows[-1]["loss"] < 0.5 * result["run"].rows[0]["loss"]
    assert result["row"]["accuracy"] > 0.5 and result["row"]["updates"] == 159


@pytest.mark.parametrize("extra", [["--bf16"], ["--storage", "compact"], ["--compute", "sparse"]])
def test_precision_storage_and_compute_are_options(example, extra, tmp_path, monkeypatch):
    seen = []
    real = example.training.cross_entropy

    def spied(scores: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        seen.append(scores.dtype)
        return real(scores, *arguments, **options)

    monkeypatch.setattr(example.training, "cross_entropy", spied)
    command = small("mlp-fashionmnist", tmp_path, *extra, "--robustness", "none", algo="set")
    optimizer = example.run.main([*command, "--sparsity", "0.9"])["run"].optimizer
    assert set(seen) == {torch.bfloat16 if extra == ["--bf16"] else torch.float32}
    assert ("storage='masked'" in repr(optimizer)) == (extra == ["--bf16"])


def test_two_processes_train_what_one_does(example, tmp_path):
    """The network has no batch norm: half the batch each gives the gradient of the whole."""
    command = small("mlp-fashionmnist", tmp_path / "two", "--robustness", "none", algo="rigl")
    environment = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(FOLDER / "run.py"), *command],
            env=os.environ | environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    one = example.run.main(
        small("mlp-fashionmnist", tmp_path / "one", "--robustness", "none", algo="rigl")
    )
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0] and printed[1] == ""
    saved = torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)
    assert saved["rows"][-1]["loss"] == pytest.approx(one["row"]["loss"], rel=1e-4)
    assert saved["rows"][-1]["accuracy"] == one["row"]["accuracy"]
    ours = one["run"].model.state_dict()
    for weight, theirs in saved["model"].items():
        torch.testing.assert_close(theirs, ours[weight], rtol=1e-3, atol=1e-5)


def test_tensorboard_gets_every_number_of_an_epoch(example, tmp_path, monkeypatch):
    logged = []

    class Writer:
        def __init__(self, folder: str) -> None:
            self.folder = folder

        def add_scalar(self, *scalar: Any) -> None:
            logged.append(scalar)

        def flush(self) -> None:
            pass

    board = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    row = example.run.main(small("mlp-fashionmnist", tmp_path, "--robustness", "none"))["row"]
    assert {name: value for name, value, epoch in logged if epoch == 2} == row
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert example.logs.tensorboard(tmp_path) is None


def test_a_topology_comes_from_the_correlations_of_the_data(example, tmp_path):
    more = ("--topology", "csti", "--robustness", "none")
    values = {"widths": "[784,784,10]", "epochs": 1}
    command = small("mlp-fashionmnist", tmp_path, *more, algo="static", **values)
    command.remove("--tiny")  # CSTI wants a whole number of copies of the input
    run = example.run.main([*command, "--sparsity", "0.9"])["run"]
    batches = torch.utils.data.DataLoader(run.inputs.train, 256)
    layer = run.optimizer.layers[0]
    expected = sparseopt.topologies.csti(batches)(layer, layer.nnz, torch.Generator())
    assert torch.equal(layer.mask, expected)


def test_a_pretrained_backbone_is_pruned_by_magnitude(example, tmp_path):
    torch.manual_seed(1)
    recipe = example.recipe.load("fcn-vgg16-voc")
    theirs = {
        name: torch.randn_like(value)
        for name, value in example.networks.build(recipe, tiny=True).state_dict().items()
        if name.startswith("features.")
    }
    torch.save({**theirs, "classifier.0.weight": torch.zeros(3)}, tmp_path / "vgg16.pth")
    command = small("fcn-vgg16-voc", tmp_path / "run", "--weights", str(tmp_path / "vgg16.pth"),
                    "--robustness", "none", algo="static", learning_rate=0.0, epochs=1)  # fmt: skip
    run = example.run.main(command)["run"]
    for layer in run.optimizer.layers:
        if layer.name.startswith("features."):
            whole = theirs[layer.name]
            assert torch.equal(layer.weight, whole * layer.mask)
            if not layer.dense:
                assert whole[layer.mask].abs().min() >= whole[~layer.mask].abs().max()


def test_weights_that_do_not_fit_are_refused(example, tmp_path):
    torch.save({"features.0.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no features\.0\.weight of shape \(8, 3, 3, 3\)"):
        example.run.main(
            small("fcn-vgg16-voc", tmp_path / "run", "--weights", str(tmp_path / "other.pth"))
        )


# --- refusals -------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten_and_not_mixed_with_another(example, tmp_path):
    more = ("--robustness", "none")
    example.run.main(small("mlp-fashionmnist", tmp_path, *more, epochs=1))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(FileExistsError, match="--resume"):
        example.run.main(small("mlp-fashionmnist", tmp_path, *more, epochs=1))
    with pytest.raises(ValueError, match=r"epochs=1, not 2; sparsity=0\.5, not 0\.9"):
        command = small("mlp-fashionmnist", tmp_path, *more, "--resume", epochs=2)
        example.run.main([*command, "--sparsity", "0.9"])
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


@pytest.mark.parametrize("name", [name for name in PRINTED if "fashion" not in name])
def test_missing_data_are_named_with_the_layout(example, name, tmp_path):
    command = [name, "--weights", "none", "--out", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="--data is needed: the folder that holds"):
        example.run.main(command)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="is missing"):
        example.run.main([*command, "--data", str(tmp_path / "empty")])


def test_an_incomplete_download_is_not_taken_for_the_whole_set(example, tmp_path):
    example.fake.write("imagenet", tmp_path / "data")
    command = ["resnet50-imagenet", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "r")]
    with pytest.raises(ValueError, match="has 4 classes and the recipe 1000"):
        example.run.main(command)


def test_fine_tuning_asks_for_the_pretrained_backbone(example, tmp_path):
    with pytest.raises(ValueError, match="--weights none"):
        example.run.main(["fcn-vgg16-voc", "--data", str(tmp_path), "--out", str(tmp_path / "run")])


def test_a_batch_that_cannot_be_shared_out_is_refused(example, tmp_path):
    training = example.training
    processes = training.World(0, 3, torch.device("cpu"))
    recipe = example.recipe.load("vgg16-cifar10")
    with pytest.raises(ValueError, match="must be a multiple of their number, 3"):
        training.Training(recipe, None, processes, torch.nn.Linear(1, 1), None)


# --- data -----------------------------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_full_network_trains(example, name, tmp_path):
    command = small(name, tmp_path, "--robustness", "none", epochs=1, batch_size=8,
                    update_every=1, algo="set")  # fmt: skip
    command.remove("--tiny")
    assert example.run.main(command)["row"]["sparsity"] == pytest.approx(0.5, abs=0.001)
