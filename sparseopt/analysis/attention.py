"""Grad-CAM maps and how much of an image they highlight (Figure 19)."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparseopt.modes import device_of, evaluating


def grad_cam(
    model: nn.Module,
    layer: nn.Module | str,
    images: Tensor,
    targets: Tensor | Sequence[int] | int | None = None,
    *,
    reshape: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Where the score of a class comes from: one map per image, scaled to [0, 1].

    Activations of the layer, weighted by the mean gradient of the class score over each channel,
    summed, negative values dropped, enlarged to the image (bilinear) and scaled per image so
    that the smallest value is 0 and the largest 1. Model and gradients are left as they were.

    Args:
        model: images (N, C, H, W) to scores (N, K); evaluated in evaluation mode.
        layer: the layer, or its name in `model.named_modules()`; usually the last convolution.
        images: (N, C, H, W), as the model wants them.
        targets: class per image or one for all; the predicted class by default.
        reshape: turns the layer's output into (N, C, h, w) where it is something else (tokens).

    Returns:
        Maps (N, H, W) in [0, 1], float, on the images' device; all zero where nothing speaks
        for the class.

    Raises:
        ValueError: an unknown layer name, a layer that is not used or gives no map, or targets
            of a wrong number or out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1),
        ...                             torch.nn.Flatten(), torch.nn.Linear(4, 10))
        >>> grad_cam(model, "0", torch.rand(2, 3, 16, 16), targets=7).shape
        torch.Size([2, 16, 16])

    Source: Selvaraju et al., "Grad-CAM" (2017); Wu et al. (2024), appendix A.10.
    """
    _check_images(images)
    module = _find(model, layer) if isinstance(layer, str) else layer
    kept: list[Tensor] = []
    handle = module.register_forward_hook(_keeper(kept))
    try:
        with evaluating(model, device_of(model)), torch.enable_grad():
            scores = model(images.detach().clone().requires_grad_())
            activation = _only(kept, layer)
            score = _class_scores(scores, targets).sum()
            (gradient,) = torch.autograd.grad(score, activation, allow_unused=True)
    finally:
        handle.remove()
    if gradient is None:
        raise ValueError(f"layer {layer!r} does not lead to the scores; choose one that does")
    return _map(activation.detach(), gradient, images.shape[-2:], reshape)


def highlight_area(
    maps: Tensor, threshold: float | Sequence[float] | Tensor = 0.5, *, per_image: bool = False
) -> Tensor:
    """Share of an image that a map highlights: pixels >= threshold after scaling to [0, 1].

    Compare models on the same images, best on those that both classify correctly.

    Args:
        maps: (N, H, W) or one (H, W), any range; each is scaled to [0, 1] on its own.
        threshold: in [0, 1], or several of them.
        per_image: one share per image instead of their mean.

    Returns:
        The mean over images, a tensor without axes; with several thresholds one entry for each
        in front; with `per_image` the axis of images behind.

    Raises:
        ValueError: maps of another number of axes or without a pixel, a threshold outside [0, 1].

    Example:
        >>> import torch
        >>> maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]]])
        >>> highlight_area(maps).item()
        0.5
        >>> highlight_area(maps, [0.2, 0.9]).tolist()
        [0.75, 0.25]

    Source: Wu et al. (2024), appendix A.10.
    """
    given = torch.as_tensor(threshold, dtype=torch.float64, device=maps.device)
    levels = given.reshape(-1)
    if not bool(((levels >= 0) & (levels <= 1)).all()):
        raise ValueError(f"threshold={threshold!r} must be in [0, 1]")
    scaled = _scaled(_as_maps(maps)).double()
    shares = (scaled[None] >= levels[:, None, None, None]).double().mean(dim=(2, 3))
    shares = shares if per_image else shares.mean(dim=1)
    return shares if given.ndim else shares[0]


def weighted_area(maps: Tensor, *, per_image: bool = False) -> Tensor:
    """Mean value of the maps after scaling each to [0, 1]: an area without a threshold.

    Arguments, result and errors as for `highlight_area`.

    Example:
        >>> import torch
        >>> weighted_area(torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])).item()
        0.5
    """
    means = _scaled(_as_maps(maps)).double().mean(dim=(1, 2))
    return means if per_image else means.mean()


def _keeper(kept: list[Tensor]) -> Callable[..., Tensor | None]:
    def hook(module: nn.Module, inputs: object, output: object) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        kept.append(output)
        return output.clone()  # a following in-place ReLU must not change what we keep

    return hook


def _only(kept: list[Tensor], layer: nn.Module | str) -> Tensor:
    if len(kept) != 1:
        raise ValueError(
            f"layer {layer!r} gave {len(kept)} tensors in one pass; choose one used exactly once"
        )
    return kept[0]


def _find(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules or name == "":
        close = difflib.get_close_matches(name, modules, n=3)
        raise ValueError(f"layer={name!r} is not a module of the model; nearest: {close}")
    return modules[name]


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError("images must be a float tensor (N, C, H, W), as the model wants them")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images of shape {tuple(images.shape)} must be (N, C, H, W), N >= 1")


def _class_scores(scores: Tensor, targets: Tensor | Sequence[int] | int | None) -> Tensor:
    if not isinstance(scores, Tensor) or scores.ndim != 2:
        raise ValueError("the model must return scores (N, K)")
    count, classes = scores.shape
    if targets is None:
        chosen = scores.argmax(dim=1)
    else:
        chosen = torch.as_tensor(targets, device=scores.device).long().reshape(-1)
        chosen = chosen.expand(count) if len(chosen) == 1 else chosen
    if len(chosen) != count:
        raise ValueError(f"targets has {len(chosen)} entries for {count} images; give one each")
    if not bool(((chosen >= 0) & (chosen < classes)).all()):
        raise ValueError(f"targets={targets!r} must be classes in 0..{classes - 1}")
    return scores.gather(1, chosen[:, None])


def _map(
    activation: Tensor,
    gradient: Tensor,
    size: torch.Size,
    reshape: Callable[[Tensor], Tensor] | None,
) -> Tensor:
    if reshape is not None:
        activation, gradient = reshape(activation), reshape(gradient)
    if activation.ndim != 4:
        raise ValueError(
            f"the layer's output has shape {tuple(activation.shape)}; Grad-CAM needs "
            "(N, C, h, w): choose a convolution, or pass reshape="
        )
    weights = gradient.mean(dim=(2, 3), keepdim=True)
    maps = F.relu((weights * activation).sum(dim=1, keepdim=True))
    maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return _scaled(maps[:, 0])


def _scaled(maps: Tensor) -> Tensor:
    """Each map from 0 (its smallest value) to 1; constant maps become 0."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(high > low, (maps - low) / (high - low), torch.zeros_like(maps))


def _as_maps(maps: Tensor) -> Tensor:
    maps = maps[None] if maps.ndim == 2 else maps
    if maps.ndim != 3 or maps.numel() == 0:
        raise ValueError(f"maps of shape {tuple(maps.shape)} must be (N, H, W) or (H, W)")
    return maps if maps.is_floating_point() else maps.float()
