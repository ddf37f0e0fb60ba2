"""A checkpoint format of its own: momentum by parameter name, the model made anew from it."""

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import SGD


def momenta(model, optimizer):
    """By name, so that the file outlives a change of the order of parameters."""
    return {
        name: optimizer.state[weight]["momentum_buffer"]
        for name, weight in model.named_parameters()
    }


def write(path, epoch, model, optimizer):
    torch.save(
        {
            "format": 3,
            "weights": {name: value.half().float() for name, value in model.state_dict().items()},
            "momenta": momenta(model, optimizer),
            "rate": optimizer.param_groups[0]["lr"],
            "epoch": epoch,
        },
        path,
    )


def read(path, model):
    """The weights come first; the optimizer is made from what the file says."""
    found = torch.load(path, weights_only=True)
    model.load_state_dict(found["weights"])
    optimizer = make(model, found["rate"])
    for name, weight in model.named_parameters():
        optimizer.state[weight]["momentum_buffer"] = found["momenta"][name]
    return optimizer, found["epoch"]


def make(model, rate):
    return SGD(model.parameters(), lr=rate, momentum=0.9)


def main(folder, stop=toy.EPOCHS):
    path, model, epoch = folder / "run.ckpt", toy.network(), 0
    if path.exists():
        optimizer, epoch = read(path, model)
    else:
        optimizer = make(model, 0.1)
    while epoch < stop:
        for inputs, targets in toy.batches(epoch):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.8
        epoch += 1
        write(path, epoch, model, optimizer)
        model.load_state_dict(torch.load(path, weights_only=True)["weights"])  # what was rounded
    return model, optimizer
