"""The package says what it is, needs only torch and numpy, and ships everything it has."""

import ast
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import sparseopt

OPTIONAL = (
    "accelerate cv2 fvcore hypothesis imagecorruptions iopath lightning matplotlib numba PIL "
    "pytest pytorch_optimizer scipy skimage sklearn timm torchvision tqdm transformers"
).split()


@pytest.fixture(scope="module")
def setup(root: Path) -> ConfigParser:
    parser = ConfigParser()
    parser.read(root / "setup.cfg")
    return parser


def modules() -> list[str]:
    found = pkgutil.walk_packages(sparseopt.__path__, "sparseopt.")
    return ["sparseopt", *(module.name for module in found)]


def test_the_version_is_written_once_and_read_without_importing_torch(
    root: Path, setup: ConfigParser
) -> None:
    assert setup["metadata"]["version"] == "attr: sparseopt.__version__"
    tree = ast.parse((root / "sparseopt" / "__init__.py").read_text())
    literals = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__"
    ]
    assert literals == [sparseopt.__version__]
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|rc\d+)?", sparseopt.__version__)


def test_citation_and_changelog_know_the_version(root: Path) -> None:
    assert f"\nversion: {sparseopt.__version__}\n" in (root / "CITATION.cff").read_text()
    assert sparseopt.__version__ in (root / "CHANGELOG.md").read_text()


def test_only_torch_and_numpy_are_needed_at_run_time(setup: ConfigParser) -> None:
    assert setup["options"]["install_requires"].split() == ["numpy", "torch>=2.7"]
    assert setup["options"]["python_requires"] == ">=3.10"


def test_every_extra_of_all_exists_and_nothing_is_pinned(setup: ConfigParser) -> None:
    extras = setup["options.extras_require"]
    assert set(extras) == {
        "flops", "robustness", "examples", "integrations", "all", "docs", "dev",
    }  # fmt: skip
    (everything,) = re.findall(r"\[(.*)\]", extras["all"])
    assert set(everything.split(",")) == set(extras) - {"all", "docs", "dev"}
    assert not re.search(r"==|<", "".join(extras.values()))


def test_every_extra_that_an_error_names_exists(root: Path, setup: ConfigParser) -> None:
    source = "".join(path.read_text() for path in (root / "sparseopt").rglob("*.py"))
    named = set(re.findall(r"sparseopt\[([a-z]+)\]", source))
    assert named <= set(setup["options.extras_require"])


def test_every_module_can_be_imported_without_the_extras() -> None:
    script = f"""
import importlib, sys, torch, numpy
sys.modules.update(dict.fromkeys({OPTIONAL}))  # None: importing it raises ModuleNotFoundError
for name in {modules()}:
    importlib.import_module(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(sparseopt.__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists(name: str) -> None:
    module = importlib.import_module(name)
    names = getattr(module, "__all__", [])
    assert len(set(names)) == len(names)
    for public in names:
        getattr(module, public)


def test_types_and_licence_are_shipped(root: Path, setup: ConfigParser) -> None:
    assert (root / "sparseopt" / "py.typed").exists()
    assert setup["options.package_data"]["sparseopt"] == "py.typed"
    licence = (root / "LICENSE").read_text()
    assert "Apache License" in licence and "END OF TERMS AND CONDITIONS" in licence


def test_ci_runs_what_everybody_runs(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().splitlines()[-1] == "make test"


def test_the_workflow_mirrors_ci_on_every_python_that_is_named(
    root: Path, setup: ConfigParser
) -> None:
    workflow = (root / ".github" / "workflows" / "ci.yml").read_text()
    runs = re.findall(r"- run: (.*)$", workflow, re.MULTILINE)
    assert runs == [".ci/run", "make docs", "make wheel"]
    (matrix,) = re.findall(r"^ *python: \[(.*)\]$", workflow, re.MULTILINE)
    named = re.findall(r"Python :: (3\.\d+)$", setup["metadata"]["classifiers"], re.MULTILINE)
    assert re.findall(r"3\.\d+", matrix) == named
    assert setup["options"]["python_requires"] == f">={named[0]}"
    used = re.findall(r"uses: (.*)$", workflow, re.MULTILINE)
    assert all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40} # v[\d.]+", action) for action in used)


def test_every_make_target_is_in_the_help(root: Path) -> None:
    makefile = (root / "Makefile").read_text()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    command = ["make", "--no-print-directory", "help"]  # make test runs this test inside make
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(phony.split())


@pytest.mark.slow
def test_the_wheel_holds_every_module(root: Path, tmp_path: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    source = tmp_path / "source"
    for name in filter(None, tracked):
        if (root / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((root / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, source],
        check=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    for path in (source / "sparseopt").rglob("*"):
        if path.is_file():
            assert str(path.relative_to(source)) in shipped
    assert not any(name.startswith(("tests/", "examples/")) for name in shipped)
    assert wheel.name.startswith(f"sparseopt-{sparseopt.__version__}-py3")
