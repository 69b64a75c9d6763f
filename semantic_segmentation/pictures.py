"""Pictures of a validation image: what the model says beside what is true."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from common.pictures import overlay, palette, present_classes, side_by_side, with_legend

__all__ = ["denormalise", "prediction_beside_truth"]


def denormalise(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo PaddleSeg's ``Normalize``.

    Args:
        image: float32 [3, h, w].
        mean, std: of the three channels, for values from 0 to 1.

    Returns:
        RGB uint8 [h, w, 3].
    """
    pixels = image.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.rint(255 * np.clip(pixels, 0, 1)).astype(np.uint8)


def prediction_beside_truth(
    image: np.ndarray, label: np.ndarray, prediction: np.ndarray, names: Sequence[str], opacity: float = 0.5
) -> np.ndarray:
    """The image, the prediction and the truth, with a legend of the classes in the latter two.

    Args:
        image: RGB uint8 [h, w, 3]; one of another size (the transforms may resize it) is brought to the labels'.
        label, prediction: integers [H, W]; pixels labelled with no class show the image.
        names: of all classes.

    Returns:
        RGB uint8.
    """
    if image.shape[:2] != label.shape:
        image = np.asarray(Image.fromarray(image).resize(label.shape[::-1], Image.Resampling.BILINEAR))
    colours = palette(len(names))
    panels = [image, overlay(image, prediction, colours, opacity), overlay(image, label, colours, opacity)]
    present = present_classes(prediction, label, classes=len(names))
    row = side_by_side(panels, ["image", "prediction", "truth"])
    return with_legend(row, [names[number] for number in present], colours[present])
