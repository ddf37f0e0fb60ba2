"""Every Python block in the documents runs, and every command and link in them exists."""

import doctest
import re
from configparser import ConfigParser
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

BLOCK = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = ("bash", "sh", "shell", "console")


def blocks(text: str, *languages: str) -> list[tuple[int, str]]:
    """The code blocks in these languages, each with the line of the file that it starts on."""
    return [
        (text.count("\n", 0, found.start("code")) + 1, found["code"])
        for found in BLOCK.finditer(text)
        if found["language"] in languages
    ]


def run_code(code: str, namespace: dict[str, object], document: str, line: int) -> None:
    # newlines before the code: a traceback shows the line of the document
    exec(compile("\n" * (line - 1) + code, document, "exec"), namespace)


def run_session(code: str, namespace: dict[str, object], document: str, line: int) -> None:
    """A block with prompts: its output must be what the document shows."""
    example = doctest.DocTestParser().get_doctest(code, namespace, document, document, line - 1)
    runner = doctest.DebugRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(example, clear_globs=False)
    namespace.update(example.globs)  # get_doctest works on a copy


def documents() -> list[str]:
    root = Path(__file__).resolve().parents[1]
    found = ["README.md", "CONTRIBUTING.md", "examples/README.md"]
    return found + [str(path.relative_to(root)) for path in sorted(root.glob("docs/**/*.md"))]


@pytest.mark.parametrize("document", documents())
def test_every_python_block_runs_in_order(
    root: Path, document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a checkpoint that a block writes goes here
    torch.manual_seed(0)
    namespace: dict[str, object] = {"__name__": "readme"}
    recipes, rows = (f"sparseopt.algorithms.registry.{name}" for name in ("RECIPES", "ROWS"))
    with patch.dict(recipes), patch.dict(rows):  # recipes shown are forgotten again
        for line, code in blocks((root / document).read_text(), "python"):
            run = run_session if code.startswith(">>> ") else run_code
            run(code, namespace, document, line)


def test_the_readme_and_the_guide_show_python(root: Path) -> None:
    for document in ("README.md", "CONTRIBUTING.md"):
        assert blocks((root / document).read_text(), "python"), document


@pytest.fixture(scope="module", params=documents())
def text(root: Path, request: pytest.FixtureRequest) -> str:
    return (root / request.param).read_text()


@pytest.fixture
def commands(text: str) -> str:
    """The lines of shell blocks, fenced or indented by four spaces."""
    indented = [line[4:] for line in BLOCK.sub("", text).splitlines() if line.startswith("    ")]
    return "\n".join([code for _, code in blocks(text, *SHELL)] + indented)


def test_every_make_target_shown_exists(root: Path, commands: str) -> None:
    made = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", commands, re.MULTILINE)) <= made


def test_every_script_shown_exists(root: Path, commands: str) -> None:
    for script in re.findall(r"^python3? ([\w./-]+\.py)", commands, re.MULTILINE):
        assert (root / script).is_file(), script


def test_make_demo_and_make_test_are_shown(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert {"make demo", "make test"} <= set(re.findall(r"make (?:demo|test)", text))


def test_every_extra_shown_exists(root: Path, text: str) -> None:
    setup = ConfigParser()
    setup.read(root / "setup.cfg")
    for extras in re.findall(r"(?:sparseopt|\.)\[([\w,-]+)\]", text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"]), extras


@pytest.mark.parametrize("document", documents())
def test_every_local_link_leads_somewhere(root: Path, document: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (root / document).read_text()):
        if "://" not in target:
            assert (root / document).parent.joinpath(target).exists(), target
