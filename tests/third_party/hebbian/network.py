"""The perceptron: three hidden layers of equal width, and the last layer."""

import torch
from torch import nn


class Perceptron(nn.Module):
    def __init__(self, inputs, width, classes):
        super().__init__()
        self.layer1 = nn.Linear(inputs, width)
        self.layer2 = nn.Linear(width, width)
        self.layer3 = nn.Linear(width, width)
        self.last_layer = nn.Linear(width, classes)

    def forward(self, images):
        hidden = images.flatten(1)
        for layer in (self.layer1, self.layer2, self.layer3):
            hidden = torch.relu(layer(hidden))
        return self.last_layer(hidden)
