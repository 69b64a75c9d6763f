"""Files of images, whatever their names: OpenCV's ``imread`` opens only those whose names are UTF-8."""

from __future__ import annotations

import os

import cv2
import numpy as np

from common.errors import UserError

__all__ = ["check_name", "read_image"]


def read_image(path: str) -> np.ndarray | None:
    """Decode an image as ``cv2.imread`` does, from a file of any name.

    Returns:
        RGB uint8 [h, w, 3], or None if the file cannot be read or is no image.
    """
    try:
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    return None if pixels is None else np.ascontiguousarray(pixels[:, :, ::-1])


def check_name(path: str) -> None:
    """Refuse a name that PaddleSeg, which leaves the reading to ``cv2.imread``, cannot open, or crashes on.

    Raises:
        UserError: the name is not UTF-8.
    """
    if path.encode(errors="replace") != os.fsencode(path):
        raise UserError(f"image {path} has a name that is not UTF-8, which PaddleSeg cannot read; rename it")
