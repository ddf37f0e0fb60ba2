"""A row for each epoch: log.csv, and TensorBoard where it is installed."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Log:
    """Writes the rows of a run; after a resume the file says what the checkpoint says."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "log.csv"
        self.board = tensorboard(folder / "tensorboard")

    def __call__(self, rows: Sequence[dict[str, float]]) -> None:
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        os.replace(part, self.path)
        if self.board is not None:
            for name, value in rows[-1].items():
                self.board.add_scalar(name, value, int(rows[-1]["epoch"]))
            self.board.flush()


def tensorboard(folder: Path) -> Any:
    """A writer, or None without TensorBoard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder))
