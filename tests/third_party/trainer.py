"""A trainer class from somewhere else, and our subclass of it."""

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import AdamW


class Trainer:
    """Not ours to change: makes its optimizer by itself, when training begins."""

    accumulate = 4

    def __init__(self, model, folder, batches=10):
        self.model, self.folder, self.batches = model, folder, batches
        self.epoch, self.steps = 0, 0

    def configure_optimizer(self):
        return AdamW(self.model.parameters(), lr=0.01)

    def fit(self, stop):
        self.optimizer = self.configure_optimizer()
        if found := toy.load(self.folder):
            self.epoch, self.steps = found["epoch"], found["steps"]
            self.model.load_state_dict(found["model"])
            self.optimizer.load_state_dict(found["optimizer"])
        while self.epoch < stop:
            for number, batch in enumerate(toy.batches(self.epoch, self.batches), 1):
                self.micro_batch(*batch, last=number == self.batches or not number % 4)
            self.epoch += 1
            toy.save(
                self.folder, epoch=self.epoch, steps=self.steps, model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
            )  # fmt: skip

    def micro_batch(self, inputs, targets, last):
        (cross_entropy(self.model(inputs), targets) / self.accumulate).backward()
        if last:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 0.5)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.steps += 1


class OurTrainer(Trainer):
    def configure_optimizer(self):
        return AdamW(self.model.parameters(), lr=0.02, weight_decay=0.05)


def main(folder, stop=toy.EPOCHS):
    trainer = OurTrainer(toy.network(), folder)
    trainer.fit(stop)
    return trainer.model, trainer.optimizer
