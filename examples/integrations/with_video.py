"""A 3-D convolutional network for video: Conv3d layers are sparse like any others.

    python examples/integrations/with_video.py

Trains a small network on made-up clips of moving squares. Prints the layers with their densities;
seconds on a CPU.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sparseopt import SparseOptimizer


def clips(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares that move right (0) or down (1), over 4 frames of 12 x 12 pixels."""
    down = torch.randint(2, (number,))
    video = torch.zeros(number, 1, 4, 12, 12)
    for clip, way in enumerate(down.tolist()):
        for frame in range(4):
            row, column = (2 * frame, 4) if way else (4, 2 * frame)
            video[clip, 0, frame, row : row + 3, column : column + 3] = 1.0
    return video + 0.1 * torch.randn_like(video), down


def main() -> SparseOptimizer:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv3d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv3d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool3d((4, 3, 3)), nn.Flatten(), nn.Linear(16 * 36, 2),
    )  # fmt: skip
    opt = torch.optim.Adam(model.parameters(), lr=3e-3)
    # The only new line.
    opt = SparseOptimizer(
        opt, algo="mest_g", sparsity=0.8, total_steps=40, update_every=5, model=model
    )
    for _ in range(40):
        videos, labels = clips(8)
        opt.zero_grad()
        loss = cross_entropy(model(videos), labels)
        loss.backward()
        opt.step()
    print(opt.summary())
    print(f"loss {loss.item():.3f}")
    return opt


if __name__ == "__main__":
    main()
