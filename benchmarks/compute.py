"""Whole training steps on active values against dense ones, on one CPU thread.

    python benchmarks/compute.py                 # about 15 minutes
    python benchmarks/compute.py --convolutions  # what CSR products would do for these
    python benchmarks/compute.py --rounds 5 --optimizer "SGD momentum" --batch 8 --sparsity 0.9

A step is forward, backward and ``optimizer.step()`` of an MLP 784-1568-1568-1568-10. Dense torch,
dense torch with its fused optimizer, sparselab (static topology, if installed) and sparseopt (RigL,
an update every 100 steps) take turns in every round, so that all meet the same machine; ratios are
taken within a round. Seconds are those of the processor, not of the clock: the machine may be busy
with other work. The cost of an update (a step that ends in one, less a step without) is measured
apart, and a hundredth of it is added to every sparse step. Writes benchmarks/results/compute.json
and the tables of docs/sparse-compute.md.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, machine, ratio, save
from torch import nn
from torch.nn import functional as F

from sparseopt import SparseOptimizer

SIZES = (784, 1568, 1568, 1568, 10)
UPDATE_EVERY = 100
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD momentum": lambda p, **more: torch.optim.SGD(p, lr=1e-3, momentum=0.9, **more),
    "AdamW": lambda p, **more: torch.optim.AdamW(p, lr=1e-4, **more),
}
PAGE = Path(__file__).parent.parent / "docs" / "sparse-compute.md"
BEGIN, END = "<!-- begin: benchmarks/compute.py -->", "<!-- end: benchmarks/compute.py -->"


def mlp(linear: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(SIZES):
        last = following == SIZES[-1]
        layers += [nn.Linear(size, following) if last else linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Trained:
    """A network and its optimizer; one call is one training step."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.model, self.optimizer = model, optimizer
        self.around: Any = contextlib.nullcontext

    def seconds(self, inputs: torch.Tensor, labels: torch.Tensor, steps: int = 1) -> float:
        """Processor seconds of one step, the mean of a few where steps are short."""
        with self.around():
            self.step(inputs, labels)
            begin = time.process_time()
            for _ in range(steps):
                self.step(inputs, labels)
            return (time.process_time() - begin) / steps

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(inputs), labels).backward()
        self.optimizer.step()


def dense(optimizer: str, **more: Any) -> Trained:
    model = mlp()
    return Trained(model, OPTIMIZERS[optimizer](model.parameters(), **more))


def sparse(optimizer: str, sparsity: float, deferred: bool = False) -> Trained:
    model = mlp()
    inner = OPTIMIZERS[optimizer](model.parameters())
    wrapped = SparseOptimizer(
        inner, "rigl", sparsity=sparsity, update_every=10**9, stop=1.0, model=model, compute="auto"
    )
    made = Trained(model, wrapped)
    if deferred:
        made.around = wrapped.deferred_weights
    return made


def peer(optimizer: str, sparsity: float) -> Trained | None:
    """The same network on sparselab's kernels; as many active weights in every hidden layer."""
    try:
        import sparselab
    except ImportError:
        return None
    model = mlp(lambda i, o: sparselab.SparseLinear(i, o, sparsity=sparsity))
    return Trained(model, OPTIMIZERS[optimizer](model.parameters()))


def measure(optimizer: str, sparsity: float, batches: list[int], rounds: int) -> list[dict]:
    trained = {
        "dense": dense(optimizer),
        "fused": dense(optimizer, fused=True),
        "sparse": sparse(optimizer, sparsity),
        "deferred": sparse(optimizer, sparsity, deferred=True),
        "sparselab": peer(optimizer, sparsity),
    }
    present = {name: one for name, one in trained.items() if one is not None}
    return [row(optimizer, sparsity, batch, present, rounds) for batch in batches]


def row(
    optimizer: str, sparsity: float, batch: int, trained: dict[str, Trained], rounds: int
) -> dict[str, Any]:
    torch.manual_seed(1)
    inputs, labels = torch.randn(batch, SIZES[0]), torch.randint(0, SIZES[-1], (batch,))
    seconds: dict[str, list[float]] = {name: [] for name in trained}
    for number in range(rounds + 1):
        for name, one in trained.items():
            spent = one.seconds(inputs, labels, max(2, 32 // batch))
            if number:  # the first round warms up and calibrates
                seconds[name].append(spent)
    update = update_seconds(trained["sparse"], inputs, labels, statistics.median(seconds["sparse"]))
    for name in ("sparse", "deferred"):
        seconds[name] = [one + update / UPDATE_EVERY for one in seconds[name]]
    found = {
        "optimizer": optimizer,
        "sparsity": sparsity,
        "batch": batch,
        "milliseconds": {n: round(statistics.median(t) * 1e3, 3) for n, t in seconds.items()},
        "update_milliseconds": round(update * 1e3, 2),
        "speedup": {n: ratio(seconds["dense"], t) for n, t in seconds.items() if n != "dense"},
        "speedup_over_fused": ratio(seconds["fused"], seconds["sparse"]),
    }
    shown = {name: value["ratio"] for name, value in found["speedup"].items()}
    print(optimizer, sparsity, batch, found["milliseconds"]["dense"], "ms", shown, flush=True)
    return found


def update_seconds(
    one: Trained, inputs: torch.Tensor, labels: torch.Tensor, plain: float, repeats: int = 3
) -> float:
    """Seconds that a RigL update adds to the step that ends in it and to the one after it."""
    spent = []
    for _ in range(repeats):
        one.optimizer.update_topology()  # asks for one at the end of the next step
        begin = time.process_time()
        one.step(inputs, labels)
        one.step(inputs, labels)
        spent.append(time.process_time() - begin - 2 * plain)
    return max(0.0, statistics.median(spent))


CONVOLUTIONS = ((256, 64, 28, 1), (256, 256, 14, 1), (512, 256, 7, 1), (256, 256, 14, 3))


def convolutions(rounds: int, batch: int = 8) -> list[dict[str, Any]]:
    """Forward passes of convolutions as CSR products with their unfolded inputs; not offered."""
    return [
        convolution(*shape, sparsity, batch, rounds)
        for shape in CONVOLUTIONS
        for sparsity in (0.9, 0.95, 0.98)
    ]


def convolution(
    outputs: int, inputs: int, size: int, kernel: int, sparsity: float, batch: int, rounds: int
) -> dict[str, Any]:
    images = torch.randn(batch, inputs, size, size)
    weight = torch.randn(outputs, inputs, kernel, kernel)
    weight *= torch.rand(weight.shape) >= sparsity
    matrix = weight.view(outputs, -1).to_sparse_csr()

    def unfolded() -> torch.Tensor:
        if kernel == 1:
            return images.transpose(0, 1).reshape(inputs, -1)
        columns = F.unfold(images, kernel, padding=kernel // 2).transpose(0, 1)
        return columns.reshape(inputs * kernel**2, -1)

    def product() -> torch.Tensor:
        made = torch.mm(matrix, unfolded()).view(outputs, batch, size, size)
        return made.transpose(0, 1).contiguous()

    seconds: dict[str, list[float]] = {"dense": [], "sparse": []}
    for _ in range(rounds + 2):
        for name, run in (
            ("dense", lambda: F.conv2d(images, weight, padding=kernel // 2)),
            ("sparse", product),
        ):
            begin = time.process_time()
            run()
            seconds[name].append(time.process_time() - begin)
    found = {
        "convolution": [outputs, inputs, size, kernel],
        "sparsity": sparsity,
        "batch": batch,
        "speedup": ratio(seconds["dense"][2:], seconds["sparse"][2:]),
    }
    print(found, flush=True)
    return found


def table(rows: list[dict[str, Any]], optimizer: str) -> str:
    """Speed-ups of one optimizer as Markdown."""
    names = [n for n in ("sparse", "deferred", "fused", "sparselab") if n in rows[0]["speedup"]]
    titles = {
        "sparse": 'compute="auto"', "deferred": "with deferred_weights()",
        "fused": "dense, fused optimizer", "sparselab": "sparselab, static",
    }  # fmt: skip
    lines = [
        "| batch | sparsity | dense step, ms | update, ms | "
        + " | ".join(titles[n] for n in names)
        + " |",
        "|-" * (4 + len(names)) + "|",
    ]
    for one in rows:
        if one["optimizer"] == optimizer:
            ratios = " | ".join(f"{one['speedup'][name]['ratio']:.2f}×" for name in names)
            spent = f"{one['milliseconds']['dense']:.1f} | {one['update_milliseconds']:.0f}"
            lines.append(f"| {one['batch']} | {one['sparsity']} | {spent} | {ratios} |")
    return "\n".join(lines)


def write_page(content: dict[str, Any]) -> None:
    """Put the tables between the marks of the page."""
    parts = [
        f"{optimizer}:\n\n{table(content['rows'], optimizer)}"
        for optimizer in OPTIMIZERS
        if any(one["optimizer"] == optimizer for one in content["rows"])
    ]
    where = content["machine"]
    parts.append(
        f"Made by `{where['command']}` at commit {where['commit']} with torch {where['torch']}, "
        f"{where['threads']} thread, {where['processor']}, {where['date']}."
    )
    text = PAGE.read_text()
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    PAGE.write_text(head + BEGIN + "\n\n" + "\n\n".join(parts) + "\n\n" + END + tail)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.8, 0.9, 0.95, 0.97, 0.99])
    parser.add_argument("--batch", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--optimizer", nargs="*", default=list(OPTIMIZERS))
    parser.add_argument("--convolutions", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.convolutions:
        found = convolutions(arguments.rounds)
        save("compute-convolutions.json", {"machine": machine(), "rows": found})
        return
    rows = []
    for optimizer in arguments.optimizer:
        for sparsity in arguments.sparsity:
            rows += measure(optimizer, sparsity, arguments.batch, arguments.rounds)
    if arguments.no_save:
        return
    content = {"machine": machine(), "clock": "processor seconds", "rows": rows}
    path = save("compute.json", content)
    write_page(content)
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
