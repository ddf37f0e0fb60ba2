"""A long list of runs: none is lost, none is done twice, whatever is stopped and shared."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

import pytest


@pytest.fixture(scope="module")
def runner(root) -> Any:
    """The module of that name in benchmarks/, which is no package."""
    path = root / "benchmarks" / "runner.py"
    spec = importlib.util.spec_from_file_location("runner", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RUNS = [{"method": "set", "seed": seed} for seed in (0, 1, 2)]


def measured(run: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy": 80 + run["seed"]}


def seeds(path) -> list[int]:
    return [json.loads(line)["run"]["seed"] for line in path.read_text().splitlines()]


def test_a_restart_does_what_is_missing(runner, tmp_path):
    path = tmp_path / "runs.jsonl"
    runner.work_off(RUNS[:1], measured, path)
    runner.work_off(RUNS, measured, path)
    assert seeds(path) == [0, 1, 2]
    assert runner.finished(path)[2] == {"run": RUNS[2], "result": {"accuracy": 82}}
    assert list(tmp_path.iterdir()) == [path]  # no claim is left


def test_a_run_that_fails_leaves_its_place_to_a_restart(runner, tmp_path):
    path = tmp_path / "runs.jsonl"
    with pytest.raises(ZeroDivisionError):
        runner.work_off(RUNS, lambda run: {"accuracy": 1 / run["seed"]}, path)
    runner.work_off(RUNS, measured, path)
    assert seeds(path) == [0, 1, 2]


def test_a_line_that_was_cut_off_costs_no_other_line(runner, tmp_path):
    path = tmp_path / "runs.jsonl"
    runner.work_off(RUNS[:2], measured, path)
    path.write_text(path.read_text()[:-9])
    runner.work_off(RUNS, measured, path)
    assert [line["run"]["seed"] for line in runner.finished(path)] == [0, 1, 2]


def test_two_processes_share_a_list(runner, tmp_path):
    path, done = tmp_path / "runs.jsonl", []

    def slowly(run: dict[str, Any]) -> dict[str, Any]:
        """Another process goes through the list while this run takes its time."""
        done.append(run["seed"])
        if len(done) == 1:
            runner.work_off(RUNS, slowly, path)
        return measured(run)

    runner.work_off(RUNS, slowly, path)
    assert done == [0, 1, 2] and sorted(seeds(path)) == [0, 1, 2]


def test_a_run_finished_just_before_the_claim_is_not_done_again(runner, tmp_path, monkeypatch):
    path, claimed, done = tmp_path / "runs.jsonl", runner.claimed, []

    def late(claim, patience) -> bool:
        if not path.exists():
            path.write_text(json.dumps({"run": RUNS[0], "result": {}}) + "\n")
        return claimed(claim, patience)

    monkeypatch.setattr(runner, "claimed", late)
    runner.work_off(RUNS[:1], lambda run: done.append(run) or {}, path)
    assert not done and seeds(path) == [0]


def test_a_claim_is_taken_over_when_it_is_older_than_any_run(runner, tmp_path):
    claim = tmp_path / ".claim"
    assert runner.claimed(claim, patience=60) and not runner.claimed(claim, patience=60)
    os.utime(claim, (0, 0))
    assert runner.claimed(claim, patience=60)
