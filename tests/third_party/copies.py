"""Two learning rates are tried on copies at every epoch; the better copy goes on."""

import copy

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import SGD


def twin(model, optimizer):
    """A copy of both: the optimizer is made anew for the parameters of the copied model."""
    model = copy.deepcopy(model)
    other = type(optimizer)(model.parameters(), **optimizer.defaults)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return model, other


def train(model, optimizer, epoch, factor):
    for group in optimizer.param_groups:
        group["lr"] *= factor
    total = 0.0
    for inputs, targets in toy.batches(epoch):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
    return total


def main(folder, stop=toy.EPOCHS):
    model = toy.network()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    epoch = 0
    if found := toy.load(folder):
        epoch = found["epoch"]
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    while epoch < stop:
        tried = [twin(model, optimizer) for _ in range(2)]
        losses = [train(*pair, epoch, by) for pair, by in zip(tried, (1.0, 1.5), strict=True)]
        model, optimizer = tried[losses.index(min(losses))]
        epoch += 1
        toy.save(folder, epoch=epoch, model=model.state_dict(), optimizer=optimizer.state_dict())
    return model, optimizer
