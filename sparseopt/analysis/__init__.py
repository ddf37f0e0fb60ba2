"""What a trained network looks at: filters, frequencies and Grad-CAM. Tensors in, tensors out.

Plotting helpers are in `sparseopt.analysis.plotting`.
"""

from sparseopt.analysis.attention import grad_cam, highlight_area, weighted_area
from sparseopt.analysis.filters import FilterSummary, filters
from sparseopt.analysis.frequency import attenuate, radius_accuracy

__all__ = [
    "FilterSummary",
    "attenuate",
    "filters",
    "grad_cam",
    "highlight_area",
    "radius_accuracy",
    "weighted_area",
]
