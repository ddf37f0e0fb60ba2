"""One self-contained page about a run: how it went, what it is now, what it was told."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ..integrations import sparse_optimizer
from ..optimizer import SparseOptimizer
from . import sections
from .elements import page
from .over_time import over_time

__all__ = ["report"]


@torch.no_grad()
def report(
    opt: SparseOptimizer,
    path: str | os.PathLike[str],
    *,
    inputs: Any = None,
    model: nn.Module | None = None,
    batch_size: float | None = None,
    pictures: int = 12,
    title: str | None = None,
) -> Path:
    """Write one HTML page about a run, which needs nothing but itself.

    It shows density, churn, exploration rate and drop fraction over time, every layer's density,
    where the active weights lie, FLOPs and settings, by day and by night, on a phone and on
    paper; what is not known is said. The file is replaced at once, so a page may be open while
    training goes on. With sharded parameters (FSDP2) every process has to call it.

    Args:
        opt: The optimizer, also as Lightning, Fabric or Accelerate wrap it.
        path: The file to write; its folder must exist.
        inputs: A batch for ``model(inputs)``, a tuple of its arguments, or a mapping of keyword
            arguments; None: no FLOPs.
        model: The module that is trained; None: the one given as ``model=``.
        batch_size: Samples per optimizer step; None: the size of ``inputs``.
        pictures: Layers to draw at the most, at least 0; more of them make a larger file.
        title: Heading of the page; None: the recipe and its sparsity.

    Returns:
        The path of the page.

    Raises:
        TypeError: If ``opt`` is no SparseOptimizer, or ``path`` no path.
        FileNotFoundError: If the folder does not exist; nothing has been computed then.
        IsADirectoryError: If ``path`` is a folder.
        ValueError: For a negative number of pictures, and as :meth:`SparseOptimizer.flops`.
        ImportError: With ``inputs`` but without fvcore (``pip install sparseopt[flops]``).

    Example:
        >>> import tempfile
        >>> model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> opt = SparseOptimizer(sgd, algo="set", sparsity=0.9, model=model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(opt, Path(folder) / "run.html")
        ...     print(page.name, "sparsity now" in page.read_text())
        run.html True
    """
    found = sparse_optimizer(opt) if isinstance(opt, Optimizer) else None
    if found is None:
        raise TypeError(
            f"opt= is of type {type(opt).__name__}: it must be a SparseOptimizer, whose topology "
            "the report is about"
        )
    target = _checked(path)
    if isinstance(pictures, bool) or not isinstance(pictures, int) or pictures < 0:
        raise ValueError(f"pictures={pictures!r} must be a whole number, 0 or more")
    if inputs is None and (model is not None or batch_size is not None):
        raise ValueError("model= and batch_size= serve to count FLOPs: pass inputs= as well")
    text = _page(found, inputs, model, batch_size, pictures, title)
    _replace(target, text)
    return target


def _checked(path: Any) -> Path:
    try:
        target = Path(path)
    except TypeError:
        raise TypeError(f"path={path!r} must be a path, such as 'run.html'") from None
    if target.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder: name a file in it")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r}: there is no folder {str(target.parent)!r}; make it first"
        )
    return target


def _page(
    opt: SparseOptimizer,
    inputs: Any,
    model: nn.Module | None,
    batch_size: float | None,
    pictures: int,
    title: str | None,
) -> str:
    opt._bind()
    opt._write_back()
    live = None
    if inputs is not None:
        live = opt.flops(inputs, model=model, batch_size=batch_size)
    seen = sections.look(opt, pictures)
    heading = title or f"{opt.algorithm.name}, sparsity {opt.algorithm.sparsity:g}"
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
    written = f"A sparse training run at step {opt.steps:,}. Written {now} by sparseopt."
    return page(
        heading,
        *sections.top(opt, heading, written, live),
        over_time(opt, live),
        sections.layers(opt, seen),
        sections.filters(seen),
        sections.cost(opt, live),
        sections.settings(opt),
        sections.updates(opt),
    )


def _replace(target: Path, text: str) -> None:
    """Write beside the target, then put it in its place: nobody sees half a page."""
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)
