"""What a sparse optimizer step and a topology update cost, against the dense inner optimizer.

    python benchmarks/speed.py                 # 25.2 M parameters, one thread, about 10 minutes
    python benchmarks/speed.py --sizes         # how cost grows, 1e5 to 1e8 parameters
    python benchmarks/speed.py --sparsity 0.9  # these rows only; the others stay in the data file
    python benchmarks/speed.py --device cuda

Gradients come from a real backward pass through a loss whose gradient is known, so that the hooks
which mask gradients are paid for. Reported, as ratios to the dense optimizer in the same round:
``step`` (the call of ``step()``), ``total`` (the step and what the hooks add to the backward pass),
``update`` (one RigL update with new gradients, in dense steps), ``update of SET`` and ``amortised``
(``total`` with a RigL update every 100 steps). Writes benchmarks/results/speed.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, interleaved, machine, ratio, reuse_memory, save, synchronize
from torch import nn

from sparseopt import SparseOptimizer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=5e-4),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
}


STORAGES = ("masked", "compact", "auto")


def network(scale: float = 1.0, device: str = "cpu") -> nn.Module:
    """8 convolutions 512 x 512 x 3 x 3, 6 linear layers 1024 x 1024: 25.2 M weights at scale 1."""
    torch.manual_seed(0)
    width, wide = max(8, round(512 * scale**0.5)), max(8, round(1024 * scale**0.5))
    layers: list[nn.Module] = [nn.Conv2d(width, width, 3, bias=False) for _ in range(8)]
    layers += [nn.Linear(wide, wide, bias=False) for _ in range(6)]
    return nn.ModuleList(layers).to(device)


class Trained:
    """A network with an optimizer, and the two halves of a training step to be timed."""

    def __init__(self, make: Callable[[nn.Module], Any], scale: float, device: str) -> None:
        self.model = network(scale, device)
        self.optimizer = make(self.model)
        self.slopes = [torch.randn_like(p) for p in self.model.parameters()]
        self.device = device
        self.backward_seconds = 0.0

    def backward(self) -> None:
        self.optimizer.zero_grad()
        pairs = zip(self.model.parameters(), self.slopes, strict=True)
        loss = torch.stack([(p * slope).sum() for p, slope in pairs]).sum()
        synchronize(self.device)
        begin = time.perf_counter()
        loss.backward()
        synchronize(self.device)
        self.backward_seconds = time.perf_counter() - begin

    def renew(self) -> None:
        """Other gradients, so that the next update grows other weights."""
        for slope in self.slopes:
            slope.normal_()


def sparse(make: Callable[[Any], Any], algo: str, sparsity: float, storage: str) -> Callable:
    """What wraps the optimizer of a model."""
    options = {"stop": 1.0} if algo == "rigl" else {}
    return lambda model: SparseOptimizer(
        make(model.parameters()), algo, sparsity=sparsity, model=model, storage=storage,
        update_every=10**9, distribution="uniform", **options,
    )  # fmt: skip


def measure(optimizer: str, sparsity: float, scale: float, rounds: int, device: str) -> list[dict]:
    """One row per storage."""
    make = OPTIMIZERS[optimizer]
    trained = {"dense": Trained(lambda m: make(m.parameters()), scale, device)}
    for storage in STORAGES:
        trained[storage] = Trained(sparse(make, "rigl", sparsity, storage), scale, device)
    backward: dict[str, list[float]] = {name: [] for name in trained}
    steps: dict[str, list[float]] = {name: [] for name in trained}
    for round_number in range(rounds + 2):
        for one in trained.values():
            one.backward()
        timed = interleaved({n: t.optimizer.step for n, t in trained.items()}, 1, 0, device)
        if round_number >= 2:
            for name, one in trained.items():
                backward[name].append(one.backward_seconds)
                steps[name] += timed[name]
    rows = []
    dense = trained.pop("dense")
    for name, one in trained.items():
        rows.append(row(one, steps[name], backward[name], steps["dense"], backward["dense"]))
        rows[-1] |= updates(one, dense, sparse(make, "set", sparsity, name))
        rows[-1]["amortised"] = round(rows[-1]["total"]["ratio"] + rows[-1]["update"] / 100, 3)
        about = {"optimizer": optimizer, "sparsity": sparsity, "storage": name}
        rows[-1] = about | rows[-1]
    return rows


def updates(one: Trained, dense: Trained, as_set: Callable, repeats: int = 5) -> dict[str, float]:
    """An update of RigL and one of SET, in dense steps: medians over those timed beside them.

    RigL's ends a step: both are timed with their backward pass, in which the dense gradients are
    kept, less a backward pass and step without.
    """

    def seconds(what: Trained, call: Callable[[], Any]) -> float:
        return interleaved({"call": call}, 1, 0, what.device)["call"][0]

    def both(what: Trained) -> float:
        what.renew()
        what.backward()
        return what.backward_seconds + seconds(what, what.optimizer.step)

    rigl, of_set = [], []
    for _ in range(repeats):
        dense.backward()
        base = seconds(dense, dense.optimizer.step)
        plain = both(one)
        one.optimizer.update_topology()  # asks for one at the end of the next step
        rigl.append((both(one) - plain) / base)
    one.optimizer = as_set(one.model)
    for _ in range(repeats):
        dense.backward()
        base = seconds(dense, dense.optimizer.step)
        both(one)
        of_set.append(seconds(one, one.optimizer.update_topology) / base)
    middle = repeats // 2
    return {
        "update": round(sorted(rigl)[middle], 2),
        "update_of_set": round(sorted(of_set)[middle], 2),
    }


def row(
    one: Trained, step: list[float], backward: list[float],
    dense_step: list[float], dense_backward: list[float],
) -> dict[str, Any]:  # fmt: skip
    hooks = [a - b for a, b in zip(backward, dense_backward, strict=True)]
    total = [seconds + extra for seconds, extra in zip(step, hooks, strict=True)]
    state = sum(
        value.numel() * value.element_size()
        for entry in one.optimizer.state.values()
        for value in entry.values()
        if torch.is_tensor(value)
    )
    parameters = sum(p.numel() for p in one.model.parameters())
    return {
        "parameters": parameters,
        "chosen": repr(one.optimizer).split("storage='")[1].split("'")[0],
        "step": ratio(step, dense_step),
        "total": ratio(total, dense_step),
        "state_bytes_per_weight": round(state / parameters, 3),
        "dense_milliseconds": round(statistics.median(dense_step) * 1e3, 3),
    }


def kept(path: Path, rows: list[dict]) -> list[dict]:
    """The rows of the data file that these do not replace, and these."""
    what = ("optimizer", "sparsity", "storage", "parameters")
    found = json.loads(path.read_text())["rows"] if path.exists() else []
    together = {tuple(one[key] for key in what): one for one in [*found, *rows]}
    order = (list(OPTIMIZERS), STORAGES)
    return sorted(
        together.values(),
        key=lambda one: (
            one["parameters"],
            order[0].index(one["optimizer"]),
            one["sparsity"],
            order[1].index(one["storage"]),
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", action="store_true", help="1e5 to 1e8 parameters at S = 0.9")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparsity", type=float, nargs="*")
    parser.add_argument("--scale", type=float, nargs="*", help="sizes, relative to 25.2 M")
    parser.add_argument("--optimizer", nargs="*", default=list(OPTIMIZERS))
    arguments = parser.parse_args()
    reuse_memory()
    torch.set_num_threads(1)
    sparsities = arguments.sparsity or [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98]
    scales = [1.0]
    if arguments.sizes:
        sparsities, scales = arguments.sparsity or [0.9], arguments.scale or [0.004, 0.04, 0.4, 4.0]
    suffix = ("-sizes" if arguments.sizes else "") + ("-cuda" if arguments.device == "cuda" else "")
    about = machine(arguments.device)
    about["command"] = f"python speed.py --rounds {arguments.rounds}{' --sizes' * arguments.sizes}"
    for scale in scales:
        for optimizer in arguments.optimizer:
            for sparsity in sparsities:
                rows = measure(optimizer, sparsity, scale, arguments.rounds, arguments.device)
                rows = [one | {"commit": about["commit"], "date": about["date"]} for one in rows]
                for one in rows:
                    print({k: one[k] for k in ("optimizer", "sparsity", "storage", "chosen")},
                          one["step"]["ratio"], one["total"]["ratio"], one["update"],
                          one["update_of_set"], one["state_bytes_per_weight"],
                          flush=True)  # fmt: skip
                name = f"speed{suffix}.json"
                save(name, {"machine": about, "rows": kept(RESULTS / name, rows)})


if __name__ == "__main__":
    main()
