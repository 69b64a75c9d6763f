"""Pictures of a validation image: what the model says beside what is true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddleseg.core import infer

from common.pictures.drawing import original_pixels, overlay, palette, present_classes, side_by_side, with_legend

__all__ = ["labelled_images", "original_image", "prediction_beside_truth"]


def original_image(
    image: paddle.Tensor, trans_info: Sequence, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """Undo PaddleSeg's resizing, padding and ``Normalize``.

    Args:
        image: float32 [1, 3, H, W].
        trans_info: what the transforms noted of resizing and padding.
        mean, std: of the three channels, for values from 0 to 1.

    Returns:
        RGB uint8 [h, w, 3].
    """
    image = infer.reverse_transform(image, trans_info, mode="bilinear")
    return original_pixels(image[0].numpy(), mean, std)


def prediction_beside_truth(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, names: Sequence[str], opacity: float = 0.5
) -> np.ndarray:
    """The image, the prediction and the truth, with a legend of the classes in the latter two.

    Args:
        image: RGB uint8 [h, w, 3].
        label, prediction: integers [h, w]; pixels labelled with no class show the image.
        names: of all classes.

    Returns:
        RGB uint8.
    """
    colours = palette(len(names))
    panels = [image, overlay(image, prediction, colours, opacity), overlay(image, label, colours, opacity)]
    present = present_classes(prediction, label, classes=len(names))
    row = side_by_side(panels, ["image", "prediction", "truth"])
    return with_legend(row, [names[number] for number in present], colours[present])


def labelled_images(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], names: Sequence[str], opacity: float = 0.5
) -> np.ndarray:
    """Images side by side, painted with their labels, with a legend of the classes.

    Args:
        images: RGB uint8 [h, w, 3] each.
        labels: integers [h, w]; pixels labelled with no class show the image.
        names: of all classes.

    Returns:
        RGB uint8.
    """
    colours = palette(len(names))
    panels = [overlay(image, label, colours, opacity) for image, label in zip(images, labels, strict=True)]
    present = present_classes(*labels, classes=len(names))
    row = side_by_side(panels, [f"image {number + 1}" for number in range(len(panels))])
    return with_legend(row, [names[number] for number in present], colours[present])
