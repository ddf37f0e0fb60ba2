"""Lightning, Fabric, Accelerate and the Hugging Face Trainer: steps, zeros, masks, resume."""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from common import assert_same, assert_zeros
from torch import nn
from torch.nn.functional import mse_loss
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import SparseOptimizer, integrations

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the trainers' own
]
stack = pytest.mark.stack


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def data(number: int = 32, size: int = 4) -> DataLoader[Any]:
    inputs = torch.randn(number, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(inputs, inputs[:, :3].sin()), batch_size=size)


def made(model: nn.Module, algo: str = "rigl", inner: Any = None, **options: Any) -> Any:
    inner = inner or AdamW(model.parameters(), lr=0.01)
    given = {"sparsity": 0.7, "total_steps": 40, "update_every": 3, "model": model}
    return SparseOptimizer(inner, algo, **given | options)


# --- Lightning ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pl() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("lightning.pytorch")


@pytest.fixture(scope="module")
def kind(pl: Any) -> type:
    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self, manual: bool = False, seed: int = 0) -> None:
            super().__init__()
            self.automatic_optimization = not manual
            self.net, self.seed = network(), seed

        def training_step(self, batch: Any, index: int) -> Any:
            loss = mse_loss(self.net(batch[0]), batch[1])
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = made(self, seed=self.seed)
            scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
            return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return Module


def trainer(pl: Any, folder: Any, **options: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    given = {"max_epochs": 2, "accelerator": "cpu", "default_root_dir": folder, **quiet}
    return pl.Trainer(**given | options)


@pytest.mark.parametrize(
    ("options", "manual", "steps"),
    [
        pytest.param({}, False, 16, id="automatic"),
        pytest.param(
            {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
            False,
            8,
            marks=[stack("Lightning", "accumulation"), stack("Lightning", "clipping")],
        ),
        pytest.param({"precision": "bf16-mixed"}, False, 16, marks=stack("Lightning", "bf16")),
        pytest.param({}, True, 16, marks=stack("Lightning", "manual optimization")),
    ],
)
def test_lightning_steps_are_counted_and_zeros_kept(pl, kind, options, manual, steps, tmp_path):
    fit = trainer(pl, tmp_path, enable_checkpointing=False, **options)
    fit.fit(kind(manual), data())
    optimizer = fit.optimizers[0]
    assert optimizer.steps == fit.global_step == steps
    assert optimizer.updates == (steps - 1) // 3
    assert_zeros(optimizer)


@stack("Lightning", "same training")
def test_lightning_trains_as_a_loop_by_hand_does(pl, kind, tmp_path):
    fit = trainer(pl, tmp_path, enable_checkpointing=False, accumulate_grad_batches=2,
                  gradient_clip_val=0.1)  # fmt: skip
    module = kind()
    fit.fit(module, data())
    model = network()
    optimizer = made(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(2):
        for number, (inputs, targets) in enumerate(data()):
            (mse_loss(model(inputs), targets) / 2).backward()
            if number % 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
        scheduler.step()
    assert_same(list(fit.optimizers[0].masks.values()), list(optimizer.masks.values()))
    assert_same(list(module.net.parameters()), list(model.parameters()))


@stack("Lightning", "resume")
def test_lightning_resumes_where_it_was(pl, kind, tmp_path):
    whole, half = kind(), kind()
    fit = trainer(pl, tmp_path, max_epochs=3, enable_checkpointing=False)
    fit.fit(whole, data())
    first = trainer(pl, tmp_path, max_epochs=2)
    first.fit(half, data())
    first.save_checkpoint(tmp_path / "half.ckpt")
    again = kind(seed=7)
    second = trainer(pl, tmp_path, max_epochs=3, enable_checkpointing=False)
    second.fit(again, data(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    assert second.optimizers[0].steps == second.global_step == 24
    assert_same(second.optimizers[0].masks, fit.optimizers[0].masks)
    assert_same(list(again.parameters()), list(whole.parameters()))
    assert second.optimizers[0].history == fit.optimizers[0].history


@stack("Lightning", "logging callback")
def test_the_lightning_callback_logs_sparsity_churn_and_exploration(pl, kind, tmp_path):
    callback = integrations.LightningCallback()
    fit = trainer(pl, tmp_path, callbacks=[callback], enable_checkpointing=False)
    fit.fit(kind(), data())
    optimizer = fit.optimizers[0]
    last = optimizer.history[-1]
    assert fit.callback_metrics["sparse/sparsity"] == pytest.approx(optimizer.sparsity)
    assert fit.callback_metrics["sparse/churn"] == pytest.approx(
        (last.grown - last.regrown) / last.nnz
    )
    assert fit.callback_metrics["sparse/exploration_rate"] == pytest.approx(last.exploration_rate)
    assert fit.callback_metrics["sparse/exploration_rate"] > optimizer.density


def test_several_optimizers_are_logged_apart(pl):
    dense, one, other = network(), network(), network()
    optimizers = [made(one), SGD(dense.parameters(), lr=0.1), made(other, sparsity=0.5)]
    logged: dict[str, float] = {}
    callback = integrations.LightningCallback()
    callback.on_train_batch_end(
        SimpleNamespace(optimizers=optimizers), SimpleNamespace(log_dict=logged.update)
    )
    assert logged["sparse/0/sparsity"] == optimizers[0].sparsity
    assert logged["sparse/1/sparsity"] == optimizers[2].sparsity
    assert "sparse/sparsity" not in logged


@stack("Lightning", "averages")
def test_an_average_that_lightning_puts_in_place_is_sparse_in_the_end(pl, kind, tmp_path):
    averaging = getattr(pl.callbacks, "EMAWeightAveraging", None)
    if averaging is None:
        pytest.skip("this lightning has no EMAWeightAveraging")
    callbacks = [averaging(decay=0.5), integrations.LightningCallback()]
    fit = trainer(pl, tmp_path, callbacks=callbacks, enable_checkpointing=False)
    fit.fit(kind(), data())
    assert_zeros(fit.optimizers[0])


@stack("Fabric", "resume")
@stack("Fabric", "clipping")
def test_fabric_saves_and_loads(pl, tmp_path):
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator="cpu")

    def start(seed: int) -> tuple[Any, Any]:
        model = network()
        return fabric.setup(model, made(model, seed=seed))

    def train(model: Any, optimizer: Any, batches: int) -> None:
        for _, (inputs, targets) in zip(range(batches), data(), strict=False):
            optimizer.zero_grad()
            fabric.backward(mse_loss(model(inputs), targets))
            fabric.clip_gradients(model, optimizer, max_norm=0.1)
            optimizer.step()

    model, optimizer = start(0)
    train(model, optimizer, 7)
    fabric.save(tmp_path / "saved.ckpt", {"model": model, "optimizer": optimizer})
    other, resumed = start(5)
    fabric.load(tmp_path / "saved.ckpt", {"model": other, "optimizer": resumed})
    train(model, optimizer, 8)
    train(other, resumed, 8)
    inside = integrations.sparse_optimizer(resumed)
    assert inside.steps == 15 and inside.updates == 5
    assert_zeros(inside)
    assert_same(inside.masks, integrations.sparse_optimizer(optimizer).masks)
    assert_same(list(other.parameters()), list(model.parameters()))


# --- Accelerate -----------------------------------------------------------------------------------


@pytest.fixture
def accelerate() -> Any:
    module = pytest.importorskip("accelerate")
    module.state.AcceleratorState._reset_state(True)
    yield module
    module.state.AcceleratorState._reset_state(True)


def run(accelerator: Any, model: Any, optimizer: Any, loader: Any) -> None:
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mse_loss(model(inputs), targets))
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()


@stack("Accelerate", "accumulation")
@stack("Accelerate", "scheduler")
def test_accelerate_counts_steps_not_batches_and_follows_the_schedule(accelerate):
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = network()
    sparse = made(model)
    scheduler = torch.optim.lr_scheduler.StepLR(sparse, 2, gamma=0.1)
    model, optimizer, loader, scheduler = accelerator.prepare(model, sparse, data(), scheduler)
    assert sparse.steps == 0 and not sparse.history
    for inputs, targets in loader:
        with accelerator.accumulate(model):
            accelerator.backward(mse_loss(model(inputs), targets))
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert sparse.steps == 4 and sparse.updates == 1
    assert sparse.inner.param_groups[0]["lr"] == pytest.approx(0.01 * 0.1**2)
    assert_zeros(sparse)


@stack("Accelerate", "resume")
@stack("Accelerate", "clipping")
def test_accelerate_saves_and_loads(accelerate, tmp_path):
    def start(seed: int) -> tuple[Any, ...]:
        model = network()
        sparse = made(model, seed=seed)
        return sparse, *accelerator.prepare(model, sparse, data())

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    sparse, *parts = start(0)
    run(accelerator, *parts)
    accelerator.save_state(tmp_path)
    run(accelerator, *parts)
    accelerator.free_memory()
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    resumed, *again = start(5)
    accelerator.load_state(tmp_path)
    assert resumed.steps == 4
    run(accelerator, *again)
    assert resumed.steps == sparse.steps == 8
    assert_same(resumed.masks, sparse.masks)
    assert_same(list(again[0].parameters()), list(parts[0].parameters()))


def test_the_optimizer_inside_a_prepared_one_is_found(accelerate):
    accelerator = accelerate.Accelerator(cpu=True)
    model = network()
    sparse = made(model, inner=SGD(model.parameters(), lr=0.1))
    assert integrations.sparse_optimizer(accelerator.prepare(sparse)) is sparse
    assert integrations.sparse_optimizer(accelerator.prepare(SGD(network().parameters()))) is None


# --- Hugging Face Trainer -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert() -> Any:
    """The example's Trainer: a tiny BERT from a configuration, accumulation over 2 batches."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return load_example("with_hf_trainer")


def load_example(name: str) -> Any:
    import importlib.util
    from pathlib import Path

    path = Path(__file__).resolve().parents[1] / "examples" / "integrations" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@stack("Hugging Face Trainer", "resume")
@stack("Hugging Face Trainer", "accumulation")
@stack("Hugging Face Trainer", "logging callback")
def test_the_trainer_resumes_with_the_same_masks_and_counts(bert, tmp_path):
    whole = bert.main(str(tmp_path))
    optimizer = integrations.sparse_optimizer(whole.optimizer)
    assert optimizer.steps == whole.state.global_step == 12
    assert optimizer.updates > 2
    assert_zeros(optimizer)
    logged = [entry for entry in whole.state.log_history if "loss" in entry]
    assert logged[-1]["sparse/sparsity"] == optimizer.sparsity
    assert {"sparse/churn", "sparse/exploration_rate"} <= set(logged[-1])

    import shutil

    shutil.rmtree(tmp_path / "checkpoint-12")
    again = bert.main(str(tmp_path), resume=True)
    resumed = integrations.sparse_optimizer(again.optimizer)
    assert resumed.steps == again.state.global_step == 12
    assert_same(resumed.masks, optimizer.masks)
    assert resumed.history == optimizer.history
    assert_same(dict(again.model.state_dict()), dict(whole.model.state_dict()))


# --- the callbacks without their trainers ---------------------------------------------------------


def test_a_callback_without_its_trainer_says_what_to_install(monkeypatch):
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(integrations.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install sparseopt\[integrations\]"):
        integrations._lightning_callback()


def test_importing_the_package_imports_no_trainer():
    import subprocess
    import sys

    code = (
        "import sys, sparseopt, sparseopt.integrations; "
        "print([n for n in ('lightning', 'transformers', 'accelerate') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
