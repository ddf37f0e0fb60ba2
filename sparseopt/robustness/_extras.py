"""Optional packages, imported when first needed; a missing one names the extra to install."""

from __future__ import annotations

import importlib
from typing import Any

_PACKAGES = {
    "cv2": "opencv-python",
    "PIL.Image": "pillow",
    "matplotlib.pyplot": "matplotlib",
    "imagecorruptions": "imagecorruptions-imaug",
}


def need(module: str, purpose: str) -> Any:
    """The module, or an ImportError that says what it is for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = _PACKAGES.get(module, module)
        raise ImportError(
            f"{purpose} needs the package {package!r}: pip install sparseopt[robustness]"
        ) from error


def progress_bar(total: int, description: str, show: bool) -> Any:
    """A tqdm bar, or a silent stand-in where it is switched off or tqdm is not installed."""
    if show:
        try:
            from tqdm.auto import tqdm
        except ImportError:
            return _Silent()
        return tqdm(total=total, desc=description, leave=False)
    return _Silent()


class _Silent:
    """Takes the calls of a progress bar and draws nothing."""

    def update(self, n: int = 1) -> None:
        pass

    def set_description(self, text: str) -> None:
        pass

    def close(self) -> None:
        pass
