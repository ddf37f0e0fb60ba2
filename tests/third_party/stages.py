"""Two stages, each with an optimizer of its own over the same weights."""

import toy
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam


def optimizer_for(stage, model):
    if stage == 0:
        return Adam(model.parameters(), lr=0.01)
    return SGD(model.parameters(), lr=0.05, momentum=0.9)


def main(folder, stop=toy.EPOCHS):
    model = toy.network()
    epoch, found = 0, toy.load(folder)
    if found:
        epoch = found["epoch"]
        model.load_state_dict(found["model"])
    optimizer = optimizer_for((epoch - 1) // 2 if found else 0, model)
    if found:
        optimizer.load_state_dict(found["optimizer"])
    while epoch < stop:
        if epoch == 2:
            optimizer = optimizer_for(1, model)
        for inputs, targets in toy.batches(epoch):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        epoch += 1
        toy.save(folder, epoch=epoch, model=model.state_dict(), optimizer=optimizer.state_dict())
    return model, optimizer
