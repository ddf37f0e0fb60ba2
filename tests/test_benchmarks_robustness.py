"""The scripts of Tables 9-12, low sparsity and video run, and the page is what their data give."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from made_up import write_clothes

from sparseopt.robustness import CORRUPTIONS, VIDEO

pytest.importorskip("skimage")
pytest.importorskip("sklearn")
pytest.importorskip("torchvision")
pytest.importorskip("fvcore")


def program(root: Path, *command: str, data: Path | None = None) -> str:
    kept = {"SPARSEOPT_DATA": str(data)} if data else {}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **kept}
    result = subprocess.run(
        [sys.executable, *command], cwd=root, capture_output=True, text=True, timeout=300,
        env=environment,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def measured(root, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kept")
    printed = program(root, "tests/benchmarks_smoke.py", str(folder), data=folder)
    return json.loads(printed)


def test_low_sparsity_measures_both_sets_and_what_training_cost(measured):
    result = measured["low_sparsity"]
    assert list(result["cifar"]["cells"]) == list(result["imagenet"]["cells"]) == list(CORRUPTIONS)
    assert result["density"] == pytest.approx(0.3, abs=1e-4)
    # GraNet starts at density 0.8: training costs more than the final network's share
    assert result["inference_flops"] < result["training_flops"] / (3 * 1000)
    assert 0.3 < result["share"] < 0.8


def test_table_9_mixes_up_the_stand_in_and_cifar_100(measured):
    for result in measured["table9"]:
        assert list(result["cells"]) == list(CORRUPTIONS)
        assert result["density"] == pytest.approx(0.5, abs=0.01)


def test_tables_10_and_11_map_folders_to_the_outputs_that_were_trained(measured):
    result = measured["tables10_11"]
    assert result["clean"] > 90  # the made-up clothes are easy
    assert result["top-images"] > 90 and result["matched-frequency"] > 90
    assert {"imagenet-r", "threshold0.7", "average"} < set(result)


def test_table_12_prunes_the_backbone_and_evaluates_both_metrics(measured):
    for result in measured["table12"]:
        assert result["density"] == pytest.approx(0.8, abs=0.01)
        for metric in ("pixel_accuracy", "mean_iou"):
            assert list(result[metric]["cells"]) == list(CORRUPTIONS)


def test_corrupted_video_trains_on_one_list_and_tests_on_the_other(measured):
    for result in measured["corrupted_video"]:
        assert list(result["cells"]) == ["jumble"] and "jumble" in VIDEO
        assert len(result["cells"]["jumble"]) == 4
        assert result["density"] == pytest.approx(0.5, abs=0.01)


@pytest.fixture(scope="module")
def numbers(root) -> Any:
    """The module of that name in benchmarks/, which is no package."""
    path = root / "benchmarks" / "robustness_numbers.py"
    spec = importlib.util.spec_from_file_location("robustness_numbers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_seed_that_lacks_a_run_is_left_out(numbers):
    lines = [{"run": {"seed": seed, "number": n}} for seed in (0, 1) for n in (0, 1)]
    whole = numbers.whole_seeds(lines[:3], 2)
    assert [line["run"]["seed"] for line in whole] == [0, 0]


def test_a_verdict_pairs_the_seeds(numbers):
    shown = numbers.verdict([71.0, 75.1, 69.0], [70.0, 74.0, 68.0])
    chance = numbers.verdict([70.0, 75.0, 67.0], [71.0, 74.0, 68.0])
    assert shown.startswith("yes, +1.03 points") and shown.endswith("(shown)")
    assert chance.startswith("no, -0.33 points") and chance.endswith("(within chance)")
    assert numbers.verdict([70.0], [71.0]) == "too few seeds"
    assert numbers.chance([1.0, 2.0], [1.0, 2.0]) == 1.0


def test_gains_are_relative_and_level_by_level(measured):
    assert measured["gains"] == {"harsh": [10.0], "other": [0.0]}


def test_two_processes_may_make_the_same_data_set(measured):
    assert measured["raced"] == ["first", "second"]


def test_the_page_is_what_the_data_files_give(root):
    program(root, "benchmarks/robustness_page.py", "--check")


def test_table_8_compares_three_seeds_of_every_method(root):
    lines = (root / "benchmarks" / "results" / "table8.jsonl").read_text().splitlines()
    runs = [json.loads(line)["run"] for line in lines]
    seeds = Counter((run["method"], run["sparsity"]) for run in runs if run["epochs"] >= 40)
    assert len(seeds) == 9 and min(seeds.values()) >= 3


@pytest.fixture(scope="module")
def clothes(tmp_path_factory) -> Path:
    """Made-up Fashion-MNIST: no run needs the network, nor writes beside the real one."""
    folder = tmp_path_factory.mktemp("clothes")
    write_clothes(folder, {"train": 2500, "t10k": 400})
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "script", ["table8", "low_sparsity", "table9", "tables10_11", "table12", "corrupted_video"]
)
def test_smoke_runs_write_a_data_file_of_their_own(root, clothes, script):
    results = root / "benchmarks" / "results"
    before = set(results.iterdir())
    try:
        program(root, f"benchmarks/{script}.py", "--smoke", data=clothes)
        lines = (results / f"{script}-smoke.jsonl").read_text().splitlines()
        assert len(lines) >= 2 and all("result" in json.loads(line) for line in lines)
    finally:
        for path in set(results.glob("*-smoke.jsonl")) - before:
            path.unlink()
