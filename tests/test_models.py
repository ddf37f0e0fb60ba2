"""The paper's networks: exact parameters and multiply-adds."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

EXAMPLES = Path(__file__).parents[1] / "examples"
spec = importlib.util.spec_from_file_location("example_models", EXAMPLES / "models.py")
models = importlib.util.module_from_spec(spec)
spec.loader.exec_module(models)

# name, input, parameters, multiply-adds (convolutions, linear layers and attention)
TABLE = [
    ("vgg16", (3, 32, 32), 15_255_626, 313_196_544 + 529_408),
    ("resnet34", (3, 32, 32), 21_328_292, 1_159_397_376 + 51_200),
    ("deit_base", (3, 224, 224), 86_567_656, 115_605_504 + 16_732_895_232 + 715_327_488),
    ("resnet50_3d", (3, 8, 112, 112), 46_405_925, 5_262_835_712 + 206_848),
    ("slow_resnet50", (3, 8, 112, 112), 31_841_445, 10_993_369_088 + 206_848),
    ("i3d_resnet50", (3, 8, 112, 112), 27_430_821, 11_720_425_472 + 206_848),
    ("fcn_vgg16", (3, 480, 480), 15_307_477, 70_602_537_600),
    ("mlp", (784,), 2_383_370, 784 * 1024 + 1024 * 1024 + 1024 * 512 + 512 * 10),
]


@pytest.mark.parametrize("name, shape, parameters, macs", TABLE)
def test_counts_are_exact(name, shape, parameters, macs):
    with torch.device("meta"):
        model = getattr(models, name)()
        batch = torch.empty(2, *shape)
    assert sum(p.numel() for p in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        model.eval()(batch)
    assert counter.get_total_flops() == 2 * 2 * macs  # two samples, two FLOPs each
    assert f"{parameters:,}" in models.__doc__ and f"{macs:,}" in models.__doc__


@pytest.mark.parametrize("name, shape", [(name, shape) for name, shape, _, _ in TABLE[:-2]])
def test_output_is_one_row_of_classes_per_sample(name, shape):
    with torch.device("meta"):
        model = getattr(models, name)(num_classes=7)
        assert model(torch.empty(3, *shape)).shape == (3, 7)


def test_a_segmentation_network_scores_every_pixel():
    with torch.device("meta"):
        model = models.fcn_vgg16(num_classes=7)
        assert model(torch.empty(2, 3, 45, 70)).shape == (2, 7, 45, 70)


def test_pretrained_weights_of_torchvision_fit_the_segmentation_network():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, ours = torchvision.models.vgg16().features, models.fcn_vgg16().features
    shapes = [{k: v.shape for k, v in m.state_dict().items()} for m in (theirs, ours)]
    assert shapes[0] == shapes[1]


def test_the_slow_network_has_the_published_number_of_parameters():
    with torch.device("meta"):
        model = models.slow_resnet50(num_classes=400)  # on Kinetics: 32.45 million
    assert sum(p.numel() for p in model.parameters()) == 32_454_096


@pytest.mark.parametrize("name", [name for name, *_ in TABLE if name not in ("deit_base", "mlp")])
def test_a_narrow_network_has_the_layers_of_the_full_one(name):
    with torch.device("meta"):
        full, narrow = getattr(models, name)(), getattr(models, name)(width=1 / 8)
    assert list(full.state_dict()) == list(narrow.state_dict())
    sizes = [sum(p.numel() for p in model.parameters()) for model in (full, narrow)]
    assert 20 < sizes[0] / sizes[1] < 80  # 8 x 8, but for the ends


def entries(model, *types):
    layers = [module for module in model.modules() if isinstance(module, types)]
    return sum(p.numel() for layer in layers for p in layer.parameters())


def test_vgg16_and_resnet34_have_the_dense_parts_of_the_tables():
    """The first convolution, the classifier, norms and biases: what stays dense."""
    vgg = models.vgg16()
    linear = entries(vgg, nn.Linear)
    norms = entries(vgg, nn.BatchNorm1d, nn.BatchNorm2d)
    convs = [m for m in vgg.modules() if isinstance(m, nn.Conv2d)]
    assert (linear, convs[0].weight.numel(), len(convs)) == (530_442, 1_728, 13)
    assert norms == 8_448 + 2 * 1_024 and sum(m.bias.numel() for m in convs) == 4_224
    resnet = [m for m in models.resnet34().modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert sum(m.weight.numel() for m in resnet) == 21_311_168


def test_a_residual_block_adds_its_input():
    block = models.BasicBlock(4, 4, 1).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x.relu())


def test_attention_equals_the_written_out_softmax():
    torch.manual_seed(0)
    attention = models.Attention(8, heads=2).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    query, key, value = attention.qkv(x).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        weights = (query[..., part] @ key[..., part].transpose(1, 2) / 2.0).softmax(-1)
        heads.append(weights @ value[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


@pytest.mark.parametrize("name", ["vgg16", "resnet34"])
def test_networks_for_small_images_train(name):
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 2
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
