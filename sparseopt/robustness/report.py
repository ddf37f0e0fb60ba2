"""What an evaluation found: accuracy per corruption and severity, and what follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from sparseopt.robustness.corruptions import CORRUPTIONS

Table = dict[str, dict[int, float]]

ALEXNET_ERRORS: dict[str, float] = dict(
    zip(
        CORRUPTIONS[:15],
        (0.886428, 0.894468, 0.922640, 0.819880, 0.826268, 0.785948, 0.798360, 0.866816,
         0.826572, 0.819324, 0.564592, 0.853204, 0.646056, 0.717840, 0.606500),
        strict=True,
    )
)  # fmt: skip
"""AlexNet's error on ImageNet-C, mean over severities: the published denominators of mCE."""

ALEXNET_CLEAN_ERROR = 0.4345


@dataclass(frozen=True)
class RobustnessReport:
    """Accuracy, in [0, 1], per corruption and severity.

    Attributes:
        dataset: name of the set; a baseline must have the same.
        accuracy: `accuracy[corruption][severity]`.
        counts: images (or pixels) behind each of these.
        clean_accuracy: accuracy on the clean images, or None.
        clean_count: images behind it.
        metric: what the numbers are: "accuracy", "pixel accuracy" or "mIoU".

    Example:
        >>> table = {"fog": {1: 0.8, 2: 0.6}, "snow": {1: 0.5, 2: 0.3}}
        >>> dense = RobustnessReport("toy", table, clean_accuracy=0.9)
        >>> round(dense.mean, 3), dense.per_corruption["fog"]
        (0.55, 0.7)
    """

    dataset: str
    accuracy: Table
    counts: dict[str, dict[int, int]] = field(default_factory=dict)
    clean_accuracy: float | None = None
    clean_count: int = 0
    metric: str = "accuracy"

    @property
    def corruptions(self) -> tuple[str, ...]:
        """Corruptions in the order they were evaluated."""
        return tuple(self.accuracy)

    @property
    def severities(self) -> tuple[int, ...]:
        """All severities, ascending."""
        return tuple(sorted({level for row in self.accuracy.values() for level in row}))

    @property
    def per_corruption(self) -> dict[str, float]:
        """Mean over severities."""
        return {name: fmean(row.values()) for name, row in self.accuracy.items()}

    @property
    def per_severity(self) -> dict[int, float]:
        """Mean over corruptions."""
        return {
            level: fmean(row[level] for row in self.accuracy.values() if level in row)
            for level in self.severities
        }

    @property
    def mean(self) -> float:
        """Robustness accuracy: mean over corruptions of the mean over severities."""
        return fmean(self.per_corruption.values())

    @property
    def robustness_accuracy(self) -> float:
        """The same as `mean`, in the paper's words."""
        return self.mean

    def relative_gain(self, baseline: RobustnessReport) -> Table:
        """(accuracy - baseline) / baseline for every corruption and severity (Figures 10-15).

        Args:
            baseline: a report on the same set; it may know more corruptions.

        Returns:
            Gains by corruption and severity, 0.1 being 10 %; nan where the baseline is 0.

        Raises:
            ValueError: a baseline of another set.

        Example:
            >>> dense = RobustnessReport("toy", {"fog": {1: 0.8}})
            >>> gain = RobustnessReport("toy", {"fog": {1: 0.88}}).relative_gain(dense)
            >>> round(gain["fog"][1], 3)
            0.1
        """
        self._check_same_set(baseline)
        return {
            name: {
                level: _gain(value, baseline.accuracy[name][level]) for level, value in row.items()
            }
            for name, row in self.accuracy.items()
        }

    def mce(self, baseline: RobustnessReport | Mapping[str, float] | str) -> float:
        """Mean corruption error relative to a baseline, in [0, ∞); 1 is the baseline itself.

        Errors are summed over severities before the division (Hendrycks & Dietterich, 2019), and
        averaged over the corruptions of mCE, the first 15, as far as they were evaluated; nan where
        an error of the baseline is 0.

        Args:
            baseline: a report on the same set, a mapping corruption → mean error, or "alexnet"
                for the published ImageNet-C denominators.

        Raises:
            ValueError: a baseline of another set, or one that lacks a corruption.
        """
        return fmean(self.corruption_errors(baseline).values())

    def corruption_errors(
        self, baseline: RobustnessReport | Mapping[str, float] | str
    ) -> dict[str, float]:
        """CE of each corruption: its error over the baseline's; `mce` is their mean.

        Raises:
            ValueError: as `mce`.
        """
        reference = self._baseline_errors(baseline)
        errors = {name: 1 - value for name, value in self.per_corruption.items()}
        return {name: _ratio(errors[name], reference[name]) for name in self._compared(reference)}

    def relative_mce(self, baseline: RobustnessReport | str) -> float:
        """Mean over corruptions of the rise of the error over clean, relative to the baseline.

        Args:
            baseline: a report on the same set with its clean accuracy, or "alexnet".

        Raises:
            ValueError: as `mce`, or where a report has no clean accuracy.
        """
        reference = self._baseline_errors(baseline)
        clean = ALEXNET_CLEAN_ERROR if isinstance(baseline, str) else _clean_error(baseline)
        own = _clean_error(self)
        rises = {name: 1 - value - own for name, value in self.per_corruption.items()}
        return fmean(
            _ratio(rises[name], reference[name] - clean) for name in self._compared(reference)
        )

    def _compared(self, reference: Mapping[str, float]) -> list[str]:
        """The corruptions of mCE that were evaluated; all that were if none is one of these."""
        names = [name for name in CORRUPTIONS[:15] if name in self.accuracy] or [*self.accuracy]
        missing = [name for name in names if name not in reference]
        if missing:
            raise ValueError(
                f"baseline has no error for {', '.join(missing)}; it has {', '.join(reference)}"
            )
        return names

    def _baseline_errors(
        self, baseline: RobustnessReport | Mapping[str, float] | str
    ) -> Mapping[str, float]:
        if isinstance(baseline, RobustnessReport):
            self._check_same_set(baseline)
            return {name: 1 - value for name, value in baseline.per_corruption.items()}
        if isinstance(baseline, str):
            if baseline != "alexnet":
                raise ValueError(f"baseline={baseline!r} must be a report, a mapping or 'alexnet'")
            return ALEXNET_ERRORS
        return baseline

    def _check_same_set(self, baseline: RobustnessReport) -> None:
        """Raise ValueError unless the baseline was evaluated on the same set, or more of it."""
        if not isinstance(baseline, RobustnessReport):
            raise TypeError(f"baseline must be a RobustnessReport, not {type(baseline).__name__}")
        for what in ("dataset", "metric"):
            own, other = getattr(self, what), getattr(baseline, what)
            if own and other and own != other:
                raise ValueError(
                    f"baseline is of another set: its {what} is {other!r}, here it is {own!r}; "
                    "evaluate both models on the same data"
                )
        for name, row in self.accuracy.items():
            if set(row) != set(baseline.accuracy.get(name, {})):
                raise ValueError(
                    f"baseline is of another set: it has severities "
                    f"{sorted(baseline.accuracy.get(name, {}))} of {name!r}, here {sorted(row)}"
                )
            own, other = self.counts.get(name), baseline.counts.get(name)
            if own and other and own != other:
                raise ValueError(
                    f"baseline is of another set: its counts by severity of {name!r} are {other}, "
                    f"here {own}; evaluate both models on the same data"
                )

    def plot(self, baseline: RobustnessReport | None = None, ax: Any = None) -> Any:
        """Heat map of severity × corruption: accuracy, or relative gain over a baseline.

        Args:
            baseline: a report on the same set; with it, the map of Figures 10-15.
            ax: a Matplotlib axes to draw on; a new figure by default.

        Returns:
            The Matplotlib axes.
        """
        from sparseopt.robustness.plotting import heat_map

        return heat_map(self, baseline, ax)

    def to_dict(self) -> dict[str, Any]:
        """Plain data: fields and the averages."""
        return {**asdict(self), "mean": self.mean, "per_corruption": self.per_corruption}

    def to_json(self, path: str | Path | None = None) -> str:
        """The report as JSON text, also written to `path` if given."""
        text = json.dumps(_plain(self.to_dict()), indent=2)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    @classmethod
    def from_json(cls, source: str | Path) -> RobustnessReport:
        """The report back from `to_json`: a path, or the text itself."""
        is_text = isinstance(source, str) and source.lstrip().startswith("{")
        data = json.loads(str(source) if is_text else Path(source).read_text())
        data["accuracy"], data["counts"] = _int_keys(data["accuracy"]), _int_keys(data["counts"])
        return cls(**{key: data[key] for key in cls.__dataclass_fields__})

    def __str__(self) -> str:
        """A table in percent."""
        levels = self.severities
        width = max(len(name) for name in (*self.corruptions, self.dataset, "mean"))
        lines = [_row(self.dataset, [f"S{level}" for level in levels] + ["mean"], width)]
        for name, row in self.accuracy.items():
            values = [row.get(level, math.nan) for level in levels]
            lines.append(_percent_row(name, [*values, fmean(row.values())], width))
        means = list(self.per_severity.values())
        lines.append(_percent_row("mean", [*means, self.mean], width))
        if self.clean_accuracy is not None:
            lines.append(f"{self.metric} in %, clean {100 * self.clean_accuracy:.2f}")
        return "\n".join(lines)


@dataclass(frozen=True)
class SegmentationReport:
    """Pixel accuracy and mean intersection over union, each a `RobustnessReport`."""

    pixel_accuracy: RobustnessReport
    mean_iou: RobustnessReport

    def to_json(self, path: str | Path | None = None) -> str:
        """Both reports as one JSON text, also written to `path` if given."""
        both = {"pixel_accuracy": self.pixel_accuracy, "mean_iou": self.mean_iou}
        data = {name: _plain(report.to_dict()) for name, report in both.items()}
        text = json.dumps(data, indent=2)
        if path is not None:
            Path(path).write_text(text + "\n")
        return text

    def __str__(self) -> str:
        return f"{self.pixel_accuracy}\n\n{self.mean_iou}"


def mean_and_std(reports: Sequence[RobustnessReport]) -> tuple[float, float]:
    """Robustness accuracy over seeds: mean and sample standard deviation (0 for one report).

    Args:
        reports: one per seed, at least one.

    Returns:
        Both in [0, 1], as accuracies are.

    Raises:
        ValueError: without a report.

    Example:
        >>> reports = [RobustnessReport("toy", {"fog": {1: value}}) for value in (0.5, 0.7)]
        >>> [round(number, 3) for number in mean_and_std(reports)]
        [0.6, 0.141]
    """
    if not reports:
        raise ValueError("reports is empty; give one report per seed")
    values = [report.mean for report in reports]
    mean = fmean(values)
    spread = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return mean, math.sqrt(spread)


def _gain(value: float, base: float) -> float:
    return (value - base) / base if base else math.nan


def _ratio(value: float, base: float) -> float:
    return value / base if base else math.nan


def _clean_error(report: RobustnessReport | Mapping[str, float]) -> float:
    if not isinstance(report, RobustnessReport) or report.clean_accuracy is None:
        raise ValueError("relative_mce needs clean_accuracy; evaluate(..., clean=clean_images)")
    return 1 - report.clean_accuracy


def _plain(data: Any) -> Any:
    """JSON has no nan: None instead."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    return None if isinstance(data, float) and math.isnan(data) else data


def _int_keys(table: dict[str, dict[str, Any]]) -> dict[str, dict[int, Any]]:
    return {
        name: {int(level): math.nan if value is None else value for level, value in row.items()}
        for name, row in table.items()
    }


def _row(name: str, cells: Sequence[str], width: int) -> str:
    return f"{name:<{width}}" + "".join(f"{cell:>8}" for cell in cells)


def _percent_row(name: str, values: Sequence[float], width: int) -> str:
    return _row(name, [f"{100 * value:.2f}" for value in values], width)
