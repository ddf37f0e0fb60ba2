"""The optimizer step of sparse training here and in public libraries, in one run.

    python benchmarks/peers.py           # one thread, about 2 minutes

Needs rigl-torch 0.5.2 and torchao 0.18.0 (``pip install --no-deps rigl-torch torchao==0.18.0``); a
peer that is not installed is named in the data file. sparselab has linear layers only and computes
with them sparsely: see compute.py. sparsimony pins numpy 1 and is left out.

The networks are those of speed.py: forward through ``sum(weight * slope)``, backward, step.
``step`` is the optimizer's ``step()``; ``iteration`` is forward, backward and step, less the dense
forward and backward, so that what a library does in hooks or parametrizations counts too. Both as
ratios to the dense inner optimizer's step. Topologies are static: updates are not part of it.
``inner`` is the share of our ``step()`` that the inner optimizer's own takes, by torch's profiler.
Writes benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from common import machine, ratio, reuse_memory, save
from speed import OPTIMIZERS, network
from torch import nn
from torch.nn.utils import prune

from sparseopt import SparseOptimizer

SPARSITIES = (0.5, 0.9, 0.97)
Make = Callable[[Any], torch.optim.Optimizer]
Step = Callable[[], Any]


def random_mask(weight: torch.Tensor, sparsity: float) -> torch.Tensor:
    return torch.rand_like(weight) >= sparsity


def dense(model: nn.Module, make: Make, sparsity: float) -> Step:
    return make(model.parameters()).step


def ours(model: nn.Module, make: Make, sparsity: float) -> Step:
    return SparseOptimizer(
        make(model.parameters()), "static", sparsity=sparsity, model=model, distribution="uniform"
    ).step


def masks_in_a_loop(model: nn.Module, make: Make, sparsity: float) -> Step:
    """What research code does: multiply weights and momentum by float masks after every step."""
    optimizer = make(model.parameters())
    masks = {weight: random_mask(weight, sparsity).float() for weight in model.parameters()}

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        for weight, mask in masks.items():
            weight.mul_(mask)
            for value in optimizer.state[weight].values():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    value.mul_(mask)

    return step


def rigl_torch(model: nn.Module, make: Make, sparsity: float) -> Step:
    from rigl_torch.RigL import RigLScheduler

    optimizer = make(model.parameters())
    RigLScheduler(
        model, optimizer, dense_allocation=1 - sparsity, T_end=10**9, delta=10**6,
        ignore_linear_layers=False, static_topo=True,
    )  # fmt: skip
    return optimizer.step


def torch_prune(model: nn.Module, make: Make, sparsity: float) -> Step:
    for module in list(model.modules()):
        if hasattr(module, "weight"):
            prune.custom_from_mask(module, "weight", random_mask(module.weight, sparsity))
    return make(model.parameters()).step


def torchao_prune(model: nn.Module, make: Make, sparsity: float) -> Step:
    from torchao.prototype.pat.optim import PruneOptimizer

    group = {"params": list(model.parameters()), "group_type": "ElemGrouper"}
    group |= {"prox_type": "ProxLasso", "reg_lambda": 1e-4}
    return PruneOptimizer(make([group])).step


PEERS: dict[str, Callable[[nn.Module, Make, float], Step]] = {
    "dense": dense,
    "sparseopt": ours,
    "masks in a loop": masks_in_a_loop,
    "rigl-torch": rigl_torch,
    "torch.nn.utils.prune": torch_prune,
    "torchao PruneOptimizer": torchao_prune,
}


class Runner:
    def __init__(self, peer: str, make: Make, sparsity: float) -> None:
        self.model = network()
        self.step = PEERS[peer](self.model, make, sparsity)
        self.slopes = [torch.randn_like(weight) for weight in self.weights()]

    def weights(self) -> list[torch.Tensor]:
        return [module.weight for module in self.model.modules() if hasattr(module, "weight")]

    def iteration(self) -> tuple[float, float]:
        """Seconds of forward and backward, and of the step."""
        self.model.zero_grad()
        begin = time.perf_counter()
        for module in self.model.modules():  # the layers are not called: run their pre-hooks
            for hook in module._forward_pre_hooks.values():
                hook(module, ())
        pairs = zip(self.weights(), self.slopes, strict=True)
        torch.stack([(weight * slope).sum() for weight, slope in pairs]).sum().backward()
        middle = time.perf_counter()
        self.step()
        return middle - begin, time.perf_counter() - middle


def inner_share(runner: Runner) -> float:
    """How much of the step is spent inside the inner optimizer's own one."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        for _ in range(5):
            runner.iteration()
    steps = [one for one in seen.key_averages() if one.key.startswith("Optimizer.step#")]
    inner, whole = sorted(one.cpu_time_total for one in steps)
    return round(inner / whole, 3)


def compare(optimizer: str, sparsity: float, rounds: int) -> list[dict[str, Any]]:
    runners: dict[str, Runner] = {}
    missing: dict[str, str] = {}
    for peer in PEERS:
        try:
            runners[peer] = Runner(peer, OPTIMIZERS[optimizer], sparsity)
            runners[peer].iteration()
        except Exception as problem:  # not installed, or not made for this optimizer
            runners.pop(peer, None)
            missing[peer] = f"{type(problem).__name__}: {problem}"[:120]
    times: dict[str, list[tuple[float, float]]] = {peer: [] for peer in runners}
    for _ in range(rounds):
        for peer, runner in runners.items():
            times[peer].append(runner.iteration())
    base = [step for _, step in times["dense"]]
    passes = statistics.median(before for before, _ in times["dense"])
    rows = [
        {
            "optimizer": optimizer,
            "sparsity": sparsity,
            "peer": peer,
            "step": ratio([step for _, step in ours], base),
            "iteration": ratio([before + step - passes for before, step in ours], base),
        }
        for peer, ours in times.items()
        if peer != "dense"
    ]
    rows[0]["inner"] = inner_share(runners["sparseopt"])
    failed = [
        {"optimizer": optimizer, "sparsity": sparsity, "peer": peer, "problem": problem}
        for peer, problem in missing.items()
    ]
    return rows + failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    reuse_memory()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = []
    for optimizer in OPTIMIZERS:
        for sparsity in SPARSITIES:
            rows += compare(optimizer, sparsity, arguments.rounds)
            print(rows[-5:], flush=True)
    save("peers.json", {"machine": machine(), "rows": rows})


if __name__ == "__main__":
    main()
