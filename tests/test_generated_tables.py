"""Tables in README.md and docs/ are those that the registry and the data files give now."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


def test_every_generated_table_is_up_to_date():
    result = run("docs/tables.py", "--check")
    assert result.returncode == 0, result.stderr


def test_the_accuracy_page_is_what_its_data_file_gives(tmp_path):
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import accuracy; "
        "print(accuracy.page(accuracy.finished(accuracy.DATA)), end='')"
    )
    result = run("-c", code)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (ROOT / "docs" / "accuracy.md").read_text()


def test_the_readme_lists_the_recipes():
    text = (ROOT / "README.md").read_text()
    assert "<!-- table: recipes -->" in text and "| [`rigl`]" in text


def marked(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Stack, feature and test of every mark in a module, those of single cases included."""
    for name, function in vars(module).items():
        marks = list(getattr(function, "pytestmark", ())) if name.startswith("test_") else []
        for mark in list(marks):
            if mark.name == "parametrize":
                marks += [one for case in mark.args[1] for one in getattr(case, "marks", ())]
        for mark in marks:
            if mark.name == "stack":
                yield (*mark.args, f"tests/{module.__name__}.py::{name}")


def test_the_stacks_that_were_run_are_those_that_are_marked_now():
    ran = json.loads((ROOT / "benchmarks" / "results" / "stacks.json").read_text())["tests"]
    modules = [
        importlib.import_module(path.stem)
        for path in (ROOT / "tests").glob("test_*.py")
        if "mark.stack" in path.read_text()
    ]
    now = {one for module in modules for one in marked(module)}
    assert {(one["stack"], one["feature"], one["test"]) for one in ran} == now, "run make stacks"
    assert {one["outcome"] for one in ran} == {"passed"}
