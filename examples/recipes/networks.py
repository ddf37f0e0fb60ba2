"""The networks of the recipes: examples/models.py, torchvision and timm."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from recipe import Recipe, check
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # examples/, for models.py
import models  # noqa: E402

TINY = 1 / 8  # share of the channels with --tiny


def build(recipe: Recipe, tiny: bool = False) -> nn.Module:
    """The recipe's network with fresh weights.

    Args:
        recipe: Says which one, for how many classes and which size of input.
        tiny: A small one of the same kind, for trying things out.
    """
    check("model", recipe.model, BUILDERS)
    return BUILDERS[recipe.model](recipe, tiny)


def own(name: str) -> Callable[[Recipe, bool], nn.Module]:
    """A network of examples/models.py."""
    return lambda recipe, tiny: getattr(models, name)(recipe.classes, TINY if tiny else 1.0)


def efficientnet_b0(recipe: Recipe, tiny: bool) -> nn.Module:
    """torchvision's; the tiny one has three of its seven stages."""
    from torchvision.models import efficientnet

    if not tiny:
        return efficientnet.efficientnet_b0(num_classes=recipe.classes)
    rows = ((1, 3, 1, 32, 16, 1), (6, 3, 2, 16, 24, 1), (6, 5, 2, 24, 40, 1))
    stages = [efficientnet.MBConvConfig(*row, width_mult=0.5, depth_mult=1.0) for row in rows]
    return efficientnet.EfficientNet(stages, dropout=0.2, num_classes=recipe.classes)


def resnet50(recipe: Recipe, tiny: bool) -> nn.Module:
    """torchvision's; the tiny one has one block in each of two stages."""
    from torchvision.models import resnet

    if not tiny:
        return resnet.resnet50(num_classes=recipe.classes)
    small = resnet.ResNet(
        resnet.Bottleneck, [1, 1, 1, 1], num_classes=recipe.classes, width_per_group=8
    )
    small.layer3, small.layer4 = nn.Identity(), nn.Identity()
    small.fc = nn.Linear(512, recipe.classes)
    return small


def deit_base(recipe: Recipe, tiny: bool) -> nn.Module:
    """timm's; the tiny one has two blocks of width 48."""
    import timm

    small = {"embed_dim": 48, "depth": 2, "num_heads": 3} if tiny else {}
    return timm.create_model(
        "deit_base_patch16_224", num_classes=recipe.classes, img_size=recipe.size, **small
    )


def mlp(recipe: Recipe, tiny: bool) -> nn.Module:
    """ReLU layers of the recipe's widths; the tiny one has hidden layers an eighth as wide."""
    first, *hidden, last = recipe.widths or ()
    hidden = [8 * max(1, round(width * TINY / 8)) for width in hidden] if tiny else hidden
    return models.mlp((first, *hidden, last))


BUILDERS: dict[str, Callable[[Recipe, bool], nn.Module]] = {
    "efficientnet_b0": efficientnet_b0,
    "resnet50": resnet50,
    "deit_base": deit_base,
    "mlp": mlp,
} | {
    name: own(name)
    for name in ("vgg16", "resnet34", "resnet50_3d", "slow_resnet50", "i3d_resnet50", "fcn_vgg16")
}


def load_backbone(model: nn.Module, path: str) -> None:
    """Put torchvision's pretrained weights into `model.features`.

    Raises:
        ValueError: the file does not hold all of them, in the right shapes; nothing is loaded.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True)
    found = {
        name.removeprefix("features."): value
        for name, value in saved.items()
        if name.startswith("features.")
    }
    features = model.get_submodule("features")
    for name, value in features.state_dict().items():
        if name not in found or found[name].shape != value.shape:
            raise ValueError(
                f"--weights {path} has no features.{name} of shape {tuple(value.shape)}: "
                "give the state dict of torchvision's network of the same kind"
            )
    features.load_state_dict(found)
