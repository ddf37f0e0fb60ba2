"""Other people's training code, before and after the diffs that docs/integrating.md shows.

The programs in tests/third_party are stand-ins of our own for code that we have seen; the diffs
beside them make them sparse. To change one: ``git apply`` its diff, edit, and keep ``git diff``.
"""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from common import assert_same, assert_zeros

import sparseopt
from sparseopt import SparseOptimizer

FOLDER = Path(__file__).parent / "third_party"
DIFFS = sorted(path.stem for path in FOLDER.glob("*.diff"))
PROGRAMS = [name for name in DIFFS if not (FOLDER / name).is_dir()]
every_program = pytest.mark.parametrize("name", PROGRAMS)
both_storages = pytest.mark.parametrize("storage", ["masked", "compact"])


def test_the_page_shows_every_diff(root):
    page = (root / "docs" / "integrating.md").read_text()
    assert all(f"\n```diff\n{(FOLDER / f'{name}.diff').read_text()}```\n" in page for name in DIFFS)


@pytest.fixture(scope="session")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the programs with all diffs applied."""
    folder = tmp_path_factory.mktemp("changed") / "third_party"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DIFFS:
        subprocess.run(["git", "apply", f"{name}.diff"], cwd=folder, check=True)
    (folder / "hebbian" / "topology.py").unlink()  # as the page says
    return folder


def run(code: Path, name: str, *arguments: Any) -> Any:
    """What ``main`` of a program returns; its modules are forgotten again."""
    sys.path.insert(0, str(code))
    try:
        return importlib.import_module(name).main(*arguments)
    finally:
        sys.path.remove(str(code))
        for loaded, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None)).startswith(str(code)):
                del sys.modules[loaded]


def wrapped_with(**forced: Any) -> Callable[..., SparseOptimizer]:
    """SparseOptimizer with some arguments of ours, where the program does not name them."""

    def wrap(optimizer: Any, /, algo: str, **options: Any) -> SparseOptimizer:
        return SparseOptimizer(optimizer, algo, **forced | options)

    return wrap


def outcome(model: Any, optimizer: Any) -> dict[str, Any]:
    return {
        "weights": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [dict(one) for one in getattr(optimizer, "history", ())],
    }


def updates_due(optimizer: SparseOptimizer) -> int:
    total, every = optimizer.total_steps, optimizer.update_every
    return sum(optimizer.algorithm.due(step, total, every) for step in range(1, total + 1))


def assert_resumes(code: Path, name: str, folder: Path) -> tuple[Any, SparseOptimizer]:
    """Interrupted in the middle, it ends as it does in one go."""
    for part in ("whole", "halves"):
        (folder / part).mkdir()
    model, optimizer = run(code, name, folder / "whole")
    run(code, name, folder / "halves", 2)
    assert_same(outcome(*run(code, name, folder / "halves")), outcome(model, optimizer))
    return model, optimizer


@every_program
def test_the_program_is_dense_and_resumes_before(name, tmp_path):
    model, optimizer = assert_resumes(FOLDER, name, tmp_path)
    assert not isinstance(optimizer, SparseOptimizer)
    assert all(bool((p != 0).all()) for p in model.parameters() if p.ndim > 1)


@every_program
@both_storages
def test_the_program_is_sparse_and_resumes_after(name, storage, changed, tmp_path, monkeypatch):
    monkeypatch.setattr(sparseopt, "SparseOptimizer", wrapped_with(storage=storage))
    model, optimizer = assert_resumes(changed, name, tmp_path)
    assert_zeros(optimizer)
    assert optimizer.sparsity == pytest.approx(0.9, abs=1e-3)
    assert {layer.name for layer in optimizer.layers} == {"0.weight", "3.weight", "5.weight"}
    assert all(layer.weight is model.get_parameter(layer.name) for layer in optimizer.layers)
    assert optimizer.steps == optimizer.total_steps
    assert optimizer.updates == len(optimizer.history) == updates_due(optimizer) > 2
    assert all(record.density >= optimizer.density for record in optimizer.history)


@every_program
def test_with_nothing_sparse_the_change_changes_nothing(name, changed, tmp_path, monkeypatch):
    def dense(optimizer: Any, /, algo: str, **options: Any) -> SparseOptimizer:
        return SparseOptimizer(optimizer, "static", **options | {"sparsity": 0.0})

    monkeypatch.setattr(sparseopt, "SparseOptimizer", dense)
    for folder in ("before", "after"):
        (tmp_path / folder).mkdir()
    before, _ = run(FOLDER, name, tmp_path / "before")
    after, _ = run(changed, name, tmp_path / "after")
    assert_same(after.state_dict(), before.state_dict())


# --- what single programs are about ---------------------------------------------------------------


def test_an_average_kept_by_hand_is_exported_sparse(changed, tmp_path):
    for code, most in ((FOLDER, 1.0), (changed, 0.1)):
        folder = tmp_path / code.parent.name
        folder.mkdir()
        _, optimizer = run(code, "average", folder)
        average = torch.load(folder / "average.pt", weights_only=True)
        weights = [value for value in average.values() if value.ndim > 1]
        nonzero = sum(int(weight.count_nonzero()) for weight in weights)
        assert nonzero == pytest.approx(most * sum(weight.numel() for weight in weights), abs=2)


def test_micro_batches_are_counted_as_one_step_and_the_short_window_too(changed, tmp_path):
    _, optimizer = run(changed, "trainer", tmp_path)
    assert optimizer.steps == 4 * 3  # 10 micro-batches: 4, 4 and 2


def test_rates_written_by_hand_reach_the_inner_optimizer_and_fall(changed, tmp_path):
    _, optimizer = run(changed, "schedules", tmp_path)
    (group,) = optimizer.inner.param_groups
    assert group["lr"] < 0.1 and group["momentum"] == 0.9 and group["dampening"] == 0.5


def test_the_topology_of_one_stage_is_that_of_the_next(changed, tmp_path, monkeypatch):
    made = []

    def wrap(*arguments: Any, **options: Any) -> SparseOptimizer:
        made.append((SparseOptimizer(*arguments, **options), {}))
        made[-1][1].update({name: mask.clone() for name, mask in made[-1][0].masks.items()})
        return made[-1][0]

    monkeypatch.setattr(sparseopt, "SparseOptimizer", wrap)
    run(changed, "stages", tmp_path)
    (first, _), (second, start) = made
    assert_same(start, first.masks)
    assert type(first.inner).__name__ == "Adam" and type(second.inner).__name__ == "SGD"
    assert any(bool((start[name] != second.masks[name]).any()) for name in start)


# --- action recognition ---------------------------------------------------------------------------

WAYS: dict[str, list[str]] = {
    "from scratch": [],
    "fine-tuning, in groups": ["--fine_tune"],
    "nesterov": ["--nesterov", "--learning_rate", "0.02"],
}
every_way = pytest.mark.parametrize("way", WAYS)


def video(code: Path, folder: Path, *arguments: str) -> Any:
    folder.mkdir(exist_ok=True)
    common = ["--output_dir", str(folder), "--check_resume"]
    return run(code / "action_recognition", "run", [*common, *arguments])


def assert_video_resumes(code: Path, folder: Path, *arguments: str) -> Any:
    model, optimizer, log = video(code, folder / "whole", *arguments)
    *_, first = video(code, folder / "halves", "--stop_after", "2", *arguments)
    again, resumed, second = video(code, folder / "halves", *arguments)
    assert_same(outcome(again, resumed), outcome(model, optimizer))
    assert first + second == log
    return model, optimizer, log


def test_the_video_code_is_dense_and_resumes_before(tmp_path):
    model, _, log = assert_video_resumes(FOLDER, tmp_path, "--fine_tune")
    assert all(bool((p != 0).all()) for p in model.parameters() if p.ndim > 1)
    assert log[-1]["lr"] < log[0]["lr"]


@every_way
@both_storages
def test_the_video_code_is_sparse_and_resumes_after(way, storage, changed, tmp_path, monkeypatch):
    monkeypatch.setattr(sparseopt, "SparseOptimizer", wrapped_with(storage=storage))
    model, optimizer, log = assert_video_resumes(changed, tmp_path, *WAYS[way])
    assert_zeros(optimizer)
    assert optimizer.sparsity == pytest.approx(0.9, abs=1e-3)
    assert [layer.name for layer in optimizer.layers] == [
        "layers.0.conv1.weight", "layers.0.conv2.weight", "fc.weight",
    ]  # fmt: skip
    assert bool((model.stem.weight != 0).all())
    assert optimizer.steps == optimizer.total_steps == 24
    assert optimizer.updates == updates_due(optimizer) == 9
    assert optimizer.param_groups[0]["dampening"] == (0 if "--nesterov" in WAYS[way] else 0.9)
    assert way != "fine-tuning, in groups" or log[-1]["lr"] < log[0]["lr"]


def test_the_video_code_without_sparsity_is_what_it_was(changed, tmp_path):
    before, *_ = video(FOLDER, tmp_path / "before", "--nesterov")
    off = ("--algorithm", "static", "--sparsity", "0.0")
    after, *_ = video(changed, tmp_path / "after", "--nesterov", *off)
    assert_same(after.state_dict(), before.state_dict())


# --- Cannistraci-Hebb training --------------------------------------------------------------------


def hebbian(code: Path, folder: Path, *arguments: str) -> Any:
    folder.mkdir(exist_ok=True)
    return run(code / "hebbian", "run", ["--save_path", str(folder), *arguments])


def test_the_hebbian_code_keeps_masks_of_its_own_and_resumes_before(tmp_path):
    model, _, pruner = hebbian(FOLDER, tmp_path / "whole")
    hebbian(FOLDER, tmp_path / "halves", "--stop_after", "3")
    again, _, resumed = hebbian(FOLDER, tmp_path / "halves")
    assert_same(again.state_dict(), model.state_dict())
    assert_same(resumed.masks, pruner.masks)
    assert pruner.updates == 5


@both_storages
def test_the_hebbian_code_has_the_same_counts_after_and_resumes(
    storage, changed, tmp_path, monkeypatch
):
    monkeypatch.setattr(sparseopt, "SparseOptimizer", wrapped_with(storage=storage))
    *_, pruner = hebbian(FOLDER, tmp_path / "before")
    model, optimizer = hebbian(changed, tmp_path / "whole")
    hebbian(changed, tmp_path / "halves", "--stop_after", "3")
    assert_same(outcome(*hebbian(changed, tmp_path / "halves")), outcome(model, optimizer))
    assert_zeros(optimizer)
    assert {layer.name.removesuffix(".weight"): layer.nnz for layer in optimizer.layers} == {
        name: int(mask.sum()) for name, mask in pruner.masks.items()
    }
    assert bool((model.last_layer.weight != 0).all())
    assert optimizer.steps == optimizer.total_steps == 96
    assert optimizer.updates == updates_due(optimizer) == pruner.updates + 1  # the last one too
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025 * 0.01)


def test_the_best_epochs_weights_come_with_their_own_masks(changed, tmp_path):
    hebbian(changed, tmp_path)
    best = torch.load(tmp_path / "best_model.pth", weights_only=True)
    entries = best["optimizer"]["state"]
    masks = {
        index: entry["sparse_mask"] for index, entry in entries.items() if "sparse_mask" in entry
    }
    weights = list(best["model"].values())
    assert len(masks) == 3
    assert all(not weights[key][~mask].any() for key, mask in masks.items())
