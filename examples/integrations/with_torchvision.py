"""torchvision's reference training script: warm-up, AMP with GradScaler, label smoothing, EMA.

    python examples/integrations/with_torchvision.py

The loop is that of torchvision's references/classification/train.py, on made-up images. Prints the
sparsity and that training goes on from the checkpoint; seconds on a CPU.
"""

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.models import resnet18

from sparseopt import SparseOptimizer

EPOCHS, BATCHES = 2, 4


def build(device: str):
    torch.manual_seed(0)
    model = resnet18(num_classes=4, norm_layer=lambda width: nn.GroupNorm(8, width)).to(device)
    opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    # The only new line.
    opt = SparseOptimizer(
        opt, algo="set", sparsity=0.9, total_steps=EPOCHS * BATCHES, update_every=3, model=model
    )
    warm_up = LinearLR(opt, start_factor=0.1, total_iters=1)
    main = CosineAnnealingLR(opt, T_max=EPOCHS - 1)
    return model, opt, SequentialLR(opt, [warm_up, main], milestones=[1])


def train_one_epoch(model, opt, scaler, average, epoch, device):
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    source = torch.Generator().manual_seed(epoch)
    for _ in range(BATCHES):
        images = torch.randn(4, 3, 32, 32, generator=source).to(device)
        labels = torch.randint(4, (4,), generator=source).to(device)
        with torch.autocast(device, enabled=scaler.is_enabled()):
            loss = criterion(model(images), labels)
        opt.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(opt)
        scaler.update()
        average.update_parameters(model)


def main() -> SparseOptimizer:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    path = Path(tempfile.mkdtemp()) / "checkpoint.pth"
    for epoch in range(EPOCHS):  # every epoch in a new process, so to speak
        model, opt, scheduler = build(device)
        scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        parts = {"model": model, "opt": opt, "scheduler": scheduler, "average": average}
        if epoch:
            saved = torch.load(path, map_location=device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(saved[name])
        train_one_epoch(model, opt, scaler, average, epoch, device)
        scheduler.step()
        torch.save({name: part.state_dict() for name, part in parts.items()}, path)
    opt.apply_masks(average)
    print(f"sparsity {opt.sparsity:.1%} after {opt.steps} steps and {opt.updates} updates")
    return opt


if __name__ == "__main__":
    main()
