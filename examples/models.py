"""The paper's networks that torchvision does not have, by exact parameter and multiply-add counts.

    from models import vgg16
    model = vgg16(num_classes=10)      # 15,255,626 parameters, 313,725,952 multiply-adds at 32 x 32

| function | for | parameters | multiply-adds of one sample |
|---|---|---|---|
| `vgg16()` | CIFAR-10, 3 x 32 x 32 | 15,255,626 | 313,725,952 |
| `resnet34()` | CIFAR-100, 3 x 32 x 32 | 21,328,292 | 1,159,448,576 |
| `deit_base()` | ImageNet, 3 x 224 x 224 | 86,567,656 | 17,563,828,224 |
| `resnet50_3d()` | UCF101, 3 x 8 x 112 x 112 | 46,405,925 | 5,263,042,560 |
| `slow_resnet50()` | UCF101, 3 x 8 x 112 x 112 | 31,841,445 | 10,993,575,936 |
| `i3d_resnet50()` | UCF101, 3 x 8 x 112 x 112 | 27,430,821 | 11,720,632,320 |
| `fcn_vgg16()` | VOC 2012, 3 x 480 x 480 | 15,307,477 | 70,602,537,600 |
| `mlp()` | Fashion-MNIST, 784 | 2,383,370 | 2,380,800 |

EfficientNet-B0 and ResNet-50 are torchvision's. All but `deit_base` and `mlp` take ``width=``, the
share of the channels, for trying things out. Needs torch only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VGG16 = (64, 64, "pool", 128, 128, "pool", *(256,) * 3, "pool", *(512,) * 3, "pool", *(512,) * 3)


def scaled(channels: int, width: float) -> int:
    """A number of channels in a network that is `width` times as wide."""
    return max(1, round(channels * width))


def vgg16_layers(width: float, norm: bool) -> list[nn.Module]:
    """The 13 convolutions of VGG-16 with ReLUs and poolings, as torchvision numbers them."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in VGG16:
        if isinstance(entry, str):
            layers.append(nn.MaxPool2d(2))
            continue
        wide = scaled(entry, width)
        norms = [nn.BatchNorm2d(wide)] if norm else []
        layers += [nn.Conv2d(channels, wide, 3, padding=1), *norms, nn.ReLU()]
        channels = wide
    return [*layers, nn.MaxPool2d(2)]


def vgg16(num_classes: int = 10, width: float = 1.0) -> nn.Sequential:
    """VGG-16 for 32 x 32 images, with batch norms and three linear layers ("VGG-D" of SNIP, ITOP).

    Args:
        num_classes: length of the output.
        width: share of the channels.
    """
    wide = scaled(512, width)
    head: list[nn.Module] = []
    for _ in range(2):
        head += [nn.Linear(wide, wide), nn.ReLU(), nn.BatchNorm1d(wide)]
    features = nn.Sequential(*vgg16_layers(width, norm=True), nn.Flatten())
    classifier = nn.Sequential(*head, nn.Linear(wide, num_classes))
    return nn.Sequential(features, classifier)


class FCN(nn.Module):
    """Scores of every pixel, from features a 32nd as large that are interpolated (FCN-32s)."""

    def __init__(self, num_classes: int, width: float) -> None:
        super().__init__()
        wide = scaled(512, width)
        narrow = max(1, wide // 4)
        self.features = nn.Sequential(*vgg16_layers(width, norm=False))
        self.head = nn.Sequential(
            nn.Conv2d(wide, narrow, 3, padding=1, bias=False), nn.BatchNorm2d(narrow), nn.ReLU(),
            nn.Dropout(0.1), nn.Conv2d(narrow, num_classes, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        scores = self.head(self.features(x))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)


def fcn_vgg16(num_classes: int = 21, width: float = 1.0) -> FCN:
    """FCN-32s on VGG-16; `features` takes torchvision's pretrained weights (Long et al. 2015).

    Args:
        num_classes: scores of a pixel.
        width: share of the channels.
    """
    return FCN(num_classes, width)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, which is a 1 x 1 convolution where shapes change."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.shortcut(x))


def resnet34(num_classes: int = 100, width: float = 1.0) -> nn.Sequential:
    """ResNet-34 for 32 x 32 images: a 3 x 3 stem of stride 1 and no pooling after it.

    Args:
        num_classes: length of the output.
        width: share of the channels.
    """
    blocks: list[nn.Module] = []
    channels = first = scaled(64, width)
    for stage, depth in enumerate((3, 4, 6, 3)):
        wide = scaled(64 * 2**stage, width)
        for block in range(depth):
            blocks.append(BasicBlock(channels, wide, 2 if stage and not block else 1))
            channels = wide
    stem = nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.ReLU()
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return nn.Sequential(stem, nn.Sequential(*blocks), head)


class Attention(nn.Module):
    """Self-attention whose projections are ordinary Linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).reshape(batch, tokens, width))


class TransformerBlock(nn.Module):
    """Attention, then a hidden layer four times as wide; both normalised before and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches to tokens, a class token in front, and the class read from it (DeiT)."""

    def __init__(
        self, size: int, patch: int, width: int, depth: int, heads: int, num_classes: int
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1 + (size // patch) ** 2, width))
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        first = self.class_token.expand(len(x), -1, -1)
        y = self.blocks(torch.cat([first, tokens], dim=1) + self.position)
        return self.head(self.norm(y)[:, 0])


def deit_base(num_classes: int = 1000, size: int = 224) -> VisionTransformer:
    """A vision transformer of the shape of DeiT-base: patches of 16, 12 blocks of width 768.

    Args:
        num_classes: length of the output.
        size: height and width of the images, a multiple of 16.
    """
    return VisionTransformer(size, 16, 768, depth=12, heads=12, num_classes=num_classes)


class Bottleneck3d(nn.Module):
    """1, 3, 1 convolutions in space; ``kernels`` are their lengths in time."""

    def __init__(
        self, channels: int, width: int, kernels: tuple[int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        reduce, middle = kernels
        self.conv1 = nn.Conv3d(
            channels, width, (reduce, 1, 1), padding=(reduce // 2, 0, 0), bias=False
        )
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(
            width, width, (middle, 3, 3), stride, padding=(middle // 2, 1, 1), bias=False
        )
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(4 * width)
        self.shortcut = nn.Sequential()
        if channels != 4 * width or max(stride) > 1:
            self.shortcut = nn.Sequential(
                nn.Conv3d(channels, 4 * width, 1, stride, bias=False), nn.BatchNorm3d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + self.shortcut(x))


def _video_resnet50(
    stem: nn.Module,
    kernels: Sequence[Sequence[tuple[int, int]]],
    time_stride: int,
    num_classes: int,
    width: float,
) -> nn.Sequential:
    """Four stages of 3, 4, 6, 3 bottlenecks; the kernels of a stage repeat over its blocks."""
    blocks: list[nn.Module] = []
    channels = scaled(64, width)
    for stage, depth in enumerate((3, 4, 6, 3)):
        narrow = scaled(64 * 2**stage, width)
        for block in range(depth):
            stride = (time_stride, 2, 2) if stage and not block else (1, 1, 1)
            kernel = kernels[stage][block % len(kernels[stage])]
            blocks.append(Bottleneck3d(channels, narrow, kernel, stride))
            channels = 4 * narrow
    head = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(channels, num_classes))
    return nn.Sequential(stem, nn.Sequential(*blocks), head)


def _video_stem(time_kernel: int, pool: nn.Module, width: float) -> nn.Sequential:
    wide = scaled(64, width)
    padding = (time_kernel // 2, 3, 3)
    conv = nn.Conv3d(3, wide, (time_kernel, 7, 7), (1, 2, 2), padding=padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm3d(wide), nn.ReLU(), pool)


def resnet50_3d(num_classes: int = 101, width: float = 1.0) -> nn.Sequential:
    """ResNet-50 with 3 x 3 x 3 convolutions throughout (3D ResNet, Hara et al. 2018).

    Args:
        num_classes: length of the output.
        width: share of the channels.
    """
    stem = _video_stem(7, nn.MaxPool3d(3, 2, padding=1), width)
    return _video_resnet50(stem, [[(1, 3)]] * 4, 2, num_classes, width)


def slow_resnet50(num_classes: int = 101, width: float = 1.0) -> nn.Sequential:
    """ResNet-50 that looks along time in its last two stages only (Feichtenhofer et al. 2019).

    The "resnet50" of the action-recognition code that arXiv 2410.03030 follows.

    Args:
        num_classes: length of the output.
        width: share of the channels.
    """
    stem = _video_stem(1, nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)), width)
    still, moving = [(1, 1)], [(3, 1)]
    return _video_resnet50(stem, [still, still, moving, moving], 1, num_classes, width)


def i3d_resnet50(num_classes: int = 101, width: float = 1.0) -> nn.Sequential:
    """ResNet-50 inflated in time (I3D): kernels of length 3 before the spatial ones, not all.

    Args:
        num_classes: length of the output.
        width: share of the channels.
    """
    stem = _video_stem(5, nn.MaxPool3d((1, 3, 3), (1, 2, 2), padding=(0, 1, 1)), width)
    every, first = [(3, 1)], [(3, 1), (1, 1)]
    return _video_resnet50(stem, [every, first, first, first[::-1]], 1, num_classes, width)


def mlp(sizes: Sequence[int] = (784, 1024, 1024, 512, 10)) -> nn.Sequential:
    """Linear layers with ReLU between them.

    Args:
        sizes: width of the input, of the hidden layers and of the output.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for narrow, wide in zip(sizes[:-2], sizes[1:-1], strict=True):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))
