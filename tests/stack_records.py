"""Notes which stacks and features the tests ran, for the table in docs/stacks.md.

``@pytest.mark.stack("DDP", "clipping")`` says of a test, or of one of its cases, which feature of
which training stack it is about; ``pytest --stacks FILE`` writes what became of them.
"""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("torch", "torchvision", "lightning", "accelerate", "transformers", "timm", "onnx")
MARKER = "stack(name, feature): the training stack that the test is about, and which feature of it"


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class Recorder:
    """Collects an outcome for every case that is marked; writes them when the session ends."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.outcomes: dict[tuple[str, str, str], list[str]] = {}

    def note(self, item: pytest.Item, outcome: str) -> None:
        function = item.nodeid.partition("[")[0]
        for mark in item.iter_markers("stack"):
            stack, feature = mark.args
            self.outcomes.setdefault((stack, feature, function), []).append(outcome)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> Any:
        report = yield
        if report.when == "call" or not report.passed:
            self.note(item, report.outcome)
        return report

    def pytest_sessionfinish(self) -> None:
        tests = [
            {"stack": stack, "feature": feature, "test": test, "cases": len(outcomes),
             "outcome": next((one for one in outcomes if one != "passed"), "passed")}
            for (stack, feature, test), outcomes in sorted(self.outcomes.items())
        ]  # fmt: skip
        versions = {package: installed(package) for package in PACKAGES}
        versions |= {"python": platform.python_version()}
        self.file.write_text(json.dumps({"versions": versions, "tests": tests}, indent=1) + "\n")
