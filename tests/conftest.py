"""Hypothesis profiles, one torch thread, the repository's root, the modules of its recipes."""

import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest
import stack_records
import torch

from sparseopt import watched
from sparseopt.storage import compact

# Programs to be changed by diffs; test_third_party.py runs them.
collect_ignore = ["third_party"]

# Small tensors: threads cost more than they give, and sums would depend on how many there are.
torch.set_num_threads(1)

# deadline None: the first example of a run pays for imports and compilation.
hypothesis.settings.register_profile("local", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--stacks", type=Path, metavar="FILE", help="write which features of which stacks were run"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", stack_records.MARKER)
    if config.option.stacks:
        config.pluginmanager.register(stack_records.Recorder(config.option.stacks))


@pytest.fixture(autouse=True)
def watching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights are watched as large ones are, whatever an earlier test has compiled."""
    monkeypatch.setattr(compact, "WORTH_WATCHING", 0)
    watched.called.clear()
    watched.over.clear()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository: where README.md, setup.cfg and examples/ are."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def example(root: Path) -> Iterator[SimpleNamespace]:
    """The modules of examples/recipes; afterwards they are forgotten."""
    folder = root / "examples" / "recipes"
    local = {path.stem for path in (*folder.glob("*.py"), *folder.parent.glob("*.py"))}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(sys, "path", [*sys.path])
        names = ("corrupted", "fake", "inputs", "logs", "networks", "recipe", "run", "training")
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    for name in local & set(sys.modules):
        del sys.modules[name]
