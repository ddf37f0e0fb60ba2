"""What a sparse optimizer step and a topology update cost, against the dense inner optimizer.

    python benchmarks/speed.py                 # 25.2 M parameters, one thread, about 10 minutes
    python benchmarks/speed.py --sizes         # how cost grows, 1e5 to 1e8 parameters
    python benchmarks/speed.py --device cuda

Gradients come from a real backward pass through a loss whose gradient is known, so that the hooks
which mask gradients are paid for. Reported, as ratios to the dense optimizer in the same round:
``step`` (the call of ``step()``), ``total`` (the step and what the hooks add to the backward pass),
``update`` (one topology update, in dense steps) and ``amortised`` (``total`` with an update every
100 steps). Writes benchmarks/results/speed.json and docs/storage-speed.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from common import RESULTS, interleaved, machine, ratio, save, synchronize
from torch import nn

from sparseopt import SparseOptimizer

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, weight_decay=5e-4),
    "AdamW foreach": lambda p: torch.optim.AdamW(p, lr=1e-4, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=1e-4, fused=True),
}


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


def measure(optimizer: str, sparsity: float, scale: float, rounds: int, device: str) -> list[dict]:
    """One row per storage."""
    make = OPTIMIZERS[optimizer]
    trained = {"dense": Trained(lambda m: make(m.parameters()), scale, device)}
    for storage in ("masked", "compact", "auto"):
        trained[storage] = Trained(
            lambda m, storage=storage: SparseOptimizer(
                make(m.parameters()), "rigl", sparsity=sparsity, model=m, storage=storage,
                update_every=10**9, distribution="uniform", stop=1.0,
            ),
            scale, device,
        )  # fmt: skip
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
    updates = {name: update_seconds(one) for name, one in trained.items() if name != "dense"}
    return [
        row(optimizer, sparsity, scale, name, trained[name], steps, backward, updates[name])
        for name in updates
    ]


def update_seconds(one: Trained, repeats: int = 3) -> list[float]:
    """Seconds of a RigL update: a step that ends in one, less the steps around it without."""
    spent = []
    for _ in range(repeats):
        one.backward()
        plain = interleaved({"step": one.optimizer.step}, 1, 0, one.device)["step"][0]
        one.optimizer.update_topology()  # asks for one at the end of the next step
        one.backward()
        whole = interleaved({"step": one.optimizer.step}, 1, 0, one.device)["step"][0]
        spent.append(whole - plain)
    return spent


def row(
    optimizer: str, sparsity: float, scale: float, name: str, one: Trained,
    steps: dict[str, list[float]], backward: dict[str, list[float]], updates: list[float],
) -> dict[str, Any]:  # fmt: skip
    hooks = [a - b for a, b in zip(backward[name], backward["dense"], strict=True)]
    total = [step + max(extra, 0.0) for step, extra in zip(steps[name], hooks, strict=True)]
    dense = sorted(steps["dense"])[len(steps["dense"]) // 2]
    update = sorted(updates)[len(updates) // 2] / dense
    state = sum(
        value.numel() * value.element_size()
        for entry in one.optimizer.state.values()
        for value in entry.values()
        if torch.is_tensor(value)
    )
    parameters = sum(p.numel() for p in one.model.parameters())
    both = ratio(total, steps["dense"])
    return {
        "optimizer": optimizer,
        "sparsity": sparsity,
        "storage": name,
        "parameters": parameters,
        "chosen": repr(one.optimizer).split("storage='")[1].split("'")[0],
        "step": ratio(steps[name], steps["dense"]),
        "total": both,
        "update": round(update, 2),
        "amortised": round(both["ratio"] + update / 100, 3),
        "state_bytes_per_weight": round(state / parameters, 3),
        "dense_milliseconds": round(dense * 1e3, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", action="store_true", help="1e5 to 1e8 parameters at S = 0.9")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--sparsity", type=float, nargs="*")
    parser.add_argument("--optimizer", nargs="*", default=list(OPTIMIZERS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sparsities = arguments.sparsity or [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98]
    scales = [1.0]
    if arguments.sizes:
        sparsities, scales = arguments.sparsity or [0.9], [0.004, 0.04, 0.4, 4.0]
    rows = []
    for scale in scales:
        for optimizer in arguments.optimizer:
            for sparsity in sparsities:
                rows += measure(optimizer, sparsity, scale, arguments.rounds, arguments.device)
                for one in rows[-3:]:
                    print({k: one[k] for k in ("optimizer", "sparsity", "storage", "chosen")},
                          one["step"]["ratio"], one["total"]["ratio"], one["update"],
                          one["state_bytes_per_weight"], flush=True)  # fmt: skip
    suffix = ("-sizes" if arguments.sizes else "") + ("-cuda" if arguments.device == "cuda" else "")
    path = save(f"speed{suffix}.json", {"machine": machine(arguments.device), "rows": rows})
    print(f"wrote {path.relative_to(RESULTS.parent.parent)}")


if __name__ == "__main__":
    main()
