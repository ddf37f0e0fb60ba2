"""Hypothesis profiles, one torch thread, and the repository's root for tests that read files."""

import os
from pathlib import Path

import hypothesis
import pytest
import stack_records
import torch

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


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository: where README.md, setup.cfg and examples/ are."""
    return Path(__file__).resolve().parents[1]
