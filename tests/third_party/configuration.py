"""Every part is named in a configuration and made by one function for all of them."""

import importlib

import toy
from torch.nn.functional import cross_entropy

CONFIGURATION = {
    "model": {"make": "toy.network"},
    "optimizer": {"make": "torch.optim.AdamW", "lr": 0.01, "weight_decay": 0.1},
    "schedule": {"make": "torch.optim.lr_scheduler.OneCycleLR", "max_lr": 0.02, "total_steps": 40},
}


def make(part, *arguments):
    """What the configuration names, called with its other entries."""
    options = dict(part)
    module, _, name = options.pop("make").rpartition(".")
    return getattr(importlib.import_module(module), name)(*arguments, **options)


def main(folder, stop=toy.EPOCHS):
    model = make(CONFIGURATION["model"])
    optimizer = make(CONFIGURATION["optimizer"], model.parameters())
    schedule = make(CONFIGURATION["schedule"], optimizer)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    found = toy.load(folder) or {"epoch": 0}
    for name, state in found.items():
        if name in parts:
            parts[name].load_state_dict(state)
    for epoch in range(found["epoch"], stop):
        for inputs, targets in toy.batches(epoch):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            schedule.step()
        toy.save(folder, epoch=epoch + 1, **{name: parts[name].state_dict() for name in parts})
    return model, optimizer
