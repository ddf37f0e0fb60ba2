"""Accelerate: wrap the optimizer, then prepare it like any other.

    accelerate launch examples/integrations/with_accelerate.py

Prints the sparsity after training; seconds on a CPU.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import SparseOptimizer


def main() -> SparseOptimizer:
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    inputs = torch.randn(256, 16)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].sin()), batch_size=16)
    epochs = 3
    opt = torch.optim.AdamW(model.parameters(), lr=1e-2)
    # The only new line. Optimizer steps are counted, not batches: two batches make one step here.
    steps = epochs * len(data) // 2
    sparse = SparseOptimizer(
        opt, algo="rigl", sparsity=0.9, total_steps=steps, update_every=4, model=model
    )
    model, opt, data = accelerator.prepare(model, sparse, data)

    for _ in range(epochs):
        for inputs, targets in data:
            with accelerator.accumulate(model):
                accelerator.backward(mse_loss(model(inputs), targets))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                opt.step()
                opt.zero_grad()

    accelerator.print(f"sparsity {sparse.sparsity:.1%} after {sparse.steps} steps")
    return sparse


if __name__ == "__main__":
    main()
