"""One epoch of training or of validation, and the checkpoint that training leaves."""

import torch


class Meter:
    """A running mean."""

    def __init__(self):
        self.total, self.number = 0.0, 0

    def update(self, value, number):
        self.total += value * number
        self.number += number

    @property
    def mean(self):
        return self.total / max(self.number, 1)


def save(epoch, model, optimizer, scheduler, options):
    states = {
        "epoch": epoch + 1,
        "arch": options.model_type,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(states, options.output_dir / "save_last.pth")


def train_epoch(loader, model, criterion, optimizer):
    model.train()
    losses = Meter()
    for inputs, targets in loader:
        outputs = model(inputs)
        loss = criterion(outputs, targets)
        losses.update(loss.item(), len(targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {"loss": losses.mean, "lr": optimizer.param_groups[0]["lr"]}


@torch.no_grad()
def val_epoch(loader, model, criterion):
    model.eval()
    losses = Meter()
    for inputs, targets in loader:
        losses.update(criterion(model(inputs), targets).item(), len(targets))
    return losses.mean
