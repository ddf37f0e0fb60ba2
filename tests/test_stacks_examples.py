"""Every file of examples/integrations runs, and is sparse in the end."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from old_torch import needs_fsdp2

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "integrations"
NAMES = sorted(path.stem for path in FOLDER.glob("with_*.py"))
NEEDS = {
    "with_lightning": "lightning.pytorch",
    "with_accelerate": "accelerate",
    "with_hf_trainer": "transformers",
    "with_timm": "timm",
    "with_torchvision": "torchvision",
}
pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' own


def imported(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in NEEDS:
            pytest.importorskip(NEEDS[name])
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sparsity(printed: str) -> float:
    found = re.search(r"sparsity (?:of the model )?([\d.]+)%", printed)
    assert found is not None, printed
    return float(found[1]) / 100


@pytest.mark.stack("Lightning", "example")
def test_lightning(tmp_path, capsys):
    optimizer = imported("with_lightning").main(str(tmp_path))
    assert sparsity(capsys.readouterr().out) == pytest.approx(0.9, abs=0.001)
    assert optimizer.steps == optimizer.total_steps == 16 and optimizer.updates == 3


@pytest.mark.stack("Accelerate", "example")
def test_accelerate(capsys):
    optimizer = imported("with_accelerate").main()
    assert sparsity(capsys.readouterr().out) == pytest.approx(0.9, abs=0.001)
    assert optimizer.steps == optimizer.total_steps == 24


@pytest.mark.stack("Hugging Face Trainer", "example")
def test_hf_trainer(tmp_path, capsys):
    imported("with_hf_trainer").main(str(tmp_path))
    assert sparsity(capsys.readouterr().out) == pytest.approx(0.9, abs=0.001)


@pytest.mark.stack("timm", "example")
@pytest.mark.stack("timm", "optimizer factory and scheduler")
def test_timm(capsys):
    of_model, of_average = imported("with_timm").main()
    assert of_model == pytest.approx(0.8, abs=0.001)
    assert of_average >= of_model - 0.001


@pytest.mark.stack("torchvision's reference loop", "example")
@pytest.mark.stack("torchvision's reference loop", "SequentialLR, GradScaler, EMA")
@pytest.mark.stack("torchvision's reference loop", "a checkpoint every epoch")
def test_torchvision(capsys):
    optimizer = imported("with_torchvision").main()
    assert sparsity(capsys.readouterr().out) == pytest.approx(0.9, abs=0.001)
    assert optimizer.steps == optimizer.total_steps == 8


@pytest.mark.stack("3-D convolutions", "example")
def test_video(capsys):
    optimizer = imported("with_video").main()
    assert {layer.weight.ndim for layer in optimizer.layers} == {2, 5}
    assert optimizer.sparsity == pytest.approx(0.8, abs=0.001)
    assert float(re.search(r"loss ([\d.]+)", capsys.readouterr().out)[1]) < 0.5


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def in_two_processes(name: str, root: Path) -> str:
    """What rank 0 of the script printed, started as torchrun does."""
    common = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(root),
    }
    started = [
        subprocess.Popen(
            [sys.executable, str(FOLDER / f"{name}.py")],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    printed = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    return printed[0]


@pytest.mark.stack("DDP", "example")
def test_ddp(root):
    printed = in_two_processes("with_ddp", root)
    assert sparsity(printed) == pytest.approx(0.9, abs=0.001)
    assert "replicas equal" in printed


@needs_fsdp2
@pytest.mark.stack("FSDP2", "example")
def test_fsdp2(root):
    assert sparsity(in_two_processes("with_fsdp2", root)) == pytest.approx(0.9, abs=0.001)


def test_every_example_is_run_here():
    assert {f"test_{name.removeprefix('with_')}" for name in NAMES} <= set(globals())


@pytest.mark.parametrize("name", NAMES)
def test_an_example_says_how_to_run_it_and_marks_its_new_line(name):
    text = (FOLDER / f"{name}.py").read_text()
    assert f"examples/integrations/{name}.py" in text.split('"""')[1]
    assert "only new line" in text and len(text.splitlines()) < 100


def test_the_page_names_examples_and_tests_that_exist(root):
    page = (root / "docs" / "stacks.md").read_text()
    table = page.split("<!-- table: stacks -->")[1].split("<!-- end -->")[0]
    rows = table.strip().splitlines()[2:]
    for row in rows:
        *_, examples, tests, _ = (re.findall(r"`([\w.]+)`", cell) for cell in row.split("|"))
        assert all((root / "tests" / test).exists() for test in tests), row
        assert all(example.removesuffix(".py") in NAMES for example in examples), row
    assert all(f"`{name}.py`" in page for name in NAMES)
