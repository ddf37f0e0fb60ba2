"""Faults: what was checkpointed before them goes on bit for bit, and nothing is left half done."""

import copy
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from common import (
    MuonLike,
    assert_same,
    assert_zeros,
    inner_named,
    loss_of,
    mlp,
    sparse,
    train,
)
from torch.optim import SGD, Adam, AdamW

POLICIES = ["zero", "mean", "per_element_step"]
STORAGES = ["masked", "auto"]


class Fault(Exception):
    pass


def state(model, optimizer):
    return copy.deepcopy(
        [dict(model.state_dict()), dict(optimizer.masks), optimizer.state_dict(), optimizer.steps]
    )


def run(policy, storage, algo="rigl", inner=AdamW, **options):
    model = mlp()
    optimizer = sparse(
        model, inner(model.parameters(), lr=0.02), algo, grown_state=policy, storage=storage,
        update_every=2, **options,
    )  # fmt: skip
    return model, optimizer


def own_parameters(model, optimizer):
    groups = [p for group in optimizer.param_groups for p in group["params"]]
    return all(p is q for p, q in zip(groups, model.parameters(), strict=True))


# --- exceptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("when", ["before backward", "after backward"])
@pytest.mark.parametrize("at", [0, 4, 5])
def test_an_exception_in_the_closure_counts_nothing_and_training_goes_on(policy, storage, when, at):
    model, optimizer = run(policy, storage)
    reference_model, reference = run(policy, storage)
    train(model, optimizer, at)
    before = state(model, optimizer)

    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, 77)
        if when == "after backward":
            loss.backward()
        raise Fault

    with pytest.raises(Fault):
        optimizer.step(closure)
    assert own_parameters(model, optimizer)
    assert_same(state(model, optimizer), before)
    train(model, optimizer, 9 - at, first=at)
    train(reference_model, reference, 9)
    assert_same(state(model, optimizer), state(reference_model, reference))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("by_closure", [False, True])
@pytest.mark.parametrize("at", [0, 4, 5, 7])
def test_an_exception_in_the_inner_step_leaves_state_that_goes_on(policy, storage, by_closure, at):
    """The inner optimizer fails before it has changed anything."""
    model, optimizer = run(policy, storage, inner=Adam)
    reference_model, reference = run(policy, storage, inner=Adam)
    train(model, optimizer, at)
    before = state(model, optimizer)

    def fail(*args):
        raise Fault

    handle = optimizer.inner.register_step_pre_hook(fail)
    with pytest.raises(Fault):
        train(model, optimizer, 1, first=at, closure=by_closure)
    handle.remove()
    assert own_parameters(model, optimizer)
    moments = [value for entry in before[2]["state"].values() for value in entry.values()]
    now = [value for entry in optimizer.state_dict()["state"].values() for value in entry.values()]
    for one, other in zip(now, moments, strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=1e-12, atol=0)
    assert_zeros(optimizer)
    assert optimizer.steps == at
    train(model, optimizer, 9 - at, first=at)
    train(reference_model, reference, 9)
    assert_same(dict(optimizer.masks), dict(reference.masks))
    for p, q in zip(model.parameters(), reference_model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("storage", STORAGES)
def test_an_inner_step_that_fails_half_way_leaves_zeros_and_a_checkpoint_restores(policy, storage):
    class Halting(Adam):
        fails = False

        @torch.no_grad()
        def step(self, closure=None):
            if self.fails:
                for group in self.param_groups:
                    for p in group["params"][:2]:
                        p.add_(1.0)
                raise Fault
            return super().step(closure)

    model, optimizer = run(policy, storage, inner=Halting)
    train(model, optimizer, 4)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict()])
    train(model, optimizer, 5, first=4)
    expected = state(model, optimizer)
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    optimizer.inner.fails = True
    with pytest.raises(Fault):
        train(model, optimizer, 1, first=4)
    optimizer.inner.fails = False
    assert own_parameters(model, optimizer)
    assert_zeros(optimizer)
    assert optimizer.steps == 4
    model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(model, optimizer, 5, first=4)
    assert_same(state(model, optimizer), expected)


@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("storage", STORAGES)
def test_an_exception_in_on_update_comes_after_the_update_is_whole(algo, storage):
    def fail(record):
        raise Fault(record.step)

    model, optimizer = run("zero", storage, algo)
    reference_model, reference = run("zero", storage, algo)
    optimizer.on_update = fail
    for step in range(8):
        if step % 2:
            with pytest.raises(Fault):
                train(model, optimizer, 1, first=step)
        else:
            train(model, optimizer, 1, first=step)
        train(reference_model, reference, 1, first=step)
        assert_same(state(model, optimizer), state(reference_model, reference))
        assert_zeros(optimizer)
    assert optimizer.steps == 8 and optimizer.updates == 4
    with pytest.raises(Fault):
        sparse_by_hand = run("zero", storage, "set")[1]
        sparse_by_hand.on_update = fail
        sparse_by_hand.update_topology()


def test_an_exception_in_a_score_of_the_users_leaves_the_topology_whole():
    from sparseopt import Algorithm
    from sparseopt.schedules import Constant
    from sparseopt.scores import score

    broken = []

    @score()
    def worth(layer, context):
        if broken and layer.name == "2.weight":
            raise Fault
        return layer.weight.detach().abs()

    model = mlp()
    optimizer = sparse(
        model, MuonLike, "set",
    )  # fmt: skip
    algorithm = Algorithm(0.7, drop=worth, drop_fraction=Constant(0.3))
    optimizer = type(optimizer)(
        SGD(model.parameters(), lr=0.1), algorithm, sparsity=0.7, model=model, update_every=2
    )
    train(model, optimizer, 3)
    masks = copy.deepcopy(optimizer.masks)
    broken.append(1)
    with pytest.raises(Fault):
        train(model, optimizer, 1, first=3)
    assert_same(dict(optimizer.masks), masks)
    assert_zeros(optimizer)
    broken.clear()
    train(model, optimizer, 4, first=4)
    assert_zeros(optimizer)
    assert optimizer.updates == 3


# --- a killed process -----------------------------------------------------------------------------

LAST = 30


def script(folder: Path, last: int) -> tuple:
    """Train from the last checkpoint in the folder, if there is one, saving every 4 steps."""
    model = mlp(dtype=torch.float32)
    optimizer = sparse(
        model, inner_named("adamw"), "rigl", seed=os.getpid() % 97 if folder else 1,
        grown_state="per_element_step", total_steps=None,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, LAST)
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    file = folder / "checkpoint.pt"
    if file.exists():
        for name, saved in torch.load(file, weights_only=True).items():
            parts[name].load_state_dict(saved)
    while optimizer.steps < last:
        train(model, optimizer, 1, first=optimizer.steps)
        scheduler.step()
        if optimizer.steps % 4 == 0:
            torch.save({n: p.state_dict() for n, p in parts.items()}, folder / "new.pt")
            os.replace(folder / "new.pt", file)
        print(optimizer.steps, flush=True)
    return model, optimizer


def first_checkpoint(folder: Path) -> None:
    """So that all runs start from one topology."""
    model = mlp(dtype=torch.float32)
    optimizer = sparse(
        model, inner_named("adamw"), "rigl", seed=1, grown_state="per_element_step",
        total_steps=None,
    )  # fmt: skip
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, LAST)
    saved = [model.state_dict(), optimizer.state_dict(), scheduler.state_dict()]
    torch.save(dict(zip(("model", "optimizer", "scheduler"), saved, strict=True)),
               folder / "checkpoint.pt")  # fmt: skip


def run_and_kill(folder: Path, after: int) -> int:
    """Start the script in a process of its own and kill it once it has taken some steps."""
    tests = Path(__file__).resolve().parent
    path = os.pathsep.join([str(tests.parent), str(tests)])
    child = subprocess.Popen(
        [sys.executable, __file__, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    step = 0
    with child:
        for line in child.stdout:
            step = int(line)
            if step >= after:
                child.send_signal(signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL
    return step


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_process_killed_at_a_random_step_resumes_bit_equal(tmp_path, capsys):
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    for name in ("whole", "killed"):
        first_checkpoint(tmp_path / name)
    expected = state(*script(tmp_path / "whole", LAST))
    chance = random.Random()  # another step every time
    reached = 0
    for _ in range(2):
        reached = run_and_kill(tmp_path / "killed", reached + chance.randint(1, 9))
    assert_same(state(*script(tmp_path / "killed", LAST)), expected)


if __name__ == "__main__":
    torch.set_num_threads(1)
    script(Path(sys.argv[1]), 10**9)
