"""Lightning: wrap the optimizer in configure_optimizers; the Trainer does the rest.

    python examples/integrations/with_lightning.py

Prints the sparsity after training; seconds on a CPU.
"""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from sparseopt import SparseOptimizer
from sparseopt.integrations import LightningCallback


class Network(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def training_step(self, batch, index):
        inputs, targets = batch
        return mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self):
        opt = torch.optim.AdamW(self.parameters(), lr=1e-2)
        # The only new line. The Trainer knows how many optimizer steps there will be.
        steps = self.trainer.estimated_stepping_batches
        opt = SparseOptimizer(
            opt, algo="rigl", sparsity=0.9, total_steps=steps, update_every=4, model=self
        )
        return {"optimizer": opt, "lr_scheduler": torch.optim.lr_scheduler.StepLR(opt, 1)}


def main(folder: str | None = None) -> SparseOptimizer:
    pl.seed_everything(0)
    inputs = torch.randn(256, 16)
    data = DataLoader(TensorDataset(inputs, inputs[:, :4].sin()), batch_size=16)
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="auto",
        accumulate_grad_batches=2,
        gradient_clip_val=1.0,
        callbacks=[LightningCallback()],  # logs sparsity, churn and exploration rate
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Network(), data)
    opt = trainer.optimizers[0]
    print(f"sparsity {opt.sparsity:.1%} after {opt.steps} steps and {opt.updates} updates")
    return opt


if __name__ == "__main__":
    main()
