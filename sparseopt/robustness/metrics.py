"""Pixel accuracy and mean intersection over union, from a confusion matrix of the whole set."""

from __future__ import annotations

import torch
from torch import Tensor


def confusion_matrix(
    predictions: Tensor, targets: Tensor, num_classes: int, ignore_index: int | None = 255
) -> Tensor:
    """How often target class i (row) was predicted as j (column): int64 (K, K).

    Args:
        predictions: class indices, any shape.
        targets: class indices of the same shape.
        num_classes: K.
        ignore_index: target value that is not counted (255, "void", in Pascal VOC).

    Raises:
        ValueError: shapes that differ, or values that are no class index.

    Example:
        >>> import torch
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2)
        tensor([[1, 1],
                [0, 0]])
    """
    if predictions.shape != targets.shape:
        raise ValueError(
            f"predictions of shape {tuple(predictions.shape)} and targets of shape "
            f"{tuple(targets.shape)} must be equal in shape"
        )
    counted = torch.ones_like(targets, dtype=torch.bool)
    if ignore_index is not None:
        counted = targets != ignore_index
    truth, guess = targets[counted].long(), predictions[counted].long()
    for name, values in (("predictions", guess), ("targets", truth)):
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < num_classes:
            raise ValueError(
                f"{name} go from {int(values.min())} to {int(values.max())}; they must be class "
                f"indices below num_classes={num_classes}"
                + (f", or {ignore_index} to be ignored" if ignore_index is not None else "")
            )
    counts = torch.bincount(truth * num_classes + guess, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)


def pixel_accuracy(matrix: Tensor) -> float:
    """Share of pixels given their class, in [0, 1]; nan where nothing was counted.

    Args:
        matrix: from `confusion_matrix`, (K, K).

    Example:
        >>> import torch
        >>> pixel_accuracy(torch.tensor([[3, 1], [0, 4]]))
        0.875
    """
    return float(matrix.diagonal().sum().double() / matrix.sum())


def mean_iou(matrix: Tensor) -> float:
    """Intersection over union, mean over the classes that occur in targets or predictions.

    Args:
        matrix: from `confusion_matrix`, (K, K).

    Returns:
        A number in [0, 1]; nan where nothing was counted.

    Example:
        >>> import torch
        >>> round(mean_iou(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]])), 3)
        0.775

    Source: Everingham et al., "The Pascal Visual Object Classes (VOC) Challenge" (2010).
    """
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    present = union > 0
    return float((matrix.diagonal()[present].double() / union[present]).mean())
