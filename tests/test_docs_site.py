"""The docs site builds without a warning and holds every page, public name and link it should."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import warnings
from fnmatch import fnmatch
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from matplotlib import pyplot
from test_readme import blocks, run_code

import sparseopt

pytest.importorskip("mkdocs")
pytest.importorskip("mkdocstrings")

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MODULES = sorted(page.stem for page in (DOCS / "api").glob("*.md") if page.stem != "README")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def html(site: Path) -> dict[Path, str]:
    return {page: page.read_text() for page in site.rglob("*.html") if page.name != "404.html"}


def identifiers(text: str) -> set[str]:
    return set(re.findall(r'\bid="([^"]+)"', text))


def from_docs(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_a_page_of_the_site(site: Path) -> None:
    pages = [page.relative_to(DOCS).with_suffix(".html") for page in DOCS.rglob("*.md")]
    made = [page.with_name("index.html") if page.stem == "README" else page for page in pages]
    assert [page for page in made if not (site / page).is_file()] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    patterns = re.findall(r"[\w/.*-]+\.md", text.split("\nnav:")[1])
    for page in DOCS.rglob("*.md"):
        name = page.relative_to(DOCS).as_posix()
        listed = any(fnmatch(name, pattern) for pattern in patterns)
        assert listed, f"add {name} to nav in mkdocs.yml"


def test_patterns_in_the_navigation_stand_for_pages() -> None:
    nav = [{"Methods": "algorithms/s*.md"}, "index.md", "tables-4*.md"]
    methods = [f"algorithms/{name}.md" for name in ("set", "snfs", "srigl", "static")]
    expanded = from_docs("hooks").expanded(nav, DOCS)
    assert expanded == [{"Methods": methods}, "index.md", "tables-4-7.md"]


def test_every_link_and_picture_of_the_site_exists(html: dict[Path, str]) -> None:
    for page, text in html.items():
        for target in re.findall(r'\b(?:href|src)="([^"]+)"', text):
            path, anchor = urldefrag(unescape(target))
            if re.match(r"\w+:", path):
                continue
            file = (page.parent / unquote(path)).resolve() if path else page
            assert file.exists(), f"{page.name}: {target}"
            if anchor and file in html:
                assert unquote(anchor) in identifiers(html[file]), f"{page.name}: {target}"


def test_the_site_asks_no_other_host_for_anything(html: dict[Path, str]) -> None:
    for page, text in html.items():
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?:[^"]*)"', text)
        assert loaded == [], page


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_on_its_api_page(site: Path, name: str) -> None:
    module = importlib.import_module(f"sparseopt.{name}")
    shown = identifiers((site / "api" / f"{name}.html").read_text())
    assert [public for public in module.__all__ if f"sparseopt.{name}.{public}" not in shown] == []


def test_every_public_module_has_an_api_page() -> None:
    names = sparseopt.__all__
    modules = {name for name in names if isinstance(getattr(sparseopt, name), ModuleType)}
    wanted = modules | {"analysis", "compute", "integrations", "robustness"}
    assert wanted - {"layers"} == set(MODULES)  # Layer stands beside the optimizer


def test_every_other_public_name_has_an_entry(html: dict[Path, str]) -> None:
    shown = set().union(*(identifiers(text) for text in html.values()))
    assert {name for name in sparseopt.__all__ if f"sparseopt.{name}" not in shown} <= {"layers"}


def test_every_member_of_the_optimizer_is_on_its_api_page(site: Path) -> None:
    shown = identifiers((site / "api" / "index.html").read_text())
    ours = {
        name
        for kind in sparseopt.SparseOptimizer.__mro__
        if kind.__module__.startswith("sparseopt.")
        for name in vars(kind)
        if not name.startswith("_")
    }
    plain = {"inner", "param_groups", "state", "defaults"}  # as in every torch optimizer
    assert {
        name for name in ours - plain if f"sparseopt.SparseOptimizer.{name}" not in shown
    } == set()


@pytest.mark.parametrize(
    "repository, link",
    [
        ("", "a script (`examples/demo.py`)"),
        ("https://host/us/it", "[a script](https://host/us/it/blob/main/examples/demo.py)"),
    ],
)
def test_a_link_out_of_the_docs_leads_to_the_repository(repository: str, link: str) -> None:
    assert rewritten("[a script](../examples/demo.py)", repo_url=repository) == link


def test_the_path_is_left_out_where_the_link_says_it_already() -> None:
    assert rewritten("[`demo`](../examples/demo.py)") == "`demo`"


def test_a_link_to_a_page_of_the_root_leads_to_its_copy() -> None:
    assert rewritten("[changes](../CHANGELOG.md#a)") == "[changes](changes.md#a)"


def test_a_link_that_leads_nowhere_is_left_for_mkdocs_to_report() -> None:
    assert rewritten("[lost](../lost.md)") == "[lost](../lost.md)"


def test_blocks_with_prompts_are_coloured_as_sessions() -> None:
    assert rewritten("```python\n>>> 1\n```") == "```pycon\n>>> 1\n```"
    assert rewritten("```python\na = 1\n```") == "```python\na = 1\n```"


class Given:
    """An object with these attributes."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


def rewritten(markdown: str, repo_url: str = "") -> str:
    page = Given(abs_src_path=str(DOCS / "stacks.md"), src_uri="stacks.md")
    root = Given(abs_src_path=str(ROOT / "CHANGELOG.md"), src_uri="changes.md")
    hooks, config = from_docs("hooks"), Given(repo_url=repo_url)
    return hooks.on_page_markdown(markdown, Given(file=page), config, [page, root])


def test_docstrings_become_markdown() -> None:
    as_markdown = from_docs("docstrings").as_markdown
    assert as_markdown("A :class:`Layer`.") == "A [`Layer`][Layer]."
    assert as_markdown("One.\n\n>>> 1\n1\n\nTwo.") == "One.\n\n```pycon\n>>> 1\n1\n```\n\nTwo."
    assert as_markdown("Example:\n    >>> 1") == "Examples:\n    >>> 1"
    assert as_markdown("Args:\n    a, b: Both,\n        of them.") == (
        "Args:\n    a: Both,\n        of them.\n    b: Both,\n        of them."
    )
    assert as_markdown("    depth: >= 0, in metres") == "    depth: \\>= 0, in metres"
    table = "===  ===\na    b\n===  ===\n1\n2    3\n===  ==="
    assert as_markdown(table) == "| a | b |\n| ---|--- |\n| 1 |  |\n| 2 | 3 |"


def test_what_migrating_shows_of_other_libraries_runs_where_they_are_installed() -> None:
    namespace: dict[str, Any] = {"__name__": "migrating"}
    page = DOCS / "migrating.md"
    for line, code in blocks(page.read_text(), "python", "py"):
        imported = re.findall(r"^(?:import|from) ([\w.]+)", code, re.MULTILINE)
        if all(map(installed, imported)):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # theirs: beta features of torch
                run_code(code, namespace, page.name, line)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module.split(".")[0]) is not None


def test_every_figure_is_drawn_and_shown() -> None:
    figures = from_docs("figures")
    drawn = {f"{name}.png" for name in figures.FIGURES}
    shown = set(re.findall(r"\]\((?:\.\./)*figures/([\w-]+\.png)\)", all_pages()))
    assert drawn <= shown <= {path.name for path in (DOCS / "figures").iterdir()}


def all_pages() -> str:
    return "".join(page.read_text() for page in DOCS.rglob("*.md"))


def test_the_update_in_the_figure_is_a_real_one() -> None:
    seen = from_docs("figures").one_update()
    before, kept, after = seen["before"], seen["kept"], seen["after"]
    dropped, grown = before & ~kept, after & ~kept
    assert int(dropped.sum()) == int(grown.sum()) > 0
    assert seen["weight"][dropped].abs().max() <= seen["weight"][kept].abs().min()
    places = ~kept & ~grown
    assert seen["gradient"][grown].abs().min() >= seen["gradient"][places].abs().max()


@pytest.mark.slow
def test_figures_are_drawn_alike_every_time_and_as_they_are_shown(tmp_path: Path) -> None:
    script = [sys.executable, str(DOCS / "figures.py")]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        subprocess.run([*script, str(folder)], check=True, timeout=300)
    for first in (tmp_path / "a").iterdir():
        assert first.read_bytes() == (tmp_path / "b" / first.name).read_bytes()
        now, shown = (
            pyplot.imread(folder / first.name) for folder in (first.parent, DOCS / "figures")
        )
        assert now.shape == shown.shape
        assert abs(now - shown).mean() < 0.01  # another matplotlib moves a pixel
