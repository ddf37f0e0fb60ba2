"""Networks for clips of shape (batch, channels, frames, height, width)."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)

    def forward(self, inputs):
        hidden = torch.relu(self.bn1(self.conv1(inputs)))
        return torch.relu(inputs + self.bn2(self.conv2(hidden)))


class ResNet3D(nn.Module):
    def __init__(self, n_classes, width=8, blocks=1):
        super().__init__()
        self.stem = nn.Conv3d(3, width, (3, 3, 3), stride=(1, 2, 2), padding=1, bias=False)
        self.bn = nn.BatchNorm3d(width)
        self.layers = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.fc = nn.Linear(width * 4, n_classes)

    def forward(self, clips):
        hidden = self.layers(torch.relu(self.bn(self.stem(clips))))
        pooled = nn.functional.adaptive_avg_pool3d(hidden, (4, 1, 1))
        return self.fc(pooled.flatten(1))


def fetch_model(options):
    """The network, and its parameters in the groups in which they are trained."""
    model = ResNet3D(options.n_classes, blocks=int(options.model_type == "resnet"))
    if not options.fine_tune:
        return model, model.parameters()
    head = list(model.fc.parameters())
    rest = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    slow = options.learning_rate / 10
    return model, [{"params": rest, "lr": slow}, {"params": head}]
