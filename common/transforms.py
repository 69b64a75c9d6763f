"""The transform that makes an image the input of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from .data.preprocessing import EvalTransform, to_rgb
from .pale_transformer import PaleTransformer

__all__ = ["transforms_for"]


def transforms_for(model: PaleTransformer) -> EvalTransform:
    """The evaluation transform of the launchers, with the settings of ``model.default_cfg``.

    It applies the EXIF orientation, as the launchers do when they read a file. ``create_model(..., image_size=N)``
    chooses another size.

    Returns:
        A function from a Pillow image of 8 or 16 bits to float32 ``[3, size, size]``;
        ``paddle.to_tensor(array[None])`` is a batch of one image.

    Raises:
        ValueError: the model does not take RGB images.
    """
    if model.in_channels != 3:
        raise ValueError(f"in_channels is {model.in_channels}; the transform makes images of 3 channels")
    return _UprightTransform(model.preprocessing)


class _UprightTransform(EvalTransform):
    def __call__(self, image: Image.Image, rng: Any = None) -> np.ndarray:
        if isinstance(image, Image.Image):
            image = to_rgb(ImageOps.exif_transpose(image))
        return super().__call__(image, rng)
