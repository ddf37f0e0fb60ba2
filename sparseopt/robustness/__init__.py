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
from sparseopt.robustness.report import (
    ALEXNET_ERRORS,
    RobustnessReport,
    SegmentationReport,
    mean_and_std,
)
from sparseopt.robustness.segmentation import CorruptedVOC, corrupted_image
from sparseopt.robustness.sets import Corrupted, CorruptionSet
from sparseopt.robustness.three_d import (
    THREE_D,
    depth_from_disparity,
    far_focus,
    flash,
    fog_3d,
    near_focus,
    xy_motion_blur,
    z_motion_blur,
)
from sparseopt.robustness.ucf101 import CorruptedUCF101
from sparseopt.robustness.video import VIDEO, corrupt_video

__all__ = [
    "ALEXNET_ERRORS",
    "CIFARC",
    "CORRUPTIONS",
    "C_BAR",
    "Corrupted",
    "CorruptedUCF101",
    "CorruptedVOC",
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
    "VIDEO",
    "confusion_matrix",
    "corrupt",
    "corrupt_video",
    "corrupted_image",
    "depth_from_disparity",
    "evaluate",
    "far_focus",
    "flash",
    "fog_3d",
    "generate",
    "mean_and_std",
    "mean_iou",
    "near_focus",
    "pixel_accuracy",
    "xy_motion_blur",
    "z_motion_blur",
]
