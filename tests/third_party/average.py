"""An average of the weights kept by hand, put in their place to evaluate and to export."""

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import AdamW


class Average:
    def __init__(self, model, decay=0.9):
        self.model, self.decay = model, decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self):
        for name, p in self.model.named_parameters():
            self.values[name].lerp_(p, 1 - self.decay)

    def swap(self):
        """Exchange the weights for their averages; once more to undo it."""
        for name, p in self.model.named_parameters():
            p.data, self.values[name] = self.values[name], p.data


@torch.no_grad()
def evaluate(model, epoch):
    return sum(cross_entropy(model(inputs), targets) for inputs, targets in toy.batches(100))


def main(folder, stop=toy.EPOCHS):
    model = toy.network()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
    average, epoch = Average(model), 0
    if found := toy.load(folder):
        epoch, average.values = found["epoch"], found["average"]
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
    while epoch < stop:
        for inputs, targets in toy.batches(epoch):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            average.update()
        average.swap()
        evaluate(model, epoch)
        torch.save(model.state_dict(), folder / "average.pt")
        average.swap()
        epoch += 1
        toy.save(
            folder, epoch=epoch, model=model.state_dict(), optimizer=optimizer.state_dict(),
            average=average.values,
        )  # fmt: skip
    return model, optimizer
