"""The recipes of examples/recipes: runs that stop and go on, and what they refuse."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipe_runs import CHT, FOLDER, NAMES, PRINTED, small
from test_stacks_examples import free_port

import sparseopt

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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_full_network_trains(example, name, tmp_path):
    command = small(name, tmp_path, "--robustness", "none", epochs=1, batch_size=8,
                    update_every=1, algo="set")  # fmt: skip
    command.remove("--tiny")
    assert example.run.main(command)["row"]["sparsity"] == pytest.approx(0.5, abs=0.001)


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
    assert not (tmp_path / "run").exists()


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
