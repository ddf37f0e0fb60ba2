"""Masks for the linear layers, kept by hooks and by a step function of their own."""

import torch
from torch import nn


class Topology:
    """Called after every backward pass; False where it took the optimizer step's place."""

    def __init__(self, model, optimizer, sparsity, zeta, every, end):
        self.weights = {
            name: module.weight
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name != "last_layer"
        }
        self.optimizer, self.zeta, self.every, self.end = optimizer, zeta, every, end
        self.step = self.updates = 0
        self.masks = {}
        for name, weight in self.weights.items():
            self.masks[name] = self.random_mask(weight, sparsity[name])
            deviation = (2 / ((1 - sparsity[name]) * weight.shape[1])) ** 0.5
            nn.init.normal_(weight, std=deviation)
            weight.register_hook(lambda grad, name=name: grad * self.masks[name])
        self.wrap_step()
        self.apply_masks()

    def random_mask(self, weight, sparsity):
        mask = torch.ones(weight.numel())
        mask[torch.randperm(weight.numel())[: int(sparsity * weight.numel())]] = 0
        return mask.reshape(weight.shape)

    def wrap_step(self):
        unwrapped = self.optimizer.step

        def step():
            unwrapped()
            self.reset_momentum()
            self.apply_masks()

        self.optimizer.step = step

    @torch.no_grad()
    def reset_momentum(self):
        for name, weight in self.weights.items():
            state = self.optimizer.state[weight]
            if "momentum_buffer" in state:
                state["momentum_buffer"] *= self.masks[name]

    @torch.no_grad()
    def apply_masks(self):
        for name, weight in self.weights.items():
            weight *= self.masks[name]

    def __call__(self):
        self.step += 1
        if self.step % self.every or self.step >= self.end:
            return True
        self.evolve()
        return False

    @torch.no_grad()
    def evolve(self):
        for name, weight in self.weights.items():
            mask = self.masks[name].flatten()
            number = int(self.zeta * mask.sum())
            worth = weight.abs().flatten() + 1e9 * (1 - mask)
            mask[worth.argsort()[:number]] = 0
            free = (mask == 0).nonzero().flatten()
            mask[free[torch.randperm(len(free))[:number]]] = 1
        self.updates += 1
        self.reset_momentum()
        self.apply_masks()

    def state_dict(self):
        return {"step": self.step, "updates": self.updates, "masks": self.masks}

    def load_state_dict(self, found):
        self.step, self.updates = found["step"], found["updates"]
        for name, mask in found["masks"].items():
            self.masks[name].copy_(mask)
