"""Tables in README.md and docs/ are those that the registry and the data files give now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
