"""Around and inside the wrapper: the proxies of Lightning, and torch.compile."""

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from common import (
    UNKNOWN_STATE,
    assert_same,
    assert_zeros,
    loss_of,
    mlp,
    sparse,
    train,
)
from torch import nn
from torch.optim import SGD, AdamW

pytestmark = pytest.mark.filterwarnings(UNKNOWN_STATE)


def importorskip(name):
    """Other people's packages may warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


# --- proxies (row 16) -----------------------------------------------------------------------------


def lightning_proxy(optimizer):
    importorskip("lightning.pytorch")
    from lightning.pytorch.core.optimizer import LightningOptimizer

    class Strategy:
        def optimizer_step(self, optimizer, closure, **options):
            return optimizer.step(closure=closure)

    proxy = LightningOptimizer(optimizer)
    proxy._strategy = Strategy()
    return proxy


def fabric_proxy(optimizer):
    importorskip("lightning.fabric")
    from lightning.fabric.strategies import SingleDeviceStrategy
    from lightning.fabric.wrappers import _FabricOptimizer

    return _FabricOptimizer(optimizer, SingleDeviceStrategy(device=torch.device("cpu")))


@pytest.mark.parametrize("proxy", [lightning_proxy, fabric_proxy])
def test_setters_and_methods_called_through_a_proxy_reach_the_real_object(proxy):
    model = mlp()
    real = sparse(model, SGD(model.parameters(), lr=0.1, momentum=0.9), "rigl")
    seen = []
    stand_in = proxy(real)
    stand_in.update_every = 7
    stand_in.total_steps = 99
    stand_in.on_update = seen.append
    assert (real.update_every, real.total_steps, real.on_update) == (7, 99, seen.append)
    stand_in.param_groups[0]["lr"] = 0.25
    assert real.inner.param_groups[0]["lr"] == 0.25
    loss_of(model, 0).backward()
    real.step()
    assert stand_in.steps == real.steps == 1
    assert stand_in.update_topology() is None
    train(model, real, 1, first=1)
    assert real.updates == stand_in.updates == 1 and len(seen) == 1
    stand_in.apply_masks()
    stand_in.zero_grad()
    saved = copy.deepcopy(stand_in.state_dict())
    train(model, real, 2, first=2)
    stand_in.load_state_dict(saved)
    assert real.steps == stand_in.steps == 2
    extra = nn.Parameter(torch.randn(5, 6, dtype=torch.float64))
    stand_in.add_param_group({"params": [extra]})
    assert len(real.layers) == len(stand_in.layers) == 3 and (extra == 0).any()
    assert real.summary() == stand_in.summary() and stand_in.masks.keys() == real.masks.keys()
    for name in ("_run", "_storage", "_hooks", "_pools", "_layers"):
        assert name not in vars(stand_in)


@pytest.mark.parametrize("proxy", [lightning_proxy, fabric_proxy])
@pytest.mark.parametrize("storage", ["masked", "auto"])
def test_steps_through_a_proxy_equal_steps_without(proxy, storage):
    model, other = mlp(), mlp()
    one = sparse(model, AdamW(model.parameters(), lr=0.01), "rigl", storage=storage)
    two = sparse(other, AdamW(other.parameters(), lr=0.01), "rigl", storage=storage)
    train(model, one, 7)
    train(other, proxy(two), 7, closure=proxy is lightning_proxy)
    assert_same(dict(model.state_dict()), dict(other.state_dict()))
    assert_same(dict(one.masks), dict(two.masks))
    assert two.steps == 7 and two.updates == one.updates


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("clip, accumulate", [(None, 1), (0.1, 1), (0.1, 2)])
def test_lightning_trainer_counts_its_global_steps_and_keeps_zeros(tmp_path, clip, accumulate):
    lightning = importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp(dtype=torch.float32)

        def training_step(self, step, index):
            return loss_of(self.net, int(step[0]))

        def configure_optimizers(self):
            self.sparse = sparse(self, SGD(self.parameters(), lr=0.1, momentum=0.9), "rigl")
            return self.sparse

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        gradient_clip_val=clip, accumulate_grad_batches=accumulate,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.arange(16)))
    assert module.sparse.steps == trainer.global_step == 16 // accumulate
    assert module.sparse.updates == module.sparse.steps // 3
    assert_zeros(module.sparse)


# --- torch.compile (row 17) -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("storage", ["masked", "compact", "auto"])
@pytest.mark.parametrize("algo", ["static", "set", "rigl"])
def test_a_compiled_step_makes_at_most_two_graphs_in_30_steps(algo, storage):
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model, other = mlp(), mlp()
    lr = torch.tensor(0.01)
    optimizer = sparse(model, AdamW(model.parameters(), lr=lr), algo, storage=storage)
    eager = sparse(other, AdamW(other.parameters(), lr=lr.clone()), algo, storage=storage)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    its_scheduler = torch.optim.lr_scheduler.ExponentialLR(eager, 0.9)
    addresses = [mask.data_ptr() for mask in optimizer.masks.values()]
    step = torch.compile(optimizer.step, backend=counting)
    for number in range(30):
        optimizer.zero_grad()
        loss_of(model, number).backward()
        step()
        scheduler.step()
        train(other, eager, 1, first=number)
        its_scheduler.step()
        assert_zeros(optimizer)
    assert [mask.data_ptr() for mask in optimizer.masks.values()] == addresses
    assert 1 <= len(graphs) <= 2
    assert optimizer.steps == 30
    assert_same(dict(optimizer.masks), dict(eager.masks))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        # compiled, torch counts steps in float32 and corrects the bias with that
        assert torch.allclose(p, q, rtol=0, atol=1e-6)
    torch._dynamo.reset()


@pytest.mark.stack("torch.compile", "a whole training step")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "how", [{"storage": "masked"}, {"storage": "compact"}, {"compute": "sparse"}], ids=str
)
@pytest.mark.parametrize("algo", ["set", "rigl"])
@pytest.mark.parametrize("width", [20, 100])  # compact storage watches weights of 8,192 entries
def test_a_training_step_may_be_compiled_as_a_whole(algo, how, width):
    if "compute" in how and not torch.backends.mkl.is_available():
        pytest.skip("needs MKL")
    torch._dynamo.reset()
    ends = []
    for compiled in (False, True):
        model = mlp((6, width, width, 5))
        optimizer = sparse(model, SGD(model.parameters(), lr=0.1), algo, sparsity=0.9, **how)

        def step(number, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss_of(model, number).backward()
            optimizer.step()

        step = torch.compile(step, backend="aot_eager", dynamic=True) if compiled else step
        for number in range(8):
            step(number)
        assert optimizer.updates == 2
        ends.append((model.state_dict(), dict(optimizer.masks)))
    (weights, masks), (others, their_masks) = ends
    assert_same(masks, their_masks)
    for name, weight in weights.items():  # compiled products may be rounded otherwise
        torch.testing.assert_close(weight, others[name], rtol=0, atol=1e-12)
    torch._dynamo.reset()


FIRST_COMPILED = """
import torch
from sparseopt import SparseOptimizer

model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Linear(100, 100))
sgd = torch.optim.SGD(model.parameters(), lr=0.1)
optimizer = SparseOptimizer(sgd, sparsity=0.9, model=model, storage="compact", update_every=2)

def step():
    optimizer.zero_grad()
    model(torch.ones(4, 100)).sum().backward()
    optimizer.step()

step()  # from now on weights are watched
compiled = torch.compile(step, backend="aot_eager")
for _ in range(4):
    compiled()
print(optimizer.updates)
"""


def test_the_first_compilation_of_a_process_may_be_in_a_backward_pass():
    """torch tells us of it, so that weights become ordinary, while it holds a lock."""
    command = [sys.executable, "-c", FIRST_COMPILED]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.split() == ["2"]


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_like_the_model():
    torch._dynamo.reset()
    model, other = mlp(), mlp()
    compiled = torch.compile(other, backend="aot_eager")
    compiled.input_shape = other.input_shape
    one = sparse(model, SGD(model.parameters(), lr=0.1), "rigl")
    two = sparse(compiled, SGD(compiled.parameters(), lr=0.1), "rigl")
    train(model, one, 7)
    train(compiled, two, 7)
    assert_same(dict(one.masks), dict(two.masks))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-12)
    torch._dynamo.reset()
