"""The examples do what their first lines say, and the data is found where it can be found."""

import gzip
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

Import = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def example(root: Path) -> Iterator[Import]:
    """Imports a script of examples/ by name; afterwards its modules are forgotten."""
    local = {path.stem for path in (root / "examples").glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "examples")
        yield import_module
    for name in local & set(sys.modules):
        del sys.modules[name]


@pytest.fixture
def data(example: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """examples/data.py on a machine without any data, with its cache in the test's folder."""
    module = example("data")
    monkeypatch.setenv("SPARSEOPT_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "DEBIAN_FOLDER", tmp_path / "usr" / "fashion")
    return module


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder: Path, *, packed: bool = False) -> list[np.ndarray]:
    """Four small files in the layout of Fashion-MNIST: 5 images for training and 3 for the test."""
    rng = np.random.default_rng(0)
    shapes = ((5, 28, 28), (5,), (3, 28, 28), (3,))
    arrays = [rng.integers(0, 10, shape, dtype=np.uint8) for shape in shapes]
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in zip(import_module("data").FILES, arrays, strict=True):
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


def assert_read(dataset: tuple[torch.Tensor, ...], arrays: list[np.ndarray]) -> None:
    assert [tensor.dtype for tensor in dataset] == [torch.uint8, torch.int64] * 2
    for tensor, array in zip(dataset, arrays, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), array)


def refuse_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such host")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", refuse)
    monkeypatch.setenv("PATH", "")


# --- data.py: reading ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx") / "file"


@given(
    array=arrays(np.uint8, array_shapes(max_dims=4, max_side=5)),
    packed=st.booleans(),
)
def test_idx_files_are_read_whether_gzipped_or_not(
    example: Import, scratch: Path, array: np.ndarray, packed: bool
) -> None:
    scratch.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    np.testing.assert_array_equal(example("data").read_idx(scratch).numpy(), array)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\x00",
        b"not an idx file",
        idx(np.zeros((2, 3), np.uint8))[:-1],
        idx(np.zeros((2, 3), np.uint8)) + b"\x00",
        gzip.compress(idx(np.zeros((2, 3), np.uint8)))[:-4],
        b"\x1f\x8bgarbage",
        gzip.compress(b"")[:10] + b"\xff" * 20,
        struct.pack(">HBBI", 0, 13, 1, 1) + b"\x00",
        struct.pack(">HBBI", 1, 8, 1, 1) + b"\x00",
    ],
)
def test_what_is_no_idx_file_is_named_in_the_error(
    data: ModuleType, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "train-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="train-labels-idx1-ubyte"):
        data.read_idx(path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "FashionMNIST/raw", "raw"])
def test_a_folder_is_read_in_every_layout(
    data: ModuleType, tmp_path: Path, below: str, packed: bool
) -> None:
    arrays = write_fashion(tmp_path / below, packed=packed)
    assert_read(data.fashion_mnist(tmp_path), arrays)
    assert_read(data.load(str(tmp_path)), arrays)


def test_an_incomplete_folder_is_an_error_that_names_it_and_what_is_missing(
    data: ModuleType, tmp_path: Path
) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    write_fashion(data.cache_folder())  # complete, but not what was asked for
    with pytest.raises(FileNotFoundError) as caught:
        data.fashion_mnist(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path} lacks t10k-labels-idx1-ubyte. ")
    assert "--data digits" in message


def test_a_folder_that_does_not_exist_is_an_error(data: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder.*--data digits"):
        data.fashion_mnist(tmp_path / "nowhere")


def test_images_and_labels_must_fit_each_other(data: ModuleType, tmp_path: Path) -> None:
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    with pytest.raises(ValueError, match=r"t10k files hold images of shape \(3, 28, 28\)"):
        data.fashion_mnist(tmp_path)


def test_digits_have_the_same_form_and_no_image_on_both_sides(data: ModuleType) -> None:
    images, labels, test_images, test_labels = data.load("digits")
    assert images.shape == (1437, 8, 8) and test_images.shape == (360, 8, 8)
    assert images.dtype == test_images.dtype == torch.uint8
    assert labels.dtype == test_labels.dtype == torch.int64
    assert images.max() == 255 and images.min() == 0
    assert labels.bincount().min() > 100 and test_labels.bincount().min() > 20
    assert torch.cat([labels, test_labels]).bincount().sum() == 1797


# --- data.py: where the data comes from -----------------------------------------------------------


def test_data_on_the_machine_is_used_without_the_network(
    data: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_network(monkeypatch)
    arrays = write_fashion(data.DEBIAN_FOLDER, packed=True)
    assert_read(data.fashion_mnist(), arrays)
    assert not data.cache_folder().exists()


def test_a_download_is_kept_and_says_nothing(
    data: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    patience = []

    def download(folder: Path, download: bool) -> None:
        print("Downloading ...", file=sys.stderr)
        print("Extracting ...")
        patience.append(socket.getdefaulttimeout())
        write_fashion(Path(folder) / "FashionMNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", download)
    first = data.fashion_mnist()
    refuse_network(monkeypatch)
    for before, after in zip(first, data.fashion_mnist(), strict=True):
        assert torch.equal(before, after)
    assert patience == [data.PATIENCE] and socket.getdefaulttimeout() is None
    assert capsys.readouterr() == ("", "")
    assert os.listdir(data.cache_folder()) == ["FashionMNIST"]


def write_command(folder: Path, name: str, body: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{body}")
    (folder / name).chmod(0o755)


def test_debians_package_is_unpacked_without_root(
    data: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_network(monkeypatch)
    arrays = write_fashion(tmp_path / "inside", packed=True)
    commands = tmp_path / "commands"
    # as on a fresh machine: nothing can be downloaded before the lists are there
    write_command(
        commands,
        "apt-get",
        f'echo "$@" >> {tmp_path}/log\n'
        f'case "$*" in\n'
        f"  *update) touch {tmp_path}/lists ;;\n"
        f"  *download*) test -e {tmp_path}/lists || exit 100; touch the-package.deb ;;\n"
        f"esac\n",
    )
    unpacked = Path("unpacked") / data.DEBIAN_FOLDER.relative_to("/")
    write_command(
        commands,
        "dpkg",
        f"test -e $2 || exit 1\nmkdir -p {unpacked}\ncp {tmp_path}/inside/* {unpacked}\n",
    )
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    assert_read(data.fashion_mnist(), arrays)
    calls = (tmp_path / "log").read_text().splitlines()
    assert [call.split()[-1] for call in calls] == [data.DEBIAN_PACKAGE, "update"] + [
        data.DEBIAN_PACKAGE
    ]
    assert all("Dir::State::Lists=" in call for call in calls[1:])
    assert_read(data.fashion_mnist(), arrays)  # from the cache
    assert len((tmp_path / "log").read_text().splitlines()) == 3


def test_when_nothing_works_the_error_says_what_was_tried_and_what_to_do(
    data: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_network(monkeypatch)
    with pytest.raises(FileNotFoundError) as caught:
        data.fashion_mnist()
    message = str(caught.value)
    for part in ("no such host", "apt-get", str(data.DEBIAN_FOLDER), "--data FOLDER", *data.FILES):
        assert part in message
    assert message.endswith("--data digits for the small data set that comes with scikit-learn.")


# --- quickstart.py and demo.py ------------------------------------------------------------------


def test_quickstart_fits_on_a_page_and_learns(
    example: Import, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len((root / "examples" / "quickstart.py").read_text().splitlines()) <= 40
    accuracy = example("quickstart").main()
    assert accuracy > 0.95
    for page in ("README.md", "examples/quickstart.py"):
        assert "test accuracy above 95 %" in (root / page).read_text()
    printed = capsys.readouterr().out
    assert "density" in printed and f"test accuracy {accuracy:.1%}" in printed


def test_demo_prints_its_table_and_writes_its_figure(
    example: Import, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = tmp_path / "new" / "figure.png"
    runs = example("demo").main(["--data", "digits", "--epochs", "4", "--out", str(figure)])
    assert [run.name for run in runs] == ["dense", "SET 90 %", "RigL 90 %", "SET 98 %", "RigL 98 %"]
    assert [len(run.accuracy) for run in runs] == [4] * 5
    total = 64 * 512 + 512 * 256 + 256 * 10
    assert [run.active for run in runs] == [
        round(total * density) for density in (1, 0.1, 0.1, 0.02, 0.02)
    ]
    assert all(run.replaced and run.looks.sum() > 0 for run in runs[1:])
    assert all(run.accuracy[-1] > 0.8 for run in runs[:3])
    assert figure.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    table = [line for line in printed.splitlines() if line.startswith(("dense  ", "SET", "RigL"))]
    assert any("16,640 (10.0 %)" in line for line in table) and str(figure) in printed


def test_one_epoch_of_the_demo_is_enough_for_its_figure(example: Import, tmp_path: Path) -> None:
    runs = example("demo").main(
        ["--data", "digits", "--epochs", "1", "--seed", "3", "--out", str(tmp_path / "one.png")]
    )
    assert len(runs) == 5 and (tmp_path / "one.png").exists()


def test_the_dense_gradients_of_rigl_are_counted(example: Import) -> None:
    demo = example("demo")
    sparse = {"sparsity": 0.9, "active": 10, "weights": 100}
    rigl, random = demo.Run("rigl", **sparse), demo.Run("set", **sparse)
    assert demo.training_cost(random, updates=10, steps=1000) == pytest.approx(0.1)
    # 1000 steps of 3 x 10 multiplications, and 10 x 90 more for the inactive weights
    assert demo.training_cost(rigl, 10, 1000) == pytest.approx((30_000 + 900) / 300_000)


@pytest.mark.parametrize("epochs", ["0", "-1", "many"])
def test_demo_refuses_a_number_of_epochs_below_one(
    example: Import, epochs: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example("demo").main(["--data", "digits", "--epochs", epochs])
    assert "--epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_on_fashion_mnist_ninety_percent_sparsity_stays_within_one_point_of_dense(
    example: Import, tmp_path: Path
) -> None:
    runs = example("demo").main(["--out", str(tmp_path / "demo.png")])
    dense, *sparse = (run.accuracy[-1] for run in runs)
    assert dense > 0.895
    assert min(sparse[:2]) > dense - 0.01
    assert min(sparse[2:]) > dense - 0.025
