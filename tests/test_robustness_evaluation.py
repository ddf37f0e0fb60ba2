"""`evaluate` counts right and leaves the model alone; reports compute the published figures."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparseopt.robustness import (
    CORRUPTIONS,
    Corrupted,
    RobustnessReport,
    confusion_matrix,
    evaluate,
    mean_and_std,
    mean_iou,
    pixel_accuracy,
)
from sparseopt.robustness.report import ALEXNET_ERRORS


class Reads(nn.Module):
    """Predicts the class written in the first pixel."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.classes, self.drop = classes, nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = x.flatten(1)[:, 0].round().long().clamp(0, self.classes - 1)
        return self.drop(nn.functional.one_hot(written, self.classes) * self.scale)


def data(written: list[int], labels: list[int]) -> TensorDataset:
    images = torch.tensor(written).float().reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return TensorDataset(images, torch.tensor(labels))


def test_accuracy_is_the_share_of_right_answers_per_part():
    parts = {("fog", 1): data([0, 1, 2, 3], [0, 1, 2, 0]), ("fog", 2): data([0, 1], [1, 1])}
    report = evaluate(Reads(), parts, batch_size=3, clean=data([2, 2], [2, 2]), progress=False)
    assert report.accuracy == {"fog": {1: 0.75, 2: 0.5}}
    assert report.counts == {"fog": {1: 4, 2: 2}}
    assert report.clean_accuracy == 1.0 and report.clean_count == 2


def test_parts_may_be_nested_lists_or_loaders():
    good, bad = data([0, 1], [0, 1]), data([0, 1], [1, 0])
    expected = {"fog": {1: 1.0, 2: 0.0}, "snow": {3: 1.0}}
    nested = {"fog": [good, bad], "snow": {3: DataLoader(good, batch_size=1)}}
    assert evaluate(Reads(), nested, progress=True).accuracy == expected
    with pytest.raises(TypeError, match=r"datasets\['fog'\] is a TensorDataset"):
        evaluate(Reads(), {"fog": good}, progress=False)
    with pytest.raises(TypeError, match="datasets must be"):
        evaluate(Reads(), good, progress=False)
    with pytest.raises(ValueError, match="datasets is empty"):
        evaluate(Reads(), {}, progress=False)


def test_the_model_is_left_as_it_was_found():
    model = nn.Sequential(Reads(), nn.Identity())
    model.train()
    model[1].eval()
    evaluate(model, {("fog", 1): data([0], [0])}, progress=False)
    assert model.training and model[0].drop.training and not model[1].training
    assert model[0].scale.grad is None


def test_the_model_is_left_as_it_was_found_after_an_error_too():
    model = Reads().train()
    with pytest.raises(ValueError):
        evaluate(model, {("fog", 1): data([0], [7])}, progress=False)
    assert model.training


def test_a_model_that_will_not_be_evaluated_is_left_as_it_was_found():
    class Stubborn(Reads):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            if not mode:
                raise RuntimeError("no evaluation today")
            return self

    model = Stubborn()
    with pytest.raises(RuntimeError, match="no evaluation today"):
        evaluate(model, {("fog", 1): data([0], [0])}, progress=False)
    assert model.training and model.drop.training


def test_a_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="returns 4 classes but labels go up to 7"):
        evaluate(Reads(4), {("fog", 1): data([0], [7])}, progress=False)
    with pytest.raises(ValueError, match="labels go down to -1"):
        evaluate(Reads(4), {("fog", 1): data([0, 1], [1, -1])}, progress=False)
    with pytest.raises(TypeError, match=r"key \('fog',\); expected \(corruption, severity\)"):
        evaluate(Reads(4), {("fog",): data([0], [0])}, progress=False)
    with pytest.raises(ValueError, match="returns 4 classes but the set has 10"):
        evaluate(Reads(4), {("fog", 1): data([0], [0])}, num_classes=10, progress=False)
    for labels in (torch.zeros(3, 1), torch.eye(3), torch.zeros(2)):
        batches = [(torch.zeros(3, 1, 2, 2), labels)]
        with pytest.raises(ValueError, match=r"shape \(3, 4\) for targets .* N class indices"):
            evaluate(Reads(4), {("fog", 1): DataLoader(batches, batch_size=None)}, progress=False)
    with pytest.raises(ValueError, match=r"returned shape \(1, 4, 1\)"):
        model = nn.Sequential(Reads(), nn.Unflatten(1, (4, 1)))
        evaluate(model, {("fog", 1): data([0], [0])}, progress=False)


def test_only_the_outputs_a_set_names_are_compared():
    class Subset(Corrupted):
        num_classes = None
        logit_indices = torch.tensor([1, 3])

    images = np.zeros((2, 8, 8), np.uint8)
    parts = Subset(images, [1, 3], "cifar", ["contrast"], [1])

    class Model(nn.Module):
        def forward(self, x):
            return torch.tensor([[9.0, 1, 8, 0], [9, 0, 8, 1]])  # best overall: class 0

    assert evaluate(Model(), parts, progress=False).mean == 1.0


def test_three_lines_are_enough_for_any_model():
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    report = evaluate(model, Corrupted(images, range(6), scale="cifar"), progress=False)
    assert report.corruptions == CORRUPTIONS and report.severities == (1, 2, 3, 4, 5)
    assert 0 <= report.mean <= 1


@pytest.mark.slow
def test_workers_change_nothing():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16), dtype=np.uint8)
    parts = Corrupted(images, [0] * 8, "cifar", ["snow", "fog"], 3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    alone = evaluate(model, parts, progress=False, batch_size=3)
    assert evaluate(model, parts, workers=2, batch_size=2, progress=False) == alone


values = st.floats(0, 1)
tables = st.dictionaries(
    st.sampled_from(CORRUPTIONS),
    st.fixed_dictionaries({1: values, 2: values, 5: values}),
    min_size=1,
)


@settings(max_examples=50, deadline=None)
@given(tables)
def test_the_mean_is_over_severities_first_then_corruptions(table):
    report = RobustnessReport("set", table)
    expected = np.mean([np.mean(list(row.values())) for row in table.values()])
    assert report.mean == pytest.approx(expected) == report.robustness_accuracy
    assert np.mean(list(report.per_severity.values())) == pytest.approx(expected)


@settings(max_examples=50, deadline=None)
@given(tables, st.one_of(st.none(), values))
def test_json_gives_the_report_back(table, clean):
    report = RobustnessReport("set", table, {n: {1: 3, 2: 3, 5: 3} for n in table}, clean, 3)
    assert RobustnessReport.from_json(report.to_json()) == report


def test_json_is_written_to_a_path(tmp_path):
    report = RobustnessReport("set", {"fog": {1: 0.5}})
    report.to_json(tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["mean"] == 0.5
    assert RobustnessReport.from_json(tmp_path / "report.json") == report


def test_relative_gain_is_taken_level_by_level():
    dense = RobustnessReport("set", {"fog": {1: 0.8, 2: 0.4, 3: 0.0}})
    sparse = RobustnessReport("set", {"fog": {1: 0.6, 2: 0.5, 3: 0.1}})
    gain = sparse.relative_gain(dense)["fog"]
    assert gain[1] == pytest.approx(-0.25) and gain[2] == pytest.approx(0.25)
    assert math.isnan(gain[3])


def test_mce_sums_errors_over_severities_before_dividing():
    dense = RobustnessReport("set", {"fog": {1: 0.9, 2: 0.5}, "snow": {1: 0.8, 2: 0.8}})
    model = RobustnessReport("set", {"fog": {1: 0.7, 2: 0.6}, "snow": {1: 0.9, 2: 0.9}})
    assert model.mce(dense) == pytest.approx((0.7 / 0.6 + 0.2 / 0.4) / 2)
    assert dense.mce(dense) == pytest.approx(1)
    assert model.mce({"fog": 0.35, "snow": 0.1}) == pytest.approx(1)


def test_alexnet_itself_has_an_mce_of_one():
    alexnet = RobustnessReport("ImageNet-C", {n: {1: 1 - e} for n, e in ALEXNET_ERRORS.items()},
                               clean_accuracy=1 - 0.4345)  # fmt: skip
    assert alexnet.mce("alexnet") == pytest.approx(1)
    assert alexnet.relative_mce("alexnet") == pytest.approx(1)
    with pytest.raises(ValueError, match="'alexnet'"):
        alexnet.mce("resnet")


def test_mce_uses_the_first_fifteen_corruptions():
    table = {name: {1: 0.5} for name in CORRUPTIONS}
    table["saturate"] = {1: 0.0}
    report = RobustnessReport("set", table)
    assert report.mce({name: 0.5 for name in CORRUPTIONS}) == pytest.approx(1)


def test_a_baseline_of_another_set_is_refused():
    report = RobustnessReport("CIFAR-10-C", {"fog": {1: 0.5, 2: 0.5}}, {"fog": {1: 2, 2: 2}})
    for other, says in [
        (
            RobustnessReport("CIFAR-100-C", {"fog": {1: 0.5, 2: 0.5}}),
            "its dataset is 'CIFAR-100-C'",
        ),
        (RobustnessReport("CIFAR-10-C", {"fog": {1: 0.5}}), r"severities \[1\] of 'fog'"),
        (RobustnessReport("CIFAR-10-C", {"snow": {1: 0.5}}), r"severities \[\] of 'fog'"),
        (RobustnessReport("CIFAR-10-C", {"fog": {1: 1, 2: 1}}, {"fog": {1: 9, 2: 9}}), "counts"),
    ]:
        for method in (report.relative_gain, report.mce):
            with pytest.raises(ValueError, match=f"baseline is of another set: .*{says}"):
                method(other)
    with pytest.raises(TypeError, match="RobustnessReport"):
        report.relative_gain(0.5)
    with pytest.raises(ValueError, match="no error for fog"):
        report.mce({"snow": 0.4})
    with pytest.raises(ValueError, match="needs clean_accuracy"):
        report.relative_mce(report)


def test_a_baseline_may_know_more_corruptions():
    model = RobustnessReport("set", {"fog": {1: 0.6}}, {"fog": {1: 9}})
    dense = RobustnessReport(
        "set", {"snow": {1: 0.1}, "fog": {1: 0.8}}, {"snow": {1: 9}, "fog": {1: 9}}
    )
    assert model.relative_gain(dense) == {"fog": {1: pytest.approx(-0.25)}}
    assert model.mce(dense) == pytest.approx(2)


def test_published_denominators_are_not_made_up_for_other_corruptions():
    report = RobustnessReport("C-bar", {"sparkles": {1: 0.6}}, clean_accuracy=0.9)
    for method in (report.mce, report.relative_mce):
        with pytest.raises(ValueError, match="no error for sparkles; it has gaussian_noise, "):
            method("alexnet")


def test_the_printed_table_is_in_percent():
    text = str(RobustnessReport("toy", {"fog": {1: 0.5, 2: 0.25}}, clean_accuracy=0.875))
    assert "50.00   25.00   37.50" in text and "clean 87.50" in text


def test_seeds_are_summarised_by_mean_and_sample_deviation():
    reports = [RobustnessReport("toy", {"fog": {1: value}}) for value in (0.5, 0.7, 0.6)]
    assert mean_and_std(reports) == (pytest.approx(0.6), pytest.approx(0.1))
    assert mean_and_std(reports[:1]) == (0.5, 0.0)
    with pytest.raises(ValueError, match="empty"):
        mean_and_std([])


def test_plot_draws_severity_by_corruption():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    dense = RobustnessReport("toy", {"fog": {1: 0.5, 2: 0.4}, "snow": {1: 0.2, 2: 0.1}})
    ax = dense.plot()
    assert ax.images[0].get_array().shape == (2, 2)
    assert ax.images[0].get_array()[1, 0] == pytest.approx(40)
    gain = RobustnessReport("toy", {"fog": {1: 0.6, 2: 0.4}, "snow": {1: 0.1, 2: 0.1}}).plot(dense)
    assert gain.images[0].get_array()[0].tolist() == [pytest.approx(20), pytest.approx(-50)]
    assert gain.images[0].get_clim() == (pytest.approx(-50), pytest.approx(50))
    pyplot.close("all")


masks = st.integers(2, 6).flatmap(
    lambda k: st.tuples(
        st.just(k), st.lists(st.tuples(st.integers(0, k - 1), st.integers(0, k)), min_size=1)
    )
)


@settings(max_examples=20, deadline=None)
@given(masks)
def test_segmentation_metrics_agree_with_torchmetrics(case):
    metrics = pytest.importorskip("torchmetrics.classification")
    classes, pairs = case
    guess = torch.tensor([a for a, _ in pairs])
    truth = torch.tensor([255 if b == classes else b for _, b in pairs])
    if (truth == 255).all():
        return
    matrix = confusion_matrix(guess, truth, classes)
    options = {"num_classes": classes, "ignore_index": 255}
    iou = metrics.MulticlassJaccardIndex(average="macro", **options)(guess, truth)
    accuracy = metrics.MulticlassAccuracy(average="micro", **options)(guess, truth)
    assert mean_iou(matrix) == pytest.approx(float(iou), abs=1e-6)
    assert pixel_accuracy(matrix) == pytest.approx(float(accuracy), abs=1e-6)


def test_nothing_is_offered_to_be_ignored_where_nothing_is():
    with pytest.raises(ValueError, match="below num_classes=2$"):
        confusion_matrix(torch.tensor([3]), torch.tensor([0]), 2, ignore_index=None)


def test_confusion_matrix_refuses_classes_out_of_range():
    with pytest.raises(ValueError, match="targets go from 0 to 3"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, 3]), 2)
    with pytest.raises(ValueError, match="equal in shape"):
        confusion_matrix(torch.zeros(2), torch.zeros(3), 2)
