"""The loops over one epoch, and made-up images in place of Fashion-MNIST's."""

import torch
from torch.nn.functional import cross_entropy


def images(seed, number=12, size=16):
    source = torch.Generator().manual_seed(seed)
    for _ in range(number):
        batch = torch.randn(size, 1, 6, 6, generator=source)
        yield batch, batch.flatten(1)[:, :5].argmax(1)


def train(model, loader, optimizer, pruner):
    model.train()
    for data, target in loader:
        optimizer.zero_grad()
        loss = cross_entropy(model(data), target)
        loss.backward()
        if pruner():
            optimizer.step()


@torch.no_grad()
def test(model, loader):
    model.eval()
    right = [(model(data).argmax(1) == target).float().mean() for data, target in loader]
    return float(torch.stack(right).mean())
