"""Fashion-MNIST and scikit-learn's digits as uint8 tensors in memory: they need no loader.

`load("digits")`, `load("/my/folder")` or `load()` give four tensors: training images (n, height,
width) in 0..255, training labels, test images, test labels.
"""

import contextlib
import gzip
import io
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

Dataset: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LAYOUTS = ("", "FashionMNIST/raw", "raw")  # the files themselves, or torchvision's root above them
DEBIAN_PACKAGE = "dataset-fashion-mnist"
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
PATIENCE = 10  # seconds without an answer from the network
HOW_TO_GET_IT = (
    "Pass --data FOLDER with the four files "
    + ", ".join(FILES)
    + " (each gzipped or not; torchvision's layout will do), or --data digits for the small"
    " data set that comes with scikit-learn."
)


def load(data: str | None = None) -> Dataset:
    """The data named on a command line: None, "digits" or a folder with Fashion-MNIST."""
    return digits() if data == "digits" else fashion_mnist(data)


def digits() -> Dataset:
    """1797 handwritten digits of 8 x 8 pixels; 360 of them, always the same, are for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images * (255 / 16)).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[360:], order[:360]
    return images[train], labels[train], images[test], labels[test]


def fashion_mnist(path: str | Path | None = None) -> Dataset:
    """60,000 training and 10,000 test pictures of clothes, 28 x 28 pixels, ten classes.

    With a path, that folder is read and no other; anything in the layout of MNIST will do. Without,
    what is on this machine comes first (the cache, then Debian's folder), then torchvision's
    download, then Debian's package, unpacked without root. Downloads end up in the cache.

    Raises:
        FileNotFoundError: when the folder given is incomplete or nothing could be obtained.
        ValueError: when a file is not the file that its name says.
    """
    if path is not None:
        return _given(Path(path))
    reasons = []
    for source in (_cached, _installed, _from_torchvision, _from_debian):
        try:
            return _read_folder(source())
        except _REFUSALS as error:
            reasons.append(f"  {source.__doc__}: {_one_line(error)}")
    raise FileNotFoundError(
        "Fashion-MNIST is not on this machine and could not be fetched.\n"
        + "\n".join(reasons)
        + f"\n{HOW_TO_GET_IT}"
    )


def _given(folder: Path) -> Dataset:
    try:
        return _read_folder(_complete(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {HOW_TO_GET_IT}") from None


# torchvision raises RuntimeError for what did not arrive, ImportError when it is not installed.
_REFUSALS = (OSError, ValueError, RuntimeError, ImportError, subprocess.SubprocessError)


def _one_line(error: BaseException) -> str:
    message = getattr(error, "stderr", None) or str(error) or type(error).__name__
    return " ".join(message.split())


def cache_folder() -> Path:
    """Where downloads are kept: $SPARSEOPT_DATA, else the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SPARSEOPT_DATA") or Path(cache) / "sparseopt")


# --- where to look ------------------------------------------------------------------------------


def _cached() -> Path:
    """earlier download"""
    return _complete(cache_folder())


def _installed() -> Path:
    """Debian package installed here"""
    return _complete(DEBIAN_FOLDER)


def _from_torchvision() -> Path:
    """torchvision's download"""
    from torchvision.datasets import FashionMNIST

    with _workshop() as folder, _impatient_network(), _quiet():
        FashionMNIST(folder, download=True)
        return _keep(_complete(folder))


def _from_debian() -> Path:
    """apt-get download dataset-fashion-mnist"""
    with _workshop() as folder:
        try:
            _apt_get(folder, "download", DEBIAN_PACKAGE)
        except subprocess.CalledProcessError:  # a fresh machine has no package lists yet
            lists = _private_lists(folder)
            _apt_get(folder, *lists, "update")
            _apt_get(folder, *lists, "download", DEBIAN_PACKAGE)
        package = next(folder.glob("*.deb"))
        _run(folder, "dpkg", "-x", str(package), "unpacked")
        return _keep(_complete(folder / "unpacked" / DEBIAN_FOLDER.relative_to("/")))


def _apt_get(folder: Path, *arguments: str) -> None:
    timeout = f"Acquire::http::Timeout={PATIENCE}"
    _run(folder, "apt-get", "-q", "-o", timeout, "-o", "Acquire::Retries=0", *arguments)


def _private_lists(folder: Path) -> list[str]:
    """Options under which apt-get keeps its lists in `folder`: no root needed, nothing changed."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    options = (f"Dir::State::Lists={folder}/lists", f"Dir::Cache={folder}/cache")
    return [part for option in options for part in ("-o", option)]


def _run(folder: Path, *command: str) -> None:
    subprocess.run(
        command,
        cwd=folder,
        check=True,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=30 * PATIENCE,
    )


@contextlib.contextmanager
def _workshop() -> Iterator[Path]:
    """A folder inside the cache, so that what is finished can be moved into place at once."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
        yield Path(folder).resolve()


@contextlib.contextmanager
def _impatient_network() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _keep(found: Path) -> Path:
    """Moves a complete folder into the cache, where `_cached` finds it next time."""
    kept = cache_folder() / LAYOUTS[1]
    kept.parent.mkdir(exist_ok=True)
    shutil.rmtree(kept, ignore_errors=True)
    return found.replace(kept)


# --- reading ------------------------------------------------------------------------------------


def _complete(folder: Path) -> Path:
    """The folder that has all four files: this one, or the one below it in torchvision's layout."""
    candidates = [folder / layout for layout in LAYOUTS]
    missing = [[name for name in FILES if _file(place, name) is None] for place in candidates]
    for place, absent in zip(candidates, missing, strict=True):
        if not absent:
            return place
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder")
    absent = min(missing, key=len)
    raise FileNotFoundError(f"{folder} lacks {', '.join(absent)}")


def _file(folder: Path, name: str) -> Path | None:
    present = (path for path in (folder / name, folder / f"{name}.gz") if path.is_file())
    return next(present, None)


def _read_folder(folder: Path) -> Dataset:
    paths = [path for name in FILES if (path := _file(folder, name)) is not None]
    images, labels, test_images, test_labels = (read_idx(path) for path in paths)
    for part, some, of in (("train", images, labels), ("t10k", test_images, test_labels)):
        if some.shape != (len(of), 28, 28) or of.dim() != 1:
            raise ValueError(
                f"{folder}: the {part} files hold images of shape {tuple(some.shape)} and labels of"
                f" shape {tuple(of.shape)}; expected (n, 28, 28) and (n,)"
            )
    return images, labels.long(), test_images, test_labels.long()


def read_idx(path: Path) -> Tensor:
    """The uint8 tensor in an idx file, gzipped or not (whatever the name says).

    Raises:
        ValueError: when it is no idx file of bytes, or cut off.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        sizes = struct.unpack_from(f">{dimensions}I", content, 4)
    except (struct.error, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as an idx file: {error}") from error
    if (zero, kind) != (0, 8):
        raise ValueError(f"{path} starts with {content[:4].hex()}, not with 000008 as idx bytes do")
    body = memoryview(content)[4 + 4 * dimensions :]
    if len(body) != prod(sizes):
        raise ValueError(f"{path} has {len(body)} bytes of data, its header says {prod(sizes)}")
    return torch.frombuffer(bytearray(body), dtype=torch.uint8).view(sizes)
