"""Counting one forward pass: exact, complete, and without a trace on the model."""

import functools
import importlib.util
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from sparseopt import flops

pytest.importorskip("fvcore")
torchvision = pytest.importorskip("torchvision")

EXAMPLES = Path(__file__).parents[1] / "examples"
spec = importlib.util.spec_from_file_location("example_models", EXAMPLES / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)


def efficientnet():
    return torchvision.models.efficientnet_b0(num_classes=200)


NETWORKS = {
    "vgg16": (models.vgg16, (3, 32, 32)),
    "resnet34": (models.resnet34, (3, 32, 32)),
    "efficientnet_b0": (efficientnet, (3, 64, 64)),
    "resnet50": (torchvision.models.resnet50, (3, 224, 224)),
    "deit_base": (models.deit_base, (3, 224, 224)),
    "r3d_18": (torchvision.models.video.r3d_18, (3, 8, 112, 112)),
    "resnet50_3d": (models.resnet50_3d, (3, 8, 112, 112)),
}


@functools.cache
def dense_cost(name):
    make, shape = NETWORKS[name]
    return flops.count(make(), torch.zeros(1, *shape))


every_network = pytest.mark.parametrize("name", NETWORKS)


# --- figures --------------------------------------------------------------------------------------

# conv, linear, batch_norm, adaptive_avg_pool2d, parameters, first convolution, entries of weights
EXACT = {
    "vgg16": (313_196_544, 529_408, 555_008, 0, 15_255_626, 1_769_472, 15_239_872),
    "resnet34": (1_159_397_376, 51_200, 2_048_000, 8_192, 21_328_292, 1_769_472, 21_311_168),
    "efficientnet_b0": (31_966_592, 256_000, 1_100_032, 193_408, 4_263_748, 884_736, 4_212_192),
}


@pytest.mark.parametrize("name", EXACT)
def test_counts_of_the_tables_networks_are_exact(name):
    conv, linear, norm, pool, parameters, first, entries = EXACT[name]
    cost = dense_cost(name)
    assert cost.macs == {"conv": conv, "linear": linear, "attention": 0}
    assert cost.operators.get("batch_norm") == norm == cost.other["norm"]
    assert cost.operators.get("adaptive_avg_pool2d", 0) == pool == cost.other.get("pool", 0)
    assert cost.parameters == parameters
    weights = list(cost.weights.values())
    assert weights[0].macs == first
    assert sum(weight.numel for weight in weights) == entries
    assert cost.flops == 2 * (conv + linear) + norm + pool


@every_network
def test_twice_the_multiply_adds_equals_the_flop_counter_of_torch(name):
    make, shape = NETWORKS[name]
    with torch.device("meta"):
        model, sample = make().eval(), torch.empty(1, *shape)
    with FlopCounterMode(display=False) as counter:
        model(sample)
    assert 2 * sum(dense_cost(name).macs.values()) == counter.get_total_flops()


@every_network
def test_every_multiply_add_of_convolutions_and_linear_layers_belongs_to_a_weight(name):
    cost = dense_cost(name)
    for kind in ("conv", "linear"):
        owned = [weight.macs for weight in cost.weights.values() if weight.kind == kind]
        assert sum(owned) == cost.macs[kind]


@every_network
def test_rows_add_up_to_the_model(name):
    cost = dense_cost(name)
    rows = cost.modules.values()
    assert sum(row.flops for row in rows) == cost.flops
    assert sum(row.parameters for row in rows) == cost.parameters == sum(cost.sizes.values())


def test_the_split_of_efficientnet():
    cost = dense_cost("efficientnet_b0")
    squeeze = [w for name, w in cost.weights.items() if ".fc1." in name or ".fc2." in name]
    depthwise = [w for w in cost.weights.values() if w.kind == "conv" and w.shape[1] == 1]
    assert (sum(w.macs for w in depthwise), sum(w.numel for w in depthwise)) == (2_818_944, 182_016)
    assert (sum(w.macs for w in squeeze), sum(w.numel for w in squeeze)) == (627_200, 627_200)


def test_deit_counts_its_attention():
    cost = dense_cost("deit_base")
    assert cost.macs["attention"] == 1_430_654_976 // 2
    assert cost.macs["conv"] + cost.macs["linear"] == 115_605_504 + 16_732_895_232


def test_operators_are_what_fvcore_reports():
    from fvcore.nn import FlopCountAnalysis

    model, x = models.resnet34().eval(), torch.zeros(1, 3, 32, 32)
    analysis = FlopCountAnalysis(model, x)
    analysis.unsupported_ops_warnings(False)
    assert flops.count(model, x).operators == dict(analysis.by_operator())


convolutions = st.fixed_dictionaries(
    {
        "kernel_size": st.integers(1, 3),
        "stride": st.integers(1, 2),
        "padding": st.integers(0, 2),
        "dilation": st.integers(1, 2),
        "groups": st.sampled_from([1, 2]),
        "bias": st.booleans(),
    }
)


@settings(max_examples=25)
@given(st.sampled_from([1, 2, 3]), st.booleans(), convolutions, st.integers(1, 3))
def test_any_convolution_equals_the_flop_counter_of_torch(dims, transposed, options, batch):
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dims}d")
    layer, x = kind(2, 4, **options), torch.zeros(batch, 2, *([6] * dims))
    with FlopCounterMode(display=False) as counter:
        layer(x)
    cost = flops.count(layer, x)
    assert 2 * batch * cost.macs["conv"] == counter.get_total_flops()
    assert cost.weights["weight"].macs == cost.macs["conv"]


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name_is_counted(padding):
    layer, x = nn.Conv2d(3, 4, 3, padding=padding), torch.zeros(1, 3, 7, 7)
    pixels = 49 if padding == "same" else 25
    assert flops.count(layer, x).macs["conv"] == pixels * 3 * 4 * 9


class Products(nn.Module):
    """A product of every kind: of activations, and with a parameter that no module owns."""

    def __init__(self, formula):
        super().__init__()
        self.formula = formula
        self.matrix = nn.Parameter(torch.ones(5, 6))
        self.scale = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return self.formula(self, x)


@pytest.mark.parametrize(
    "formula, kind, macs",
    [
        (lambda m, x: x @ m.matrix, "linear", 4 * 5 * 6),
        (lambda m, x: torch.einsum("btc,cd->btd", x, m.matrix), "linear", 4 * 5 * 6),
        (lambda m, x: F.linear(x, (m.matrix * m.scale[:, None]).t()), "linear", 4 * 5 * 6),
        (lambda m, x: torch.addmm(m.scale[:1], x[0], m.matrix), "linear", 2 * 5 * 6),
        (lambda m, x: x @ x.transpose(1, 2), "attention", 4 * 5 * 4),
        (lambda m, x: (x * m.scale) @ x.transpose(1, 2), "attention", 4 * 5 * 4),
        (lambda m, x: torch.bmm(x, x.transpose(1, 2)), "attention", 4 * 5 * 4),
        (lambda m, x: torch.einsum("bic,bjc->bij", x, x), "attention", 4 * 5 * 4),
        (lambda m, x: torch.baddbmm(x, x, x[:, :1].expand(-1, 5, -1)), "attention", 4 * 5 * 5),
        (lambda m, x: x[0] @ x.transpose(1, 2), "attention", 4 * 5 * 4),  # a broadcast factor
        (lambda m, x: F.scaled_dot_product_attention(x, x, x), "attention", 2 * 4 * 4 * 5),
    ],
)
def test_products_are_linear_with_a_weight_and_attention_without(formula, kind, macs):
    x = torch.zeros(2, 4, 5)
    cost = flops.count(Products(formula), x)
    assert cost.macs == {"conv": 0, "linear": 0, "attention": 0, kind: macs}
    assert {name: w.macs for name, w in cost.weights.items()} == (
        {"matrix": macs} if kind == "linear" else {}
    )


def test_attention_of_different_lengths_and_widths():
    def formula(model, x):
        query, key, value = x[:, :3, :4], x[:, :, :4], x
        return F.scaled_dot_product_attention(query, key, value)

    assert flops.count(Products(formula), torch.zeros(2, 7, 5)).macs["attention"] == (
        3 * 7 * 4 + 3 * 7 * 5
    )


# --- nn.MultiheadAttention ------------------------------------------------------------------------


def transformer(frozen=False):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).requires_grad_(not frozen)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_multihead_attention_hides_nothing(frozen, train):
    """Its fused path would: it swallows the projections and the attention."""
    cost = flops.count(transformer(frozen).train(train), torch.zeros(3, 5, 8))
    linear = 5 * (8 * 24 + 8 * 8 + 8 * 16 + 16 * 8)
    assert cost.macs == {"conv": 0, "linear": 2 * linear, "attention": 2 * 2 * 5 * 5 * 8}


def test_every_projection_of_multihead_attention_is_a_weight_of_its_own():
    cost = flops.count(transformer(), torch.zeros(3, 5, 8))
    first = {name: w.macs for name, w in cost.weights.items() if name.startswith("layers.0.self")}
    assert first == {
        "layers.0.self_attn.in_proj_weight": 5 * 8 * 24,
        "layers.0.self_attn.out_proj.weight": 5 * 8 * 8,
    }
    assert cost.modules["layers.0.self_attn.out_proj"].macs == {"linear": 5 * 8 * 8}
    sparse = flops.inference_flops(cost, {"layers.0.self_attn.out_proj.weight": 0.25})
    assert sparse == cost.flops - 2 * 0.75 * 5 * 8 * 8


@pytest.mark.parametrize("need_weights", [False, True])
def test_attention_over_another_sequence_uses_slices_of_one_weight(need_weights):
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x[:, :2], x, x, need_weights=need_weights)[0]

    cost = flops.count(Cross(), torch.zeros(3, 5, 8))
    assert cost.weights["attention.in_proj_weight"].macs == 2 * 8 * 8 + 5 * 8 * 16
    assert cost.macs["attention"] == 2 * 2 * 5 * 8


def test_a_vision_transformer_of_torchvision_costs_what_deit_costs():
    cost = flops.count(torchvision.models.vit_b_16(), torch.zeros(1, 3, 224, 224))
    assert sum(cost.macs.values()) == 115_605_504 + 16_732_895_232 + 715_327_488
    assert len(cost.weights) == 1 + 12 * 4 + 1


# --- nothing left out in silence ------------------------------------------------------------------


def test_operators_without_a_count_are_listed_with_their_calls():
    model = nn.Sequential(
        nn.Conv3d(1, 2, 3), nn.ReLU(), nn.MaxPool3d(2), nn.SiLU(), nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool3d(1),
    )  # fmt: skip
    cost = flops.count(model, torch.zeros(1, 1, 8, 8, 8))
    assert cost.unsupported == {
        "adaptive_avg_pool3d": 1, "max_pool3d": 1, "relu": 1, "relu_": 1, "silu": 1,
    }  # fmt: skip
    assert "Not counted (calls): adaptive_avg_pool3d (1), max_pool3d (1)" in str(cost)


def test_a_recurrent_layer_is_listed():
    cost = flops.count(nn.GRU(3, 4), torch.zeros(5, 1, 3), batch_size=1)
    assert cost.unsupported["gru"] == 1 and cost.flops == 0


def test_a_shape_that_fvcore_refuses_is_listed():
    assert flops.count(nn.LayerNorm(2), torch.zeros(1, 1, 1, 1, 1, 2)).unsupported == {
        "layer_norm": 1
    }


# --- names ----------------------------------------------------------------------------------------


def test_a_tied_weight_is_one_parameter_with_the_work_of_both():
    model = nn.Sequential(OrderedDict(one=nn.Linear(4, 4), two=nn.Linear(4, 4)))
    model.two.weight = model.one.weight
    cost = flops.count(model, torch.zeros(1, 4))
    assert {name: w.macs for name, w in cost.weights.items()} == {"one.weight": 32}
    assert cost.parameters == 16 + 8 == sum(p.numel() for p in model.parameters())


def test_a_module_that_is_called_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert flops.count(nn.Sequential(layer, layer), torch.zeros(1, 4)).macs["linear"] == 32


def test_pruned_and_parametrized_weights_keep_their_names():
    pruned = nn.Sequential(nn.Linear(4, 6))
    prune.random_unstructured(pruned[0], "weight", amount=0.5)
    assert flops.count(pruned, torch.zeros(1, 4)).weights["0.weight_orig"].macs == 24
    normed = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)))
    cost = flops.count(normed, torch.zeros(1, 4))
    assert list(cost.weights) == ["0.parametrizations.weight.original1"]


def test_a_low_rank_addition_does_not_hide_the_weight():
    class LowRank(nn.Linear):
        def __init__(self):
            super().__init__(6, 6, bias=False)
            self.down, self.up = (nn.Parameter(torch.ones(s)) for s in ((1, 6), (6, 1)))

        def forward(self, x):
            return F.linear(x, self.weight + self.up @ self.down)

    cost = flops.count(LowRank(), torch.zeros(1, 6))
    assert cost.weights["weight"].macs == 36 and cost.macs["linear"] == 36 + 36


def test_buffers_are_no_weights():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("basis", torch.ones(4, 4))
            self.register_buffer("hidden", torch.ones(4, 4), persistent=False)
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x @ self.basis @ self.hidden)

    cost = flops.count(Fixed(), torch.zeros(1, 4))
    assert {name: w.macs for name, w in cost.weights.items()} == {"layer.weight": 16}
    assert cost.macs == {"conv": 0, "linear": 3 * 16, "attention": 0}


def test_a_mask_does_not_hide_the_weight():
    class Masked(nn.Linear):
        def __init__(self):
            super().__init__(4, 6)
            self.register_buffer("mask", torch.ones(6, 4))

        def forward(self, x):
            return F.linear(x, self.weight * self.mask) + F.linear(x, self.mask * self.weight)

    cost = flops.count(Masked(), torch.zeros(1, 4))
    assert {name: w.macs for name, w in cost.weights.items()} == {"weight": 2 * 24}


def test_learned_queries_meet_the_data_in_attention():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.ones(3, 5))
            self.project = nn.Linear(5, 5)

        def forward(self, x):
            return self.project(self.query) @ x.transpose(1, 2)

    cost = flops.count(Queries(), torch.zeros(1, 4, 5))
    assert cost.macs == {"conv": 0, "linear": 3 * 5 * 5, "attention": 3 * 5 * 4}
    assert list(cost.weights) == ["project.weight"]


def test_einsum_is_exact_at_any_size():
    def formula(model, x):
        return torch.einsum("btc,bsc->bts", x, x[:, :59])

    assert (
        flops.count(Products(formula), torch.zeros(3, 97, 123)).macs["attention"] == 97 * 123 * 59
    )


# --- inputs, outputs, wrappers --------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_counts_are_of_one_sample_at_any_batch_size(batch):
    assert flops.count(models.resnet34(), torch.zeros(batch, 3, 32, 32)).macs == {
        "conv": 1_159_397_376, "linear": 51_200, "attention": 0,
    }  # fmt: skip


# --- the table ------------------------------------------------------------------------------------


def test_the_printed_table_has_a_row_per_module_and_the_total():
    text = str(flops.count(models.vgg16(), torch.zeros(1, 3, 32, 32)))
    lines = text.splitlines()
    assert lines[0].split() == ("module type parameters conv MACs linear MACs norm FLOPs".split())
    assert any(line.split()[:3] == ["0.0", "Conv2d", "1,792"] for line in lines)
    total = next(line for line in lines if line.startswith("total"))
    assert total.split()[1:] == ["15,255,626", "313,196,544", "529,408", "555,008"]
    assert "628,006,912 FLOPs per sample" in text and "max_pool2d (5), relu (15)" in text
    assert max(map(len, lines)) <= 100
