"""The model to look at, and how an image gets in front of it."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import Tensor

from common.data.image_file import read_image
from common.errors import UserError
from common.inference.exported_model import refuse_exported
from common.pale_transformer import STRIDE, create_model
from common.runtime.device import select_device
from tools.predict import open_weights
from tools.visualizing.gradients import backbone_of
from tools.visualizing.subject import Subject

__all__ = ["open_model"]


def open_model(arguments: Namespace) -> tuple[str | None, Callable[[str], Subject]]:
    """The task of the model, and what puts an image in front of it.

    Raises:
        UserError: there is no such model, or it has no Pale Transformer; the second result raises it for an image that
            cannot be read, and for a pixel outside of it.
    """
    if arguments.variant:
        task, model, names, preprocess = None, *_untrained(arguments)
    else:
        refuse_exported(arguments.pretrained)
        task, predictor, _ = open_weights(arguments)
        model, names, preprocess = predictor.model, predictor.class_names, predictor.preprocess
    backbone_of(model)

    def look(file: str) -> Subject:
        images, picture = preprocess(file)
        height, width = picture.shape[:2]
        pixel = arguments.at or (width / 2, height / 2)
        if not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
            raise UserError(f"-at {pixel[0]} {pixel[1]} is outside of {file}, of which the model sees {width}x{height}")
        return Subject(model, images, picture, tuple(pixel), names)

    return task, look


def _untrained(arguments: Namespace) -> tuple[Any, list[str], Callable]:
    select_device(arguments.device or "")
    paddle.seed(0)
    try:
        model = create_model(arguments.variant, num_classes=0)
    except ValueError as error:
        raise UserError(str(error)) from error
    model.eval()

    def preprocess(file: str) -> tuple[Tensor, np.ndarray]:
        picture = read_image(file)
        if picture is None or min(picture.shape[:2]) < STRIDE:
            raise UserError(f"{file} is no image of 32x32 pixels or more")
        normalised = (picture / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
        return paddle.to_tensor(normalised.transpose(2, 0, 1)[None]), picture

    return model, [], preprocess
