"""A network with a tenth of its weights learns handwritten digits, in seconds.

    python examples/quickstart.py

Prints the weights that are left, layer by layer, and a test accuracy above 95 %.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from sparseopt import SparseOptimizer


def main() -> float:
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.data).float() / 16, torch.tensor(digits.target)
    train, test = torch.randperm(len(labels)).split([1437, 360])

    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    opt = SGD(model.parameters(), lr=0.1, momentum=0.9)
    # the only new line:
    opt = SparseOptimizer(opt, algo="rigl", sparsity=0.9, total_steps=30 * 45, model=model)
    for _ in range(30):
        for batch in train[torch.randperm(len(train))].split(32):
            opt.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            opt.step()

    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(opt.summary())
    print(f"test accuracy {accuracy:.1%}")
    return accuracy


if __name__ == "__main__":
    main()
