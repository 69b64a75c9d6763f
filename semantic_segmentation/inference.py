"""The class of every pixel of one image: whole or in sliding windows, at several scales and flipped.

``paddleseg.core.infer`` computes the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddleseg.core import infer

from common.errors import UserError
from common.pale_transformer import STRIDE
from semantic_segmentation.components import check_arguments

__all__ = ["InferenceSettings", "Model", "predict_labels", "predict_large"]

_CLASSES = 8  # whose logits are resized at once
_TILE, _MARGIN = 768, 128  # pixels

Model = Callable[[paddle.Tensor], Sequence[paddle.Tensor]]


# What has no effect without a switch, as in PaddleSeg, whose val.py has flags for the switches.
_SWITCHES = {"is_slide": ("crop_size", "stride"), "aug_eval": ("scales", "flip_horizontal", "flip_vertical")}


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of inference: the arguments of PaddleSeg's ``aug_inference``, as in its ``test_config``.

    Attributes:
        is_slide: average the logits of overlapping windows instead of taking the whole image at once.
        crop_size, stride: (width, height) of a window, and of the steps between windows, in pixels.
        aug_eval: average the logits over ``scales`` and flips, which have no effect otherwise.
        scales: factors of the image's size.
        flip_horizontal, flip_vertical: also use the mirrored images; both together give four.
    """

    is_slide: bool = False
    crop_size: Sequence[int] | None = None
    stride: Sequence[int] | None = None
    aug_eval: bool = False
    scales: Sequence[float] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False

    @classmethod
    def from_test_config(cls, test_config: Mapping[str, Any]) -> InferenceSettings:
        """Read the section ``test_config`` of a configuration, whose ``scales`` may be a single number.

        Raises:
            UserError: a key is unknown, or a value is invalid.
        """
        check_arguments(cls, test_config, "test_config")
        settings = cls(**test_config)
        if isinstance(settings.scales, int | float):
            settings = cls(**{**test_config, "scales": (settings.scales,)})
        if settings.is_slide:
            for name in ("crop_size", "stride"):
                value = getattr(settings, name)
                if not _are_positive(value, int) or len(value) != 2:
                    raise UserError(f"test_config.{name} is {value!r}; is_slide needs [width, height] in pixels")
            if any(step > side for step, side in zip(settings.stride, settings.crop_size, strict=True)):
                raise UserError(
                    f"test_config.stride is {settings.stride}; it must be at most crop_size {settings.crop_size}, or "
                    "pixels are left out"
                )
        if not _are_positive(settings.scales, int, float):
            raise UserError(f"test_config.scales is {settings.scales!r}; give one or more positive numbers")
        for switch, names in _SWITCHES.items():
            if switch not in test_config and (idle := [name for name in names if test_config.get(name)]):
                raise UserError(
                    f"test_config.{idle[0]} has no effect without {switch}: true; add it, or set it to false"
                )
        return settings


def _are_positive(values: Any, *types: type) -> bool:
    is_list = isinstance(values, list | tuple) and len(values) > 0
    return is_list and all(type(value) in types and 0 < value < math.inf for value in values)


@paddle.no_grad()
def predict_labels(
    model: Model, image: paddle.Tensor, settings: InferenceSettings, trans_info: Sequence = ()
) -> np.ndarray:
    """Predict the most probable class of each pixel of one image; of equal ones, the first.

    Args:
        model: ``model(images)`` returns a list whose first entry is the logits at the images' size; in evaluation mode.
        image: float32 [1, channels, H, W].
        settings: of the inference.
        trans_info: record of resizing and padding by PaddleSeg's transforms, which are undone.

    Returns:
        [h, w], the size before those transforms; uint8, or uint16 for more than 256 classes.
    """
    run = partial(_run_padded, model)
    windows = {"is_slide": settings.is_slide, "crop_size": settings.crop_size, "stride": settings.stride}
    if settings.aug_eval:
        flips = {"flip_horizontal": settings.flip_horizontal, "flip_vertical": settings.flip_vertical}
        _, logits = infer.aug_inference(run, image, [], settings.scales, **flips, **windows)
    else:
        logits = infer.inference(run, image, **windows)
    return _resized_argmax(logits, trans_info)


def _run_padded(model: Model, images: paddle.Tensor) -> list[paddle.Tensor]:
    """Compute float32 logits [B, classes, h, w]; images smaller than the stride of the backbone are padded.

    The padding is 0, the mean color of normalized images. [A: PaddleSeg and Swin's code do not take such images]
    """
    height, width = images.shape[2:]
    if min(height, width) < STRIDE:
        images = F.pad(images, [0, max(0, STRIDE - width), 0, max(0, STRIDE - height)])
    return [model(images)[0][:, :, :height, :width].astype("float32")]


def _resized_argmax(logits: paddle.Tensor, trans_info: Sequence) -> np.ndarray:
    """Undo the transforms and take the argmax, a few classes at a time, which saves memory."""
    classes = logits.shape[1]
    highest = labels = None
    for first in range(0, classes, _CLASSES):
        part = infer.reverse_transform(logits[:, first : first + _CLASSES], trans_info, mode="bilinear")[0]
        value, label = part.max(axis=0), part.argmax(axis=0, dtype="int32") + first
        if labels is not None:
            label = paddle.where(value > highest, label, labels)
            value = paddle.maximum(value, highest)
        highest, labels = value, label
    return labels.numpy().astype(np.min_scalar_type(classes - 1))


def predict_large(
    model: Model,
    image: np.ndarray,
    settings: InferenceSettings,
    transform: Callable[[np.ndarray], paddle.Tensor],
) -> np.ndarray:
    """Predict tile by tile, each with a margin of its surroundings, in the memory of one tile.

    Args:
        model, settings: see :func:`predict_labels`.
        image: [H, W, channels].
        transform: maps a part of the image, [h, w, channels], to the model's input, float32 [1, channels, h, w].

    Returns:
        [H, W], as :func:`predict_labels`.
    """
    rows = []
    for top in range(0, image.shape[0], _TILE):
        first_row = max(top - _MARGIN, 0)
        tiles = []
        for left in range(0, image.shape[1], _TILE):
            first_column = max(left - _MARGIN, 0)
            part = image[first_row : top + _TILE + _MARGIN, first_column : left + _TILE + _MARGIN]
            labels = predict_labels(model, transform(part), settings)
            tiles.append(labels[top - first_row :, left - first_column :][:_TILE, :_TILE])
        rows.append(np.concatenate(tiles, axis=1))
    return np.concatenate(rows)
