"""Pictures for VisualDL: images with their classes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from common.pictures.drawing import side_by_side

__all__ = ["row_of_images"]

_MIN_SIDE = 128  # pixels; images whose longer side is shorter are enlarged, so that their titles fit


def row_of_images(images: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Draw images side by side, each below its title; small ones are enlarged by an integer factor.

    Args:
        images: RGB uint8 [h, w, 3] each.
        titles: one for each image.

    Returns:
        RGB uint8.
    """
    shown = []
    for image in images:
        height, width = image.shape[:2]
        scale = -(-_MIN_SIDE // max(height, width))
        shown.append(cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_NEAREST))
    return side_by_side(shown, titles)
