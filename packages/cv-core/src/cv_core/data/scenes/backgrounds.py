"""Photographs to paste on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from cv_core.checks import check_range


def sample_photographs(
    scales: Sequence[float] = (1.0, 0.5, 0.25),
) -> list[Float32[np.ndarray, "3 h w"]]:
    """Return scikit-learn's two sample photographs (a temple, a flower) at several scales.

    Smaller scales show more of the photograph in a scene of the same size.

    Args:
        scales: Shares of the full size, 427 x 640 pixels, each in (0, 1].

    Returns:
        ``2 * len(scales)`` images in [0, 1]; the two photographs alternate.
    """
    for scale in scales:
        check_range("sample_photographs", "scales", scale, low=0.0, high=1.0, low_open=True)
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found: list[np.ndarray] = []
    for scale in scales:
        for photograph in load_sample_images().images:
            height, width = photograph.shape[:2]
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = Image.fromarray(photograph).resize(size, Image.Resampling.BOX)
            pixels = np.asarray(small, dtype=np.float32) / np.float32(255.0)
            found.append(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
    return found
