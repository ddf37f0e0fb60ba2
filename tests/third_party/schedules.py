"""Learning rates written into the parameter groups by hand: a warm-up, then a plateau rule."""

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import SGD

RATE = 0.1


class Plateau:
    """Halves the rate when an epoch was no better than the best one so far."""

    def __init__(self):
        self.best, self.factor = float("inf"), 1.0

    def after_epoch(self, loss):
        if loss >= self.best - 0.2:
            self.factor /= 2
        self.best = min(self.best, loss)


def set_rate(optimizer, plateau, step):
    for group in optimizer.param_groups:
        group["lr"] = RATE * plateau.factor * min(1.0, (step + 1) / 8)
        group["momentum"] = 0.8 if step < 8 else 0.9


def main(folder, stop=toy.EPOCHS):
    model, plateau = toy.network(), Plateau()
    optimizer = SGD(model.parameters(), lr=RATE, momentum=0.9, dampening=0.5)
    epoch = step = 0
    if found := toy.load(folder):
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        epoch, step, vars(plateau)["best"], vars(plateau)["factor"] = found["position"]
    while epoch < stop:
        losses = []
        for inputs, targets in toy.batches(epoch):
            set_rate(optimizer, plateau, step)
            loss = cross_entropy(model(inputs), targets)
            model.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        plateau.after_epoch(torch.tensor(losses).mean().item())
        epoch += 1
        toy.save(
            folder, model=model.state_dict(), optimizer=optimizer.state_dict(),
            position=(epoch, step, plateau.best, plateau.factor),
        )  # fmt: skip
    return model, optimizer
