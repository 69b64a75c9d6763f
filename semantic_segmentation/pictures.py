"""Pictures for VisualDL: images with their labels and predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import paddle
from paddleseg.core import infer

from common.pictures.drawing import overlay, palette, present_classes, side_by_side, with_legend
from semantic_segmentation.images import as_picture

__all__ = ["labeled_images", "original_image", "prediction_beside_truth"]

_SMALL = 320  # pixels; an image whose longer side is shorter is enlarged, or the texts would be small on a page


def original_image(
    image: paddle.Tensor, trans_info: Sequence, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Undo PaddleSeg's resizing, padding and ``Normalize``, and make a picture of the image.

    Args:
        image: float32 [1, channels, H, W].
        trans_info: record of resizing and padding by PaddleSeg's transforms.
        mean, std: of ``Normalize``.

    Returns:
        RGB uint8 [h, w, 3], see :func:`semantic_segmentation.images.as_picture`.
    """
    image = infer.reverse_transform(image, trans_info, mode="bilinear")
    values = image[0].numpy().transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return as_picture(values)


def prediction_beside_truth(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Draw the image, the prediction and the ground truth side by side, with a legend of the classes that occur.

    Args:
        image: RGB uint8 [h, w, 3].
        label, prediction: integers [h, w]; ignored pixels show the image.
        names: of all classes.

    Returns:
        RGB uint8; an image whose longer side has less than 320 pixels is enlarged by an integer.
    """
    colors = palette(len(names))
    panels = [image, overlay(image, prediction, colors), overlay(image, label, colors)]
    scale = math.ceil(_SMALL / max(image.shape[:2]))
    panels = [panel.repeat(scale, axis=0).repeat(scale, axis=1) for panel in panels]
    row = side_by_side(panels, ["image", "prediction", "ground truth"])
    return _with_present_classes(row, [prediction, label], names)


def labeled_images(images: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Draw images side by side, overlaid with their labels, with a legend of the classes that occur.

    Args:
        images: RGB uint8 [h, w, 3] each.
        labels: integers [h, w]; ignored pixels show the image.
        names: of all classes.

    Returns:
        RGB uint8.
    """
    panels = [overlay(image, label, palette(len(names))) for image, label in zip(images, labels, strict=True)]
    row = side_by_side(panels, [f"image {number + 1}" for number in range(len(panels))])
    return _with_present_classes(row, labels, names)


def _with_present_classes(picture: np.ndarray, labels: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    present = present_classes(*labels, classes=len(names))
    return with_legend(picture, [names[number] for number in present], palette(len(names))[present])
