"""How accurate a model is on every corruption and severity of a set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sparseopt.modes import device_of, evaluating
from sparseopt.robustness._extras import progress_bar
from sparseopt.robustness.metrics import confusion_matrix, mean_iou, pixel_accuracy
from sparseopt.robustness.report import RobustnessReport, SegmentationReport
from sparseopt.robustness.sets import CorruptionSet, Key

Parts = Mapping[Any, Any]


def evaluate(
    model: nn.Module,
    datasets: CorruptionSet | Parts,
    *,
    clean: Any = None,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str | None = None,
    num_classes: int | None = None,
    progress: bool = True,
    name: str | None = None,
) -> Any:
    """Accuracy of a model on every part of a corruption set.

    The model is put in evaluation mode while it is measured and left as it was found.

    Args:
        model: takes a batch of images and returns (N, K) scores, or (N, K, H, W) for
            segmentation (a mapping with the key "out", as torchvision returns it, will do).
        datasets: a corruption set such as `CIFARC(root)`, or a mapping whose keys are
            (corruption, severity), or corruption → {severity: data}; data are data sets of
            (image, target) or loaders of batches.
        clean: the clean test data, a data set or a loader; gives `clean_accuracy`.
        batch_size, workers: of the loaders made here.
        device: where to run; the model's own device by default.
        num_classes: outputs that the model must have; by default what the set says.
        progress: show a bar where tqdm is installed.
        name: the name of the set in the report.

    Returns:
        A `RobustnessReport`; a `SegmentationReport` for a segmentation set.

    Raises:
        ValueError: the model's output has a wrong shape or number of classes, or there is
            nothing to evaluate.

    Example:
        >>> import numpy as np, torch
        >>> from sparseopt.robustness import Corrupted
        >>> images = np.zeros((6, 32, 32, 3), dtype=np.uint8)
        >>> data = Corrupted(images, [0] * 6, scale="cifar", corruption="contrast")
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
        >>> _ = torch.nn.init.zeros_(model[1].weight), torch.nn.init.zeros_(model[1].bias)
        >>> evaluate(model, data).mean
        1.0

    Source: Wu et al. (2024), appendix A.2 and A.4; Hendrycks & Dietterich (2019).
    """
    task = getattr(datasets, "task", "classification")
    target = torch.device(device) if device is not None else device_of(model)
    classes = num_classes or getattr(datasets, "num_classes", None)
    measure: Any = (
        _Segmentation(classes)
        if task == "segmentation"
        else _Classification(classes, getattr(datasets, "logit_indices", None))
    )
    parts = list(_parts(datasets))
    if not parts:
        raise ValueError("datasets is empty; give at least one (corruption, severity)")
    # pictures of different sizes cannot share a batch
    batch_size = batch_size if getattr(datasets, "uniform", True) else 1
    named = name or str(getattr(datasets, "name", "corruptions"))
    results: dict[Key, Any] = {}
    bar = progress_bar(len(parts) + (clean is not None), named, progress)
    with closing(bar), evaluating(model, target), torch.no_grad():
        for key, data in parts:
            bar.set_description(f"{key[0]} {key[1]}")
            results[key] = _measured(model, data, measure, target, batch_size, workers)
            bar.update()
        clean_result = None
        if clean is not None:
            clean_result = _measured(model, clean, measure, target, batch_size, workers)
            bar.update()
    return measure.report(named, results, clean_result)


def _parts(datasets: CorruptionSet | Parts) -> Iterator[tuple[Key, Any]]:
    if not isinstance(datasets, CorruptionSet | Mapping):
        raise TypeError(
            f"datasets must be a corruption set or a mapping, not {type(datasets).__name__}: "
            '{("fog", 3): data} or {"fog": {3: data}}'
        )
    for key, data in datasets.items():
        if isinstance(key, tuple) and len(key) != 2:
            raise TypeError(f"datasets has the key {key!r}; expected (corruption, severity)")
        if isinstance(key, tuple):
            yield (str(key[0]), int(key[1])), data
        elif isinstance(data, Mapping):
            yield from (((key, int(level)), part) for level, part in data.items())
        elif isinstance(data, list | tuple):
            yield from (((key, level), part) for level, part in enumerate(data, start=1))
        else:
            raise TypeError(
                f"datasets[{key!r}] is a {type(data).__name__}; expected "
                "{severity: data}, a list by severity, or keys (corruption, severity)"
            )


def _measured(
    model: nn.Module, data: Any, measure: Any, device: torch.device, batch_size: int, workers: int
) -> Any:
    """The sum of `measure` over all batches of one data set or loader."""
    total = None
    for images, targets in _batches(data, batch_size, workers):
        images, targets = images.to(device), torch.as_tensor(targets).to(device)
        result = measure(_scores(model(images)), targets)
        total = result if total is None else total + result
    if total is None:
        raise ValueError("a data set to evaluate is empty")
    return total


def _batches(data: Any, batch_size: int, workers: int) -> Iterable[Any]:
    if isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return DataLoader(data, batch_size=batch_size, num_workers=workers)
    if isinstance(data, Iterable):
        return data
    raise TypeError(f"cannot evaluate on a {type(data).__name__}; give a data set or a loader")


def _scores(output: Any) -> Tensor:
    output = output["out"] if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise TypeError(f"the model must return a tensor of scores, not {type(output).__name__}")
    return output


def _check_classes(scores: Tensor, targets: Tensor, classes: int | None) -> None:
    outputs = scores.shape[1]
    if classes is not None and outputs != classes:
        raise ValueError(
            f"the model returns {outputs} classes but the set has {classes}; "
            "use a model trained on these classes, or pass num_classes="
        )
    if not targets.numel():
        return
    lowest, highest = int(targets.min()), int(targets.max())
    if highest >= outputs:
        raise ValueError(f"the model returns {outputs} classes but labels go up to {highest}")
    if lowest < 0:
        raise ValueError(f"labels go down to {lowest}; they must be class indices from 0 on")


class _Classification:
    """Counts (correct, total) of a batch of scores (N, K)."""

    def __init__(self, classes: int | None, indices: Tensor | None) -> None:
        self.classes, self.indices = classes, indices

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        if scores.ndim != 2 or targets.shape != scores.shape[:1]:
            raise ValueError(
                f"the model returned shape {tuple(scores.shape)} for targets of shape "
                f"{tuple(targets.shape)}; expected (N, number of classes) and N class indices"
            )
        _check_classes(scores, targets, self.classes)
        correct = (self._predicted(scores) == targets).sum()
        return torch.tensor([int(correct), len(targets)], dtype=torch.int64)

    def _predicted(self, scores: Tensor) -> Tensor:
        if self.indices is None:
            return scores.argmax(dim=1)
        indices = self.indices.to(scores.device)
        return indices[scores[:, indices].argmax(dim=1)]

    def report(
        self, name: str, results: dict[Key, Tensor], clean: Tensor | None
    ) -> RobustnessReport:
        return _report(name, "accuracy", {k: _share(v) for k, v in results.items()}, clean, _share)


class _Segmentation:
    """Confusion matrix of a batch of scores (N, K, H, W); target 255 is ignored."""

    def __init__(self, classes: int | None) -> None:
        self.classes = classes

    def __call__(self, scores: Tensor, targets: Tensor) -> Tensor:
        if scores.ndim != 4 or scores.shape[2:] != targets.shape[1:]:
            raise ValueError(
                f"the model returned shape {tuple(scores.shape)} for masks of shape "
                f"{tuple(targets.shape)}; expected (N, K, H, W) at the size of the masks"
            )
        counted = targets[targets != 255]
        _check_classes(scores, counted, self.classes)
        return confusion_matrix(scores.argmax(dim=1), targets, scores.shape[1]).cpu()

    def report(
        self, name: str, results: dict[Key, Tensor], clean: Tensor | None
    ) -> SegmentationReport:
        def table(metric: str, score: Any) -> RobustnessReport:
            scored = {key: (score(m), int(m.sum())) for key, m in results.items()}
            return _report(name, metric, scored, clean, lambda m: (score(m), int(m.sum())))

        return SegmentationReport(table("pixel accuracy", pixel_accuracy), table("mIoU", mean_iou))


def _share(counts: Tensor) -> tuple[float, int]:
    correct, total = counts.tolist()
    return correct / total, total


def _report(
    name: str, metric: str, scored: dict[Key, tuple[float, int]], clean: Any, score: Any
) -> RobustnessReport:
    accuracy: dict[str, dict[int, float]] = {}
    counts: dict[str, dict[int, int]] = {}
    for (corruption, severity), (value, count) in scored.items():
        accuracy.setdefault(corruption, {})[severity] = value
        counts.setdefault(corruption, {})[severity] = count
    if clean is None:
        return RobustnessReport(name, accuracy, counts, metric=metric)
    value, count = score(clean)
    return RobustnessReport(name, accuracy, counts, value, count, metric)
