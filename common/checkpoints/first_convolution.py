"""The first convolution of pretrained weights, for images with another number of channels."""

from __future__ import annotations

import numpy as np
import paddle

__all__ = ["FIRST_CONVOLUTION", "adapt_channels", "is_for_other_channels"]

FIRST_CONVOLUTION = "stages.0.merging.conv"  # its name in the model


def is_for_other_channels(name: str, array: np.ndarray, tensor: paddle.Tensor) -> bool:
    """Whether an array fits the first convolution, except for the number of channels of the images."""
    if not name.endswith(f"{FIRST_CONVOLUTION}.weight") or array.dtype.kind != "f" or array.ndim != 4:
        return False
    (filters, channels, *kernel), (own_filters, own_channels, *own_kernel) = array.shape, tensor.shape
    return 0 < channels != own_channels and (filters, kernel) == (own_filters, own_kernel)


def adapt_channels(weight: np.ndarray, channels: int) -> np.ndarray:
    """Make a convolution take images with another number of channels, as timm does.

    For one channel, the old ones are summed: a gray image gives what it gave as three equal channels. Otherwise they
    are repeated, red, green, blue, red, ..., and scaled by old / new number, so that outputs keep their magnitude.

    Args:
        weight: floating-point ``[filters, old channels, height, width]``.
        channels: the new number.

    Returns:
        ``[filters, channels, height, width]`` of the same dtype.
    """
    old = weight.shape[1]
    if channels == 1:
        return weight.sum(axis=1, keepdims=True)
    return weight[:, np.arange(channels) % old] * weight.dtype.type(old / channels)
