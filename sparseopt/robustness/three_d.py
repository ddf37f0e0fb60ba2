"""The eleven corruptions of ImageNet-3DCC."""

from __future__ import annotations

THREE_D: tuple[str, ...] = (
    "near_focus",
    "far_focus",
    "fog_3d",
    "flash",
    "color_quant",
    "low_light",
    "xy_motion_blur",
    "z_motion_blur",
    "iso_noise",
    "bit_error",
    "h265_abr",
)
"""Names of ImageNet-3DCC (Kar et al., 2022), in the paper's order."""
