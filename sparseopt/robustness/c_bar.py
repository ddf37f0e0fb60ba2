"""The ten corruptions of ImageNet-C-bar, perceptually unlike the nineteen common ones."""

from __future__ import annotations

C_BAR: tuple[str, ...] = (
    "blue_noise_sample",
    "brownish_noise",
    "caustic_refraction",
    "checkerboard_cutout",
    "cocentric_sine_waves",
    "inverse_sparkles",
    "perlin_noise",
    "plasma_noise",
    "single_frequency_greyscale",
    "sparkles",
)
"""Names of ImageNet-C-bar (Mintun et al., 2021), in the paper's order."""

CIFAR_C_BAR: tuple[str, ...] = (
    "blue_noise_sample",
    "brownish_noise",
    "checkerboard_cutout",
    "inverse_sparkles",
    "pinch_and_twirl",
    "ripple",
    "circular_motion_blur",
    "lines",
    "sparkles",
    "transverse_chromatic_abberation",
)
"""Names of CIFAR-10-C-bar; read by `CIFARC`, five of them are not generated here."""
