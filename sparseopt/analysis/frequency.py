"""Accuracy on images without their high or without their low frequencies (Figure 18)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparseopt.modes import device_of, evaluating

KEEP = ("low", "high")


def attenuate(images: Tensor, radius: float, keep: str = "low") -> Tensor:
    """Images with only the frequencies inside, or only those outside, a circle.

    Per channel: 2-D Fourier transform, Euclidean distance d from zero frequency in cycles per
    image, keep d <= radius ("low": high-frequency attenuation) or d > radius ("high":
    low-frequency attenuation), transform back, clip to [0, 1]. Keeping "high" removes the mean,
    so dark images result. The paper leaves open what happens to the mean and to values outside
    [0, 1]; these two choices are ours.

    Args:
        images: float (..., H, W) with values in [0, 1], before any normalisation.
        radius: cycles per image, >= 0. From half the diagonal of the image on, "low" keeps all.
        keep: "low" or "high".

    Returns:
        Images of the same shape, dtype and device, in [0, 1].

    Raises:
        TypeError: images are not a floating-point tensor.
        ValueError: values outside [0, 1], fewer than two axes, a negative radius, unknown `keep`.

    Example:
        >>> import torch
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.allclose(attenuate(images, 6), images, atol=1e-5)
        True
        >>> attenuate(images, 0).std(dim=(2, 3)).max().item() < 1e-6    # only the mean is left
        True

    Source: Wu et al. (2024), section 5.2 and appendix A.5.
    """
    _check(images, radius, keep)
    if not images.numel():
        return images.clone()
    height, width = images.shape[-2:]
    kept = _within(height, width, radius, images.device)
    kept = kept if keep == "low" else ~kept
    exact = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
    spectrum = torch.fft.rfft2(exact.contiguous()) * kept  # MKL of older torch refuses views
    return torch.fft.irfft2(spectrum, s=(height, width)).clamp(0, 1).to(images.dtype)


def radius_accuracy(
    model: nn.Module,
    data: Any,
    radii: Sequence[float],
    keep: str = "low",
    *,
    normalize: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
) -> Tensor:
    """The radius-accuracy curve: top-1 accuracy on attenuated images, for every radius.

    Args:
        model: images (N, C, H, W) to scores (N, K); measured in evaluation mode, then restored.
        data: data set of (image in [0, 1], label), or a loader of such batches.
        radii: cycles per image, see `attenuate`.
        keep: "low" or "high".
        normalize: applied to the attenuated images before the model sees them.
        batch_size: of the loader made here.
        device: where to run; the model's own by default.

    Returns:
        Accuracy in [0, 1], float64 (len(radii),).

    Raises:
        TypeError, ValueError: as `attenuate`; also for data without an image, and for labels that
            are not one class index per image.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
        >>> data = torch.utils.data.TensorDataset(torch.rand(6, 1, 8, 8), torch.zeros(6).long())
        >>> radius_accuracy(model, data, radii=[0, 2, 6]).shape
        torch.Size([3])
    """
    target = torch.device(device) if device is not None else device_of(model)
    correct, total = torch.zeros(len(radii), dtype=torch.float64), 0
    loader: Iterable[Any] = (
        DataLoader(data, batch_size=batch_size) if isinstance(data, Dataset) else data
    )
    with evaluating(model, target), torch.no_grad():
        for images, labels in loader:
            images, labels = images.to(target), labels.to(target)
            for i, radius in enumerate(radii):
                seen = attenuate(images, radius, keep)
                scores = model(normalize(seen) if normalize else seen)
                correct[i] += _correct(scores, labels)
            total += len(labels)
    if total == 0:
        raise ValueError("data is empty; give at least one image")
    return correct / total


def _correct(scores: Tensor, labels: Tensor) -> int:
    """How many of the images got their class."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} for labels of shape {tuple(labels.shape)}; "
            "expected (N, number of classes) and N class indices"
        )
    return int((scores.argmax(dim=1) == labels).sum())


def _within(height: int, width: int, radius: float, device: torch.device) -> Tensor:
    """Which entries of the half spectrum (H, W // 2 + 1) lie within the radius."""
    down = torch.fft.fftfreq(height, 1 / height, device=device, dtype=torch.float64)
    right = torch.fft.rfftfreq(width, 1 / width, device=device, dtype=torch.float64)
    return torch.hypot(down[:, None], right[None, :]) <= radius


def _check(images: Tensor, radius: float, keep: str) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor in [0, 1], not {kind}; divide by 255")
    if images.ndim < 2:
        raise ValueError(f"images of shape {tuple(images.shape)} must be (..., H, W)")
    if images.numel() and not (-1e-6 <= float(images.min()) and float(images.max()) <= 1 + 1e-6):
        raise ValueError(
            f"images go from {float(images.min()):.3g} to {float(images.max()):.3g}; they must "
            "be in [0, 1]: attenuate before normalising"
        )
    if not radius >= 0:
        raise ValueError(f"radius={radius} must be >= 0, in cycles per image")
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r} must be 'low' or 'high'")
