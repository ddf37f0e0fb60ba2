"""How well a model holds up on corrupted images: corruptions, data sets, evaluation, reports."""

from sparseopt.robustness.corruptions import CORRUPTIONS, corrupt

__all__ = ["CORRUPTIONS", "corrupt"]
