"""Made-up clips of a square that moves right or down, in place of UCF101's files."""

import torch
from torch.utils.data import DataLoader, TensorDataset


def clips(number, seed):
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (number,), generator=source)
    videos = 0.1 * torch.randn(number, 3, 8, 12, 12, generator=source)
    for video, label in zip(videos, labels.tolist(), strict=True):
        for frame in range(8):
            row, column = (frame, 4) if label else (4, frame)
            video[:, frame, row : row + 3, column : column + 3] += 1.0
    return TensorDataset(videos, labels)


def loaders(options, epoch):
    source = torch.Generator().manual_seed(options.seed + epoch)
    size = options.train_batch_size
    train = DataLoader(clips(24, 1), batch_size=size, shuffle=True, generator=source)
    return train, DataLoader(clips(8, 2), batch_size=2 * size)
