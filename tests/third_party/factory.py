"""The optimizer is made deep inside, by name; what comes later asks for its class."""

import torch
import toy
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, lr_scheduler

SETTINGS = {"optimizer": "sgd", "rate": 0.1, "momentum": 0.9, "decay": 1e-3}


def make_optimizer(settings, model):
    """No weight decay for biases and norms."""
    matrices = [weight for weight in model.parameters() if weight.ndim > 1]
    vectors = [weight for weight in model.parameters() if weight.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings["decay"]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    if settings["optimizer"] == "sgd":
        return SGD(groups, lr=settings["rate"], momentum=settings["momentum"])
    return AdamW(groups, lr=settings["rate"])


def make_schedule(optimizer):
    if isinstance(optimizer, SGD):
        return lr_scheduler.StepLR(optimizer, 2)
    if type(optimizer).__name__ == "AdamW":
        return lr_scheduler.CosineAnnealingLR(optimizer, toy.EPOCHS)
    raise ValueError(f"no schedule for {type(optimizer).__name__}")


class Experiment:
    def __init__(self, settings):
        self.model = toy.network()
        self.optimizer = make_optimizer(settings, self.model)
        self.schedule = make_schedule(self.optimizer)
        self.epoch = 0

    def parts(self):
        return {"model": self.model, "optimizer": self.optimizer, "schedule": self.schedule}

    def resume(self, folder):
        found = toy.load(folder)
        if found:
            self.epoch = found["epoch"]
            for name, part in self.parts().items():
                part.load_state_dict(found[name])

    def run(self, folder, stop):
        while self.epoch < stop:
            for inputs, targets in toy.batches(self.epoch):
                self.optimizer.zero_grad()
                cross_entropy(self.model(inputs), targets).backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                self.optimizer.step()
            self.schedule.step()
            self.epoch += 1
            states = {name: part.state_dict() for name, part in self.parts().items()}
            toy.save(folder, epoch=self.epoch, **states)


def main(folder, stop=toy.EPOCHS):
    experiment = Experiment(SETTINGS)
    experiment.resume(folder)
    experiment.run(folder, stop)
    return experiment.model, experiment.optimizer
