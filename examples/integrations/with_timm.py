"""timm: its optimizer factory, scheduler and EMA around a sparse optimizer.

    python examples/integrations/with_timm.py

Trains a tiny vision transformer on made-up images. Prints the sparsity of the model and of its
average; seconds on a CPU.
"""

import torch
from timm.models import VisionTransformer
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch.nn.functional import cross_entropy

from sparseopt import SparseOptimizer

EPOCHS, BATCHES = 3, 8


def zeros(model: torch.nn.Module, opt: SparseOptimizer) -> float:
    weights = [model.get_parameter(layer.name) for layer in opt.layers]
    return sum((w == 0).sum().item() for w in weights) / sum(w.numel() for w in weights)


def main() -> tuple[float, float]:
    torch.manual_seed(0)
    model = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=4
    )
    opt = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    # The only new line.
    opt = SparseOptimizer(
        opt, algo="rigl", sparsity=0.8, total_steps=EPOCHS * BATCHES, update_every=4, model=model
    )
    scheduler = CosineLRScheduler(opt, t_initial=EPOCHS, warmup_t=1, warmup_lr_init=1e-4)
    average = ModelEmaV3(model, decay=0.9)

    for epoch in range(EPOCHS):
        for _ in range(BATCHES):
            labels = torch.randint(4, (8,))
            images = torch.randn(8, 3, 16, 16) + labels.view(-1, 1, 1, 1)
            opt.zero_grad()
            cross_entropy(model(images), labels).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            opt.step()
            average.update(model)
        scheduler.step(epoch + 1)

    # an average holds the weights of all past topologies: bring it to the present one
    opt.apply_masks(average)
    found = zeros(model, opt), zeros(average.module, opt)
    print(f"sparsity of the model {found[0]:.1%}, of its average {found[1]:.1%}")
    return found


if __name__ == "__main__":
    main()
