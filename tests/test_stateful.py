"""Any sequence of what training scripts do keeps zeros, counts and the count of steps."""

import copy
import io
import math
import pickle

import pytest
import torch
from common import Recipe, assert_same, assert_zeros, inner_named, mlp, rng
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from sparseopt import SparseOptimizer

pytestmark = pytest.mark.filterwarnings(
    "ignore:the density leaves no weight to:UserWarning",
    "ignore:state .* is not known to hold one value per weight:UserWarning",
)

RECIPES = [
    Recipe("static"),
    Recipe("set"),
    Recipe("set", {"signed": True, "regrow_same": "reset"}),
    Recipe("set", {"scope": "global"}, layers_keep_counts=False),
    Recipe("rigl"),
    Recipe("rigl", {"regrow_same": "forbid", "grown_state": "mean"}),
    Recipe("rigl", {"skip_step_on_update": True}),
]
INNERS = ["sgd", "sgd-nesterov", "adamw", "adamw-fused", "rprop", "muon-like"]


class Net(nn.Module):
    """Networks in parallel, of which the first ``used`` are trained."""

    def __init__(self, seed: int):
        super().__init__()
        sizes = [(4, 5 + number, 3) for number in range(3)]
        self.parts = nn.ModuleList(
            [mlp(each, seed=seed + i, dtype=torch.float32) for i, each in enumerate(sizes)]
        )
        self.used = 1

    def forward(self, inputs):
        return sum(one(inputs) for one in self.parts[: self.used])

    def trained(self):
        return self.parts[: self.used].parameters()


class Training(RuleBasedStateMachine):
    """A training script that does anything at any time, and what must hold all the while."""

    @initialize(
        recipe=st.sampled_from(RECIPES),
        inner=st.sampled_from(INNERS),
        storage=st.sampled_from(["masked", "auto"]),
        sparsity=st.floats(0.1, 0.9),
        every=st.integers(1, 4),
        seed=st.integers(0, 1000),
    )
    def start(self, recipe, inner, storage, sparsity, every, seed):
        self.recipe, self.inner, self.seed = recipe, inner_named(inner), seed
        self.options = {
            "sparsity": sparsity, "update_every": every, "storage": storage, **recipe.options,
        }  # fmt: skip
        self.model, self.optimizer = self.build(1, seed)
        self.steps = self.updates = self.forced = 0
        self.time = 0
        self.dirty = False
        self.counts = self.now()

    def build(self, used, seed):
        model = Net(seed)
        optimizer = SparseOptimizer(
            self.inner(model.trained()), self.recipe.algo, model=model, seed=seed, **self.options
        )
        while model.used < used:
            self.add(model, optimizer)
        return model, optimizer

    def add(self, model, optimizer):
        optimizer.add_param_group({"params": list(model.parts[model.used].parameters())})
        model.used += 1

    def now(self):
        return [layer.nnz for layer in self.optimizer.layers]

    def loss(self):
        self.time += 1
        inputs = torch.randn(4, 4, generator=rng(self.time))
        return (self.model(inputs) - torch.randn(4, 3, generator=rng(-self.time))).square().mean()

    def stepped(self):
        """The optimizer took a step: what it must have done."""
        self.steps += 1
        self.dirty = False
        due = self.steps % self.options["update_every"] == 0 or self.forced
        if (due and self.recipe.algo != "static") or self.forced:
            self.updates += 1
            self.forced = 0

    # --- what scripts do --------------------------------------------------------------------------

    @rule()
    def step(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        self.stepped()

    @rule(parts=st.integers(2, 4), clip=st.sampled_from([None, 0.1]))
    def accumulate(self, parts, clip):
        self.optimizer.zero_grad(set_to_none=False)
        for _ in range(parts):
            (self.loss() / parts).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), clip)
        self.optimizer.step()
        self.stepped()

    @rule()
    def closure(self):
        def closure():
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            return loss

        loss = self.optimizer.step(closure)
        skips = self.recipe.options.get("skip_step_on_update", False)
        assert skips or torch.is_tensor(loss)
        self.stepped()

    @rule(bad=st.booleans())
    def scaled(self, bad):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        self.optimizer.zero_grad()
        scaler.scale(self.loss()).backward()
        if bad:
            next(self.model.parameters()).grad.fill_(math.inf)
        before = copy.deepcopy(self.state())
        scaler.step(self.optimizer)
        scaler.update()
        if bad:
            assert_same(self.state(), before)
        else:
            self.stepped()
        self.optimizer.zero_grad()

    @rule()
    def zero_gradients(self):
        self.optimizer.zero_grad()
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        self.optimizer.step()
        self.stepped()

    @rule()
    def step_without_gradients(self):
        self.optimizer.zero_grad()
        self.optimizer.step()
        self.stepped()

    @rule(how=st.sampled_from(["pickle", "deepcopy"]))
    def go_on_with_a_copy(self, how):
        pair = (self.model, self.optimizer)
        old = copy.deepcopy(self.state())
        twin = copy.deepcopy(pair) if how == "deepcopy" else pickle.loads(pickle.dumps(pair))
        self.model, self.optimizer = twin
        assert_same(self.state(), old)

    @rule(into=st.sampled_from(["itself", "fresh"]), seed=st.integers(0, 1000))
    def save_and_load(self, into, seed):
        self.optimizer.zero_grad()
        old = copy.deepcopy(self.state())
        file = io.BytesIO()
        torch.save([self.model.state_dict(), self.optimizer.state_dict()], file)
        file.seek(0)
        weights, saved = torch.load(file, weights_only=True)
        if into == "fresh":
            self.model, self.optimizer = self.build(self.model.used, seed)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(saved)
        if not self.dirty:
            assert_same(self.state(), old)
        # before the first step the weights may be a checkpoint's whose masks are still to come:
        # Accelerate loads our own state dict then, and must not zero them
        self.dirty = self.dirty and self.optimizer.steps == 0

    @precondition(lambda self: self.model.used < 3)
    @rule()
    def add_a_group(self):
        self.add(self.model, self.optimizer)
        if self.recipe.layers_keep_counts:
            assert self.now()[: len(self.counts)] == self.counts
        self.counts = self.now()

    @rule()
    def update_by_hand(self):
        before = len(self.optimizer.history)
        record = self.optimizer.update_topology()
        if record is None:
            self.forced = 1
        else:
            assert len(self.optimizer.history) == before + 1
            self.updates += 1
            self.forced = 0

    @rule(seed=st.integers(0, 1000), then=st.booleans())
    def load_the_model_late(self, seed, then):
        self.model.load_state_dict(Net(seed).state_dict())
        self.dirty = True
        if then:
            self.optimizer.apply_masks()
            self.dirty = False

    @rule()
    def schedule(self):
        scheduler = ExponentialLR(self.optimizer, 0.9)
        self.step()
        scheduler.step()
        for group in self.optimizer.param_groups:
            group.pop("initial_lr")
        del self.optimizer.__dict__["step"]

    @rule()
    def zero_grad_of_the_model(self):
        self.model.zero_grad()

    @rule()
    def backward_without_step(self):
        self.loss().backward()

    # --- what must hold ---------------------------------------------------------------------------

    def state(self):
        return {
            "weights": dict(self.model.state_dict()),
            "masks": dict(self.optimizer.masks),
            "optimizer": self.optimizer.state_dict(),
            "history": [dict(record) for record in self.optimizer.history],
        }

    @invariant()
    def inactive_weights_are_zero(self):
        if not self.dirty:
            assert_zeros(self.optimizer)

    @invariant()
    def counts_are_kept(self):
        if self.recipe.layers_keep_counts:
            assert self.now() == self.counts
        assert sum(self.now()) == sum(self.counts) and min(self.now()) >= 1

    @invariant()
    def steps_and_updates_are_counted(self):
        history = self.optimizer.history
        assert self.optimizer.steps == self.steps
        assert len(history) == self.updates
        assert self.optimizer.updates == sum(not record.skipped for record in history)
        steps = [record.step for record in history]
        assert steps == sorted(steps)

    @invariant()
    def the_groups_hold_the_models_own_parameters(self):
        own = {id(p) for p in self.model.trained()}
        assert {id(p) for group in self.optimizer.param_groups for p in group["params"]} == own
        layers = self.optimizer.layers
        assert [layer.name for layer in layers] == [
            name for name, p in self.model.named_parameters() if p.ndim == 2 and id(p) in own
        ]
        assert all(id(layer.weight) in own for layer in layers)

    @invariant()
    def weights_are_finite_and_gradients_masked(self):
        for layer in self.optimizer.layers:
            assert layer.weight.isfinite().all()
            if layer.weight.grad is not None:
                assert (layer.weight.grad[~layer.mask] == 0).all()


TestTraining = Training.TestCase
TestTraining.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
