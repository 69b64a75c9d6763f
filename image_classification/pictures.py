"""Pictures of images with their classes, for people who watch a training."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from common.pictures.drawing import side_by_side

__all__ = ["row_of_images"]

_LEAST = 128  # pixels; images whose longer side is shorter are enlarged, or their titles would not fit


def row_of_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Images side by side, each below its title; small ones are enlarged by a whole number.

    Args:
        images: RGB uint8 [h, w, 3] each.
        titles: one for each.

    Returns:
        RGB uint8.
    """
    shown = []
    for image in images:
        height, width = image.shape[:2]
        scale = -(-_LEAST // max(height, width))
        shown.append(cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_NEAREST))
    return side_by_side(shown, titles)
