"""Whole training steps on active values against dense ones, on the CPU.

    python benchmarks/compute.py                       # the MLP, one thread: half an hour
    python benchmarks/compute.py --network block       # a transformer block
    python benchmarks/compute.py --threads 2
    python benchmarks/compute.py --batch 8 --sparsity 0.9 --seconds 120
    python benchmarks/compute.py --figure              # draws what was measured
    python benchmarks/compute.py --memory              # peak memory of a step
    python benchmarks/compute.py --convolutions        # what CSR products would do for these

Rows that are in the data file already are not measured again (``--again`` does), so that a long
list can be worked off in pieces. A step is forward, backward and ``optimizer.step()``. The MLP is
784-1568-1568-1568-10; the block is self-attention with four projections 512 x 512 and a
feed-forward part 512-2048-512, an ``nn.Sequential`` (in the network "called" its layers are called
one by one), on sequences of 8 tokens: its batch counts tokens. Dense torch (default optimizer),
dense torch with its fused optimizer, sparseopt (RigL, ``compute="auto"``) and sparselab (if
installed; with its RigL, and with the topology it began with) take turns in every round, in another
order each time, so that all meet the same machine; ratios are taken within a round. A turn begins
with steps that are not timed. Seconds are those of the processor on one thread (the machine may be
busy with other work), of the clock on several. The cost of a RigL update (a step that ends in one
and the one after it, less two steps without) is measured apart, and a hundredth of it, for an
update every 100 steps, is added to every step with RigL, ours and sparselab's. Writes
benchmarks/results/compute*.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, machine, ratio, reuse_memory, save
from memory import RETURN_MEMORY, peak_of
from torch import nn
from torch.nn import functional as F

from sparseopt import SparseOptimizer

SIZES = (784, 1568, 1568, 1568, 10)
WIDTH, HIDDEN, HEADS, TOKENS = 512, 2048, 8, 8
UPDATE_EVERY = 100
TURN = 256  # samples in a turn: so many steps that each network has the caches to itself
WARM = 5  # steps before, not timed: the network before has emptied the caches
SPARSITIES, BATCHES = (0.8, 0.9, 0.95, 0.97, 0.99), (8, 32, 128, 512)
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD momentum": lambda p, **more: torch.optim.SGD(p, lr=1e-3, momentum=0.9, **more),
    "AdamW": lambda p, **more: torch.optim.AdamW(p, lr=1e-4, **more),
}
Linear = Callable[[int, int], nn.Module]


def mlp(linear: Linear = nn.Linear) -> nn.Module:
    layers: list[nn.Module] = []
    for size, following in itertools.pairwise(SIZES):
        last = following == SIZES[-1]
        layers += [nn.Linear(size, following) if last else linear(size, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Block(nn.Module):
    """A transformer block, normalized first."""

    def __init__(self, linear: Linear = nn.Linear) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.projections = nn.ModuleList([linear(WIDTH, WIDTH) for _ in range(4)])
        self.parts = nn.Sequential(linear(WIDTH, HIDDEN), nn.GELU(), linear(HIDDEN, WIDTH))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        seen = self.first(tokens)
        heads = [
            each(seen).view(len(tokens), TOKENS, HEADS, -1).transpose(1, 2)
            for each in self.projections[:3]
        ]
        mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(tokens.shape)
        tokens = tokens + self.projections[3](mixed)
        return tokens + self.feed_forward(self.second(tokens))

    def feed_forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.parts(tokens)


class CalledBlock(Block):
    """The same, with a feed-forward part that is no sequence."""

    def __init__(self, linear: Linear = nn.Linear) -> None:
        super().__init__(linear)
        self.wide, _, self.narrow = self.parts
        del self.parts

    def feed_forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.narrow(F.gelu(self.wide(tokens)))


NETWORKS: dict[str, Callable[..., nn.Module]] = {"mlp": mlp, "block": Block, "called": CalledBlock}


def data_for(network: str, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    if network == "mlp":
        return torch.randn(batch, SIZES[0]), torch.randint(0, SIZES[-1], (batch,))
    tokens = torch.randn(max(1, batch // TOKENS), TOKENS, WIDTH)
    return tokens, torch.randn_like(tokens)


class Trained:
    """A network, its optimizer, and what changes its topology, where that is not the optimizer."""

    def __init__(self, model: nn.Module, optimizer: Any, topology: Any = None) -> None:
        self.model, self.optimizer, self.topology = model, optimizer, topology

    def seconds(self, inputs: torch.Tensor, labels: torch.Tensor, steps: int = 1) -> float:
        """Seconds of one step, the mean of several where steps are short, after as many or WARM."""
        for _ in range(min(steps, WARM)):
            self.step(inputs, labels)
        begin = now()
        for _ in range(steps):
            self.step(inputs, labels)
        return (now() - begin) / steps

    def step(self, inputs: torch.Tensor, labels: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        outputs = self.model(inputs)
        loss = F.mse_loss if labels.is_floating_point() else F.cross_entropy
        loss(outputs, labels).backward()
        self.optimizer.step()


def now() -> float:
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def dense(network: str, optimizer: str, **more: Any) -> Trained:
    torch.manual_seed(0)
    model = NETWORKS[network]()
    return Trained(model, OPTIMIZERS[optimizer](model.parameters(), **more))


def sparse(network: str, optimizer: str, sparsity: float) -> Trained:
    torch.manual_seed(0)
    model = NETWORKS[network]()
    inner = OPTIMIZERS[optimizer](model.parameters())
    wrapped = SparseOptimizer(
        inner, "rigl", sparsity=sparsity, update_every=10**9, stop=1.0, model=model, compute="auto"
    )
    return Trained(model, wrapped)


def peer(network: str, optimizer: str, sparsity: float, rigl: bool = False) -> Trained | None:
    """The same network on sparselab's kernels; as many active weights in every layer.

    Its RigL keeps copies of inputs and slopes in every step, for the gradient of all weights.
    """
    try:
        import sparselab
    except ImportError:
        return None
    # it keeps transposes by id(), which Python gives to the matrices of the next row again
    sparselab.ops._clear_transpose_cache()
    torch.manual_seed(0)
    model = NETWORKS[network](lambda i, o: sparselab.SparseLinear(i, o, sparsity=sparsity))
    topology = sparselab.RigL(sparsity, drop_fraction=0.3) if rigl else None
    if topology is not None:
        model.apply(topology)
    return Trained(model, OPTIMIZERS[optimizer](model.parameters()), topology)


def measure(run: dict[str, Any], rounds: int) -> dict[str, Any]:
    kind = run["network"], run["optimizer"]
    trained = {
        "dense": dense(*kind),
        "fused": dense(*kind, fused=True),
        "sparse": sparse(*kind, run["sparsity"]),
        "sparselab": peer(*kind, run["sparsity"]),
        "sparselab_rigl": peer(*kind, run["sparsity"], rigl=True),
    }
    if run["network"] == "called":
        trained["sequence"] = sparse("block", run["optimizer"], run["sparsity"])
    present = {name: one for name, one in trained.items() if one is not None}
    data = data_for(run["network"], run["batch"])
    seconds: dict[str, list[float]] = {name: [] for name in present}
    order = random.Random(0)
    for number in range(rounds + 1):
        for name in order.sample([*present], len(present)):  # who is next to a dense one suffers
            spent = present[name].seconds(*data, max(2, TURN // run["batch"]))
            if number:  # the first round warms up and calibrates
                seconds[name].append(spent)
    step, updates = statistics.median(seconds["sparse"]), {}
    for name in ("sparse", "sparselab_rigl"):
        if name in present:
            plain = statistics.median(seconds[name])
            updates[name] = update_seconds(present[name], *data, plain)
            seconds[name] = [one + updates[name] / UPDATE_EVERY for one in seconds[name]]
    found = run | {
        "milliseconds": {n: round(statistics.median(t) * 1e3, 3) for n, t in seconds.items()},
        "update_milliseconds": {n: round(spent * 1e3, 2) for n, spent in updates.items()},
        "step_without_updates": round(step * 1e3, 3),
        "speedup": {n: ratio(seconds["dense"], t) for n, t in seconds.items() if n != "dense"},
        "speedup_over_fused": ratio(seconds["fused"], seconds["sparse"]),
    }
    shown = {name: value["ratio"] for name, value in found["speedup"].items()}
    print(*run.values(), found["milliseconds"]["dense"], "ms", shown, flush=True)
    return found


def update_seconds(
    one: Trained, inputs: torch.Tensor, labels: torch.Tensor, plain: float, repeats: int = 9
) -> float:
    """Seconds that a RigL update adds to the step that ends in it and to the one after it."""
    spent = []
    for _ in range(repeats):
        if one.topology is None:
            one.optimizer.update_topology()  # asks for one at the end of the next step
        begin = now()
        one.step(inputs, labels)
        if one.topology is not None:
            one.topology.update()
        one.step(inputs, labels)
        spent.append(now() - begin - 2 * plain)
    return max(0.0, statistics.median(spent))


def peaks() -> None:
    """Megabytes that training steps need beyond what is held before; processes of their own.

    "update": a step that ends in a RigL update.
    """
    rows = []
    for sparsity, batch in itertools.product((0.9, 0.97), (8, 128)):
        of = {}
        for kind in ("dense", "fused", "sparse", "update", "sparselab"):
            command = [sys.executable, __file__, "--peak", kind]
            command += ["--sparsity", str(sparsity), "--batch", str(batch)]
            made = subprocess.run(
                command, capture_output=True, text=True, check=True, env=os.environ | RETURN_MEMORY
            )
            of[kind] = json.loads(made.stdout)
        rows.append({"sparsity": sparsity, "batch": batch, "megabytes": of})
        print(rows[-1], flush=True)
    save("compute-memory.json", {"machine": machine(), "rows": rows})


def peak(kind: str, sparsity: float, batch: int) -> float | None:
    made = {
        "dense": lambda: dense("mlp", "AdamW"),
        "fused": lambda: dense("mlp", "AdamW", fused=True),
        "sparse": lambda: sparse("mlp", "AdamW", sparsity),
        "update": lambda: sparse("mlp", "AdamW", sparsity),
        "sparselab": lambda: peer("mlp", "AdamW", sparsity),
    }[kind]()
    if made is None:
        return None
    data = data_for("mlp", batch)
    for _ in range(3):
        made.step(*data)
        if kind == "update":
            made.optimizer.update_topology()  # at the end of the next step
    made.optimizer.zero_grad()
    return round(peak_of(lambda: made.step(*data)), 1)


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


def file_of(network: str, threads: int) -> str:
    parts = ["compute", "" if network == "mlp" else network, "two" if threads > 1 else ""]
    return "-".join(filter(None, parts)) + ".json"


def work_off(arguments: argparse.Namespace) -> None:
    """Measure the rows that are asked for and not yet in the data file; save after each."""
    name = file_of(arguments.network, arguments.threads)
    path, begin = RESULTS / name, time.perf_counter()
    rows = json.loads(path.read_text())["rows"] if path.exists() and not arguments.fresh else []
    names = ("optimizer", "sparsity", "batch")
    wanted = itertools.product(arguments.optimizer, arguments.sparsity, arguments.batch)
    known = {tuple(row[n] for n in names): row for row in rows}
    for one in wanted:
        late = arguments.seconds and time.perf_counter() - begin > arguments.seconds
        if late or (one in known and not arguments.again):
            continue
        run = {"network": arguments.network, "threads": arguments.threads}
        known[one] = measure(run | dict(zip(names, one, strict=True)), arguments.rounds)
        clock = "processor seconds" if arguments.threads == 1 else "seconds"
        every = itertools.product(OPTIMIZERS, SPARSITIES, BATCHES)
        found = [known[case] for case in every if case in known]
        if not arguments.no_save:
            save(name, {"machine": machine(), "clock": clock, "rows": found})


def figure() -> None:
    """Speed-up against sparsity, a panel for each batch size, into docs/figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = json.loads((RESULTS / "compute.json").read_text())["rows"]
    rows = [row for row in rows if row["optimizer"] == "SGD momentum"]
    batches = list(dict.fromkeys(row["batch"] for row in rows))
    shown = {
        "sparse": ("sparseopt, RigL", "#2166ac", "o-"),
        "sparselab_rigl": ("sparselab, RigL", "#b2182b", "s-"),
        "sparselab": ("sparselab, static", "#b2182b", "s:"),
        "fused": ("dense, fused optimizer", "#4d4d4d", ":"),
    }
    made, axes = pyplot.subplots(
        1, len(batches), figsize=(7.2, 3.0), sharey=True, layout="constrained", squeeze=False
    )
    for axis, batch in zip(axes[0], batches, strict=True):
        for name, (label, colour, line) in shown.items():
            points = [(r["sparsity"], r["speedup"][name]) for r in rows if r["batch"] == batch]
            places = [str(sparsity) for sparsity, _ in points]
            axis.plot(places, [v["ratio"] for _, v in points], line, color=colour, label=label)
        axis.axhline(1, color="#d9d9d9", zorder=0)
        axis.set(title=f"batch {batch}", xlabel="sparsity")
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("times as fast as dense")
    lines = axes[0][0].get_legend_handles_labels()
    made.legend(*lines, loc="outside upper center", ncols=len(shown), frameon=False, fontsize=8)
    path = RESULTS.parents[1] / "docs" / "figures" / "sparse-compute.png"
    made.savefig(path, dpi=110, metadata={"Software": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--network", choices=NETWORKS, default="mlp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--sparsity", type=float, nargs="*", default=SPARSITIES)
    parser.add_argument("--batch", type=int, nargs="*", default=BATCHES)
    parser.add_argument("--optimizer", nargs="*", default=list(OPTIMIZERS))
    parser.add_argument("--seconds", type=float, help="start no row after so long")
    parser.add_argument("--again", action="store_true", help="measure known rows too")
    parser.add_argument("--fresh", action="store_true", help="forget the data file")
    parser.add_argument("--convolutions", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument(
        "--figure", action="store_true", help="draw docs/figures/sparse-compute.png"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    if arguments.peak:
        print(json.dumps(peak(arguments.peak, arguments.sparsity[0], arguments.batch[0])))
    elif arguments.memory:
        peaks()
    elif arguments.figure:
        figure()
    elif arguments.convolutions:
        found = convolutions(arguments.rounds)
        save("compute-convolutions.json", {"machine": machine(), "rows": found})
    else:
        reuse_memory()
        work_off(arguments)


if __name__ == "__main__":
    main()
