"""Counting takes what a forward pass takes, refuses what cannot be counted, leaves no trace."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sparseopt import flops

pytest.importorskip("fvcore")


# --- the model is left as it was ------------------------------------------------------------------


def stateful():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 2),
        nn.BatchNorm1d(2),
    )  # fmt: skip
    model.train()
    model[1].eval()  # a frozen norm
    return model


def test_state_flags_gradients_and_random_streams_are_untouched():
    model, x = stateful(), torch.randn(1, 3, 8, 8)  # one sample: batch norm would fail in training
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    stream = torch.get_rng_state()
    flops.count(model, x)
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(p.grad is None for p in model.parameters()) and torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_the_forward_pass_draws_or_writes_is_undone():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            self.calls += 1
            return self.layer(x + torch.rand_like(x))

    model, stream = Noisy(), torch.get_rng_state()
    flops.count(model, torch.zeros(1, 4))
    assert model.calls == 0 and torch.equal(torch.get_rng_state(), stream)


def test_a_failing_forward_pass_leaves_the_model_as_it_was():
    model = stateful()
    with pytest.raises(RuntimeError):
        flops.count(model, torch.zeros(1, 3, 9, 9))
    assert model.training and not model[1].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_hooks_of_the_user_stay():
    model = stateful()
    model[0].register_forward_hook(lambda *_: None)
    flops.count(model, torch.zeros(1, 3, 8, 8))
    assert len(model[0]._forward_hooks) == 1 and not model[1]._forward_hooks


def test_no_warning_leaks_from_a_fresh_import(root):
    """fvcore warns on import, which is an error under -W error."""
    code = (
        "import torch, sparseopt.flops as f; "
        "print(f.count(torch.nn.Linear(3, 2), torch.zeros(1, 3)).flops)"
    )
    result = subprocess.run(
        # older torch leaves a temporary folder to be cleaned up at exit
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-c", code],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert (result.stdout.strip(), result.stderr) == ("12", "")


def test_the_filters_of_the_caller_are_kept():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flops.count(nn.Linear(3, 2), torch.zeros(1, 3))
        with pytest.raises(UserWarning):
            warnings.warn("still an error", UserWarning, stacklevel=1)


# --- bad input ------------------------------------------------------------------------------------


def test_a_model_on_meta_is_refused():
    with pytest.raises(ValueError, match=r"'weight' is on the meta device.*to_empty"):
        flops.count(nn.Linear(3, 2, device="meta"), torch.zeros(1, 3))


def test_a_lazy_model_is_refused():
    with pytest.raises(ValueError, match="has no shape yet"):
        flops.count(nn.LazyLinear(2), torch.zeros(1, 3))


@pytest.mark.parametrize("inputs", [(), {}, 5, None, torch.tensor(1.0), torch.zeros(0, 3)])
def test_inputs_without_samples_are_refused(inputs):
    with pytest.raises(ValueError, match="inputs"):
        flops.count(nn.Linear(3, 2), inputs)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5])
def test_a_batch_size_that_is_no_number_of_samples_is_refused(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size}"):
        flops.count(nn.Linear(3, 2), torch.zeros(4, 3), batch_size=batch_size)


def test_something_else_than_a_module_is_refused():
    with pytest.raises(TypeError, match="model='resnet18' must be a torch.nn.Module"):
        flops.count("resnet18", torch.zeros(1, 3))


def test_missing_fvcore_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fvcore.nn", None)
    with pytest.raises(ImportError, match=r"pip install sparseopt\[flops\]"):
        flops.count(nn.Linear(3, 2), torch.zeros(1, 3))


# --- inputs, outputs, wrappers --------------------------------------------------------------------


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, *, data, mask=None, double=False):
        y = self.layer(data) * (2 if double else 1)
        return {"logits": y if mask is None else y * mask, "hidden": [y, None]}


def test_inputs_may_be_keywords_and_outputs_nested():
    inputs = {"data": torch.zeros(2, 5, 4), "mask": None, "double": True}
    cost = flops.count(Keywords(), inputs)
    assert cost.macs["linear"] == 5 * 12 and list(cost.modules) == ["layer"]


def test_inputs_may_be_positional_arguments():
    cost = flops.count(nn.Bilinear(2, 3, 4), (torch.zeros(2, 2), torch.zeros(2, 3)))
    assert cost.unsupported == {"bilinear": 1}


def test_wrappers_are_taken_off():
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.zeros(1, 4)
    expected = flops.count(model, x)
    assert flops.count(torch.compile(model), x) == expected
    assert flops.count(nn.DataParallel(model), x) == expected


def test_a_compiled_part_is_counted():
    model = nn.Sequential(torch.compile(nn.Linear(4, 3)), nn.Linear(3, 2))
    cost = flops.count(model, torch.zeros(1, 4))
    assert {name: w.macs for name, w in cost.weights.items()} == {"0.weight": 12, "1.weight": 6}
    half = {name: 0.5 for name, _ in model.named_parameters() if "weight" in name}
    assert "0._orig_mod.weight" in half
    assert flops.inference_flops(cost, half) == cost.flops / 2
    model.compile()
    assert flops.count(model, torch.zeros(1, 4)) == cost
    assert hasattr(model[0], "_orig_mod") and model._compiled_call_impl is not None
