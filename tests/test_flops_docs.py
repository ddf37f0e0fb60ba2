"""The blocks of docs/flops.md print what the page says."""

import doctest
from pathlib import Path

import pytest


def test_the_guide_prints_what_it_says():
    pytest.importorskip("fvcore")
    page = Path(__file__).parents[1] / "docs" / "flops.md"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.REPORT_UDIFF
    failed, run = doctest.testfile(str(page), module_relative=False, optionflags=flags)
    assert run > 20 and failed == 0
