"""Images as PaddleSeg's transforms take them, and as pictures, with any number of channels.

PaddleSeg reads 8 bits of one or three channels. Its ``Normalize`` divides by 255.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from paddleseg.transforms import Compose

from common.data.channel_image import read_channels
from common.errors import UserError

__all__ = ["EIGHT_BIT_TRANSFORMS", "NOT_FOR_FLOATS", "ReadAndCompose", "as_picture", "for_transforms"]

# PaddleSeg's transforms that round to 8 bits; some of them take gray or color images only.
EIGHT_BIT_TRANSFORMS = ("RandomAffine", "RandomBlur", "RandomDistort", "ScalePadding")

NOT_FOR_FLOATS = (*EIGHT_BIT_TRANSFORMS, "RandomNoise")  # which limits values to 0 to 255
_PERCENTILES = (1, 99)
_OVERSHOOT = 0.5  # of resizing, beyond 0 to 1


class ReadAndCompose(Compose):
    """PaddleSeg's transforms, after reading the image with :func:`common.data.channel_image.read_channels`.

    Args:
        transforms: of PaddleSeg.
        img_channels: of the images.
    """

    def __init__(self, transforms: list, img_channels: int):
        super().__init__(transforms, to_rgb=False, img_channels=img_channels)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Transform ``data``, whose ``img`` is the path of an image.

        Raises:
            UserError: the image cannot be read, or a transform cannot take floating-point numbers.
        """
        path = data["img"]
        pixels = read_channels(path, self.img_channels)
        if pixels.dtype.kind == "f":
            for name in (type(transform).__name__ for transform in self.transforms):
                if name in NOT_FOR_FLOATS:
                    raise UserError(f"image {path} has floating-point numbers, which {name} cannot take; remove {name}")
        return super().__call__({**data, "img": for_transforms(pixels)})


def for_transforms(pixels: np.ndarray) -> np.ndarray:
    """Scale pixels so that PaddleSeg's ``Normalize`` divides integers by their largest value, and floats by 1.

    Args:
        pixels: uint8, uint16 or float32 ``[h, w, channels]``.

    Returns:
        float32 of the same shape or, of one channel, ``[h, w]``, as PaddleSeg reads gray images.
    """
    scale = {"uint8": 1.0, "uint16": 255 / 65535}.get(pixels.dtype.name, 255.0)
    scaled = pixels.astype(np.float32) * np.float32(scale)
    return scaled[:, :, 0] if scaled.shape[2] == 1 else scaled


def as_picture(values: np.ndarray) -> np.ndarray:
    """Show the first three channels as red, green and blue, or the first of two as gray.

    Three channels, or one, from 0 to 1 are shown as they are. Of all others, each channel is stretched from the 1st to
    the 99th percentile of its values.

    Args:
        values: float ``[h, w, channels]`` or ``[h, w]``; integers are to be divided by their largest value.

    Returns:
        RGB uint8 ``[h, w, 3]``.
    """
    values = np.atleast_3d(values)
    shown = values[:, :, : 3 if values.shape[2] > 2 else 1]
    if values.shape[2] not in (1, 3) or values.min() < -_OVERSHOOT or values.max() > 1 + _OVERSHOOT:
        low, high = np.percentile(shown, _PERCENTILES, axis=(0, 1))
        shown = (shown - low) / np.maximum(high - low, np.finfo(np.float32).tiny)
    return np.broadcast_to(np.rint(255 * shown.clip(0, 1)).astype(np.uint8), (*values.shape[:2], 3)).copy()
