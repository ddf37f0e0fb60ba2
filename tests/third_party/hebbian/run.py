"""Sparse training of a perceptron, in the style of the Cannistraci-Hebb training code."""

import argparse
from pathlib import Path

import torch
from network import Perceptron
from topology import Topology
from training import images, test, train

SPARSITY = {"layer1": 0.95, "layer2": 0.9, "layer3": 0.9}
STEPS_PER_EPOCH = 12


def parse_options(arguments=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--learning_rate", type=float, default=0.025)
    parser.add_argument("--end_factor", type=float, default=0.01)
    parser.add_argument("--decay_factor", type=float, default=0.9)
    parser.add_argument("--weight_decay", type=float, default=5e-4)
    parser.add_argument("--zeta", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--stop_after", type=int, default=None)
    parser.add_argument("--save_path", type=Path, default=Path("."))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def set_rate(optimizer, epoch, options):
    """From 1 to ``end_factor``, linearly over the first ``decay_factor`` of all epochs."""
    done = min(1.0, epoch / int(options.epochs * options.decay_factor))
    for group in optimizer.param_groups:
        group["lr"] = options.learning_rate * (1 - (1 - options.end_factor) * done)


def main(arguments=None):
    options = parse_options(arguments)
    torch.manual_seed(options.seed)
    model = Perceptron(36, 64, 5)
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=options.learning_rate,
        momentum=0.9,
        weight_decay=options.weight_decay,
    )
    end = 0.75 * options.epochs * STEPS_PER_EPOCH
    pruner = Topology(model, optimizer, SPARSITY, options.zeta, STEPS_PER_EPOCH, end)
    begin, best = 0, 0.0
    last = options.save_path / "last.pth"
    if last.exists():
        found = torch.load(last)
        begin, best = found["epoch"], found["best"]
        model.load_state_dict(found["model"])
        optimizer.load_state_dict(found["optimizer"])
        pruner.load_state_dict(found["pruner"])
        torch.set_rng_state(found["random"])
    for epoch in range(begin, options.stop_after or options.epochs):
        set_rate(optimizer, epoch, options)
        train(model, images(epoch), optimizer, pruner)
        accuracy = test(model, images(1000))
        if accuracy > best:
            best = accuracy
            torch.save(model.state_dict(), options.save_path / "best_model.pth")
        torch.save(
            {
                "epoch": epoch + 1,
                "best": best,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "pruner": pruner.state_dict(),
                "random": torch.get_rng_state(),
            },
            last,
        )
    return model, optimizer, pruner


if __name__ == "__main__":
    main()
