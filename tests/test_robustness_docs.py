"""The guide's blocks run and print what they show; its names are all there are."""

from __future__ import annotations

import doctest
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from sparseopt import analysis, robustness

pytest.importorskip("cv2")
ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "robustness.md"


def test_every_block_of_the_guide_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(
        str(GUIDE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert failed == 0 and tried > 30


def test_the_goals_of_speed_were_met_where_it_was_measured():
    results = json.loads((ROOT / "benchmarks" / "results" / "corruptions.json").read_text())
    assert all(row["ratio"] >= row["goal"] for row in results["sizes"].values())


@pytest.mark.parametrize("package", [robustness, analysis])
def test_every_public_name_exists_and_is_documented(package):
    for name in package.__all__:
        assert getattr(package, name).__doc__, name
    guide = GUIDE.read_text()
    missing = [name for name in package.__all__ if name not in guide]
    assert set(missing) <= {"ALEXNET_ERRORS", "CorruptionSet", "corrupted_image", "FilterSummary",
                            "weighted_area"}  # fmt: skip


@pytest.mark.slow
def test_the_benchmark_runs_in_its_smallest_form(tmp_path, monkeypatch):
    pytest.importorskip("imagecorruptions")
    path = ROOT / "benchmarks" / "corruptions.py"
    spec = importlib.util.spec_from_file_location("benchmark_corruptions", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "one_core", lambda: None)  # it would pin the tests to one core
    monkeypatch.setattr(
        sys, "argv", ["corruptions.py", "--smoke", "--out", str(tmp_path / "a.json")]
    )
    module.main()
    assert json.loads((tmp_path / "a.json").read_text())["sizes"]["32"]["ratio"] > 0
