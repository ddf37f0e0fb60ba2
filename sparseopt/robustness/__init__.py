"""How well a model holds up on corrupted images: corruptions, data sets, evaluation, reports.

>>> import numpy as np
>>> images = np.zeros((8, 32, 32, 3), dtype=np.uint8)
>>> corrupt(images, "snow", severity=3, scale="cifar").shape
(8, 32, 32, 3)
"""

from sparseopt.robustness.arrays import CIFARC, FashionMNISTC
from sparseopt.robustness.c_bar import C_BAR
from sparseopt.robustness.corruptions import CORRUPTIONS, corrupt
from sparseopt.robustness.evaluation import evaluate
from sparseopt.robustness.folders import (
    ImageNet3DCC,
    ImageNetC,
    ImageNetCBar,
    ImageNetR,
    ImageNetV2,
    TinyImageNetC,
)
from sparseopt.robustness.generation import generate
from sparseopt.robustness.metrics import confusion_matrix, mean_iou, pixel_accuracy
from sparseopt.robustness.report import RobustnessReport, SegmentationReport, mean_and_std
from sparseopt.robustness.sets import Corrupted, CorruptionSet
from sparseopt.robustness.three_d import THREE_D

__all__ = [
    "CIFARC",
    "CORRUPTIONS",
    "C_BAR",
    "Corrupted",
    "CorruptionSet",
    "FashionMNISTC",
    "ImageNet3DCC",
    "ImageNetC",
    "ImageNetCBar",
    "ImageNetR",
    "ImageNetV2",
    "RobustnessReport",
    "SegmentationReport",
    "THREE_D",
    "TinyImageNetC",
    "confusion_matrix",
    "corrupt",
    "evaluate",
    "generate",
    "mean_and_std",
    "mean_iou",
    "pixel_accuracy",
]
