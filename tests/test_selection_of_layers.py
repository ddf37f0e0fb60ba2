"""Which parameters become sparse: by module, by name, by shape, and by the user's word."""

import logging

import pytest
import torch
from common import mlp, train
from torch import nn
from torch.optim import SGD

from sparseopt import SparseOptimizer

torchvision = pytest.importorskip("torchvision")


def chosen(network, groups=None, **options):
    groups = list(network.parameters()) if groups is None else groups
    options.setdefault("model", network)
    options.setdefault("distribution", "uniform")
    return [layer.name for layer in SparseOptimizer(SGD(groups, lr=0.1), **options).layers]


def on_meta(make):
    with torch.device("meta"):
        return make()


def vit():
    return torchvision.models.vit_b_16()


def swin():
    return torchvision.models.swin_t()


def convnext():
    return torchvision.models.convnext_tiny()


def vit_names():
    block = "encoder.layers.encoder_layer_"
    parts = (
        "self_attention.in_proj_weight", "self_attention.out_proj.weight",
        "mlp.0.weight", "mlp.3.weight",
    )  # fmt: skip
    inner = [f"{block}{i}.{part}" for i in range(12) for part in parts]
    return ["conv_proj.weight", *inner, "heads.head.weight"]


def swin_names():
    names = ["features.0.0.weight"]
    for stage, depth in ((1, 2), (3, 2), (5, 6), (7, 2)):
        for block in range(depth):
            path = f"features.{stage}.{block}"
            names += [f"{path}.attn.qkv.weight", f"{path}.attn.proj.weight"]
            names += [f"{path}.mlp.0.weight", f"{path}.mlp.3.weight"]
        if stage < 7:
            names += [f"features.{stage + 1}.reduction.weight"]
    return [*names, "head.weight"]


def convnext_names():
    names = ["features.0.0.weight"]
    for stage, depth in ((1, 3), (3, 3), (5, 9), (7, 3)):
        for block in range(depth):  # 0 is the depthwise convolution
            names += [f"features.{stage}.{block}.block.{linear}.weight" for linear in (3, 5)]
        if stage < 7:
            names += [f"features.{stage + 1}.1.weight"]
    return [*names, "classifier.2.weight"]


class Tied(nn.Module):
    """A language model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.position = nn.Embedding(10, 8)
        self.hidden = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 50, bias=False)
        self.lm_head.weight = self.embed.weight


# --- golden lists (row 6) -------------------------------------------------------------------------

VISION = [(vit, vit_names), (swin, swin_names), (convnext, convnext_names)]


@pytest.mark.parametrize("make, names", VISION)
def test_golden_lists_of_vision_models_by_module_type(make, names, selection):
    model = on_meta(make)
    assert selection(list(model.parameters()), model) == sorted(names())


@pytest.mark.parametrize("make, names", VISION)
def test_golden_lists_of_vision_models_by_parameter_names(make, names, selection):
    model = on_meta(make)
    found = selection(list(model.named_parameters()))
    tables = [name for name in found if name.endswith("relative_position_bias_table")]
    assert not tables
    assert found == sorted(names())


@pytest.mark.parametrize("make, names", VISION)
def test_by_shape_alone_no_weight_is_missed_and_no_token_or_scale_is_taken(make, names):
    model = on_meta(make)
    found = shapes_taken(model)
    assert set(names()) <= set(found)
    surplus = set(found) - set(names())
    # a bias table looks like a matrix; nothing else does
    assert all(name.endswith("relative_position_bias_table") for name in surplus)


@pytest.fixture
def selection():
    """Names chosen without making masks: these models have tens of millions of weights."""
    from sparseopt.layers import Selection

    def names(groups, model=None):
        optimizer = SGD(groups, lr=0.1)
        found = Selection.of(optimizer.param_groups, model, None, None)
        return sorted(layer.name for layer in found.layers(optimizer.param_groups))

    return names


def shapes_taken(model):
    from sparseopt.layers import Selection

    optimizer = SGD(model.parameters(), lr=0.1)
    names = [name for name, _ in model.named_parameters()]
    found = Selection.of(optimizer.param_groups, None, None, None)
    return [names[layer.key[1]] for layer in found.layers(optimizer.param_groups)]


# --- kinds of modules -----------------------------------------------------------------------------


@pytest.mark.parametrize("by_names", [False, True])
def test_a_tied_embedding_stays_dense_and_is_counted_once(by_names):
    model = Tied()
    options = {"model": None} if by_names else {}
    groups = list(model.named_parameters()) if by_names else None
    assert chosen(model, groups, **options) == ["hidden.weight"]


def test_two_linear_layers_sharing_a_weight_stay_dense_unless_asked():
    model = mlp((6, 6, 6, 5))
    model[2].weight = model[0].weight
    assert chosen(model) == ["4.weight"]
    assert chosen(model, include="*") == ["0.weight", "4.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_norm_old_and_new_take_the_direction_and_not_the_gain():
    old = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 4)), nn.Conv2d(3, 4, 3))
    new = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 4)),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    )
    expected_new = [f"{i}.parametrizations.weight.original1" for i in (0, 1)]
    for options in ({}, {"model": None}):
        for model, expected in ((old, ["0.weight_v", "1.weight"]), (new, expected_new)):
            groups = list(model.named_parameters()) if options else None
            assert sorted(chosen(model, groups, **options)) == sorted(expected)
    assert chosen(new, model=None) == ["0.2", "0.5"]  # by shape: bias, gain, direction


def test_attention_takes_its_projections_packed_or_apart():
    assert chosen(nn.MultiheadAttention(8, 2)) == ["in_proj_weight", "out_proj.weight"]
    apart = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, add_bias_kv=True)
    expected = [f"{letter}_proj_weight" for letter in "qkv"] + ["out_proj.weight"]
    assert chosen(apart) == expected
    assert chosen(apart, list(apart.named_parameters()), model=None) == expected


def test_convolutions_of_every_kind_except_depthwise_are_taken():
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.Conv2d(6, 6, 3, groups=6), nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv3d(2, 3, 3), nn.ConvTranspose1d(3, 2, 3), nn.ConvTranspose2d(3, 2, 3),
        nn.ConvTranspose3d(3, 2, 3), nn.Conv2d(1, 4, 3), nn.Bilinear(3, 3, 2),
        nn.BatchNorm2d(4), nn.LayerNorm((4, 5)), nn.Embedding(7, 4), nn.LSTM(4, 4),
        nn.Linear(7, 1), nn.Linear(1, 7), nn.Linear(7, 2), nn.PReLU(4),
    )  # fmt: skip
    assert chosen(model) == [f"{i}.weight" for i in (0, 2, 3, 4, 5, 6, 7, 15)]


def test_a_module_named_unbiased_or_embedder_norm_is_not_taken_for_its_letters():
    model = nn.ModuleDict({"unbiased": nn.Linear(4, 5), "member": nn.Linear(5, 6)})
    assert chosen(model, exclude="unbiased.bias") == ["unbiased.weight", "member.weight"]
    with pytest.raises(ValueError, match="bias"):
        chosen(model, exclude="nothing.bias")


def test_a_subclass_of_linear_counts_as_linear():
    class Mine(nn.Linear):
        pass

    assert chosen(nn.Sequential(Mine(5, 4))) == ["0.weight"]


# --- the user's word ------------------------------------------------------------------------------


def test_patterns_match_whole_name_components_and_callables_see_name_and_weight():
    model = nn.ModuleDict(
        {
            "layer1": mlp((6, 8, 6)),
            "layer10": mlp((6, 7, 6)),
            "fc": nn.Linear(6, 5),
            "emb": nn.Embedding(9, 4),
        }
    )
    both = ["layer1.0.weight", "layer1.2.weight"]
    assert chosen(model, include="layer1") == both
    assert chosen(model, include=["layer1*.0", "fc"]) == [
        "layer1.0.weight", "layer10.0.weight", "fc.weight",
    ]  # fmt: skip
    assert chosen(model, include="emb") == ["emb.weight"]
    assert chosen(model, include="layer*", exclude="layer10") == both
    assert chosen(model, exclude=["layer10", lambda name, weight: weight.shape[0] == 5]) == both
    assert chosen(model, include=lambda name, weight: tuple(weight.shape) == (5, 6)) == [
        "fc.weight"
    ]


def test_group_sparsity_overrides_and_zero_keeps_the_group_dense():
    model = mlp((6, 8, 8, 5))
    groups = [
        {"params": list(model[0].parameters())},
        {"params": list(model[2].parameters()), "sparsity": 0.25},
        {"params": list(model[4].parameters()), "sparsity": 0.0},
    ]
    before = model[4].weight.detach().clone()
    optimizer = SparseOptimizer(SGD(groups, lr=0.1), sparsity=0.75, model=model)
    assert {layer.name: layer.nnz for layer in optimizer.layers} == {"0.weight": 12, "2.weight": 48}
    assert torch.equal(model[4].weight, before)


def test_frozen_weights_are_not_taken_and_bitwise_unchanged():
    model = mlp((6, 8, 8, 5))
    model[2].weight.requires_grad_(False)
    before = model[2].weight.clone()
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1, weight_decay=0.1), model=model, update_every=2
    )
    train(model, optimizer, 6)
    assert [layer.name for layer in optimizer.layers] == ["0.weight", "4.weight"]
    assert torch.equal(model[2].weight, before)


def test_a_weight_frozen_later_rests_with_its_topology():
    model = mlp((6, 8, 8, 5))
    optimizer = SparseOptimizer(
        SGD(model.parameters(), lr=0.1, weight_decay=0.1), model=model, update_every=2
    )
    train(model, optimizer, 3)
    optimizer.zero_grad()
    model[2].weight.requires_grad_(False)
    before, mask = model[2].weight.clone(), optimizer.masks["2.weight"].clone()
    train(model, optimizer, 6, first=3)
    assert torch.equal(model[2].weight, before)
    assert torch.equal(optimizer.masks["2.weight"], mask)


# --- quiet, and open about it ---------------------------------------------------------------------


def test_without_names_the_choice_is_made_quietly_and_shown(caplog):
    model = mlp()
    with caplog.at_level(logging.INFO, "sparseopt"):
        optimizer = SparseOptimizer(SGD(model.parameters(), lr=0.1), algo="set")
    assert len(caplog.records) == 1 and "model=" in caplog.text
    assert caplog.records[0].levelno == logging.INFO
    for layer in optimizer.layers:
        assert layer.name in optimizer.summary() and str(layer.nnz) in optimizer.summary()
    assert "SparseOptimizer" in repr(optimizer) and "SGD" in repr(optimizer)
    assert not hasattr(logging.getLogger("sparseopt"), "__wrapped__")
    assert not logging.getLogger("sparseopt").handlers


def test_param_names_and_model_give_the_same_names_and_masks():
    model, other = mlp(), mlp()
    by_name = SparseOptimizer(SGD(model.named_parameters(), lr=0.1))
    by_module = SparseOptimizer(SGD(other.parameters(), lr=0.1), model=other)
    assert list(by_name.masks) == list(by_module.masks) == ["0.weight", "2.weight"]
    for name, mask in by_name.masks.items():
        assert torch.equal(mask, by_module.masks[name])


def test_a_compiled_or_parallel_model_is_seen_through():
    model = mlp()
    for outer in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert chosen(model, model=outer) == ["0.weight", "2.weight"]


def test_weights_of_size_zero_and_one_do_no_harm():
    empty, one = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.ones(1, 1))
    wide = nn.Parameter(torch.randn(5, 4))
    optimizer = SparseOptimizer(
        SGD([empty, one, wide], lr=0.1), include=lambda name, weight: True, update_every=1
    )
    for p in (empty, one, wide):
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert int(optimizer.masks["0.1"].sum()) >= 1
    assert "total" in optimizer.summary() and len(optimizer.history) == 1
