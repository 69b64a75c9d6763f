"""The model that tools/visualize.py looks at, its input, and its score of a class."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from common.data.class_names import composed
from common.data.image_file import read_image
from common.errors import UserError
from common.inference.exported_model import refuse_exported
from common.pale_transformer import STRIDE, PaleTransformer, create_model
from common.runtime.device import select_device
from tools.helpers.visualize_gradients import backbone_of
from tools.predict import open_weights

__all__ = ["Subject", "class_score", "open_model"]


@dataclass(frozen=True)
class Subject:
    """A model, one image, and the choices of the user.

    Attributes:
        task: of the model; None for a variant with random weights.
        model: is or has a Pale Transformer; in evaluation mode.
        class_names: of the model's outputs; none for a variant with random weights.
        images: the input, float32 ``[1, 3, H, W]``.
        picture: the input as a picture, RGB uint8 ``[H, W, 3]``.
        pixel: x and y of the chosen pixel.
        stages: chosen stages, from 1.
        label: chosen class, a name or a number; None for the default of :func:`class_score`.
    """

    task: str | None
    model: nn.Layer
    class_names: Sequence[str]
    images: Tensor
    picture: np.ndarray
    pixel: tuple[float, float]
    stages: Sequence[int]
    label: str | None

    @property
    def backbone(self) -> PaleTransformer:
        return backbone_of(self.model)


def open_model(arguments: Namespace) -> tuple[str | None, Callable[[str], Subject]]:
    """Load the model of ``-pretrained`` or ``-variant``.

    Returns:
        Its task, and a function from an image file to a subject, which raises UserError for a file that cannot be read
        and for a pixel outside of the image.

    Raises:
        UserError: there is no such model, or it has no Pale Transformer.
    """
    task, class_names, preprocess = None, [], _normalize
    if arguments.variant:
        select_device(arguments.device or "")
        paddle.seed(0)
        try:
            model = create_model(arguments.variant, num_classes=0)
        except ValueError as error:
            raise UserError(str(error)) from error
        model.eval()
    else:
        refuse_exported(arguments.pretrained)
        task, predictor, _ = open_weights(arguments)
        model, class_names, preprocess = predictor.model, predictor.class_names, predictor.preprocess
    backbone_of(model)

    def read(file: str) -> Subject:
        images, picture = preprocess(file)
        height, width = picture.shape[:2]
        if min(height, width) < STRIDE:
            raise UserError(f"{file} has {width}x{height} pixels; the model needs at least {STRIDE}x{STRIDE}")
        x, y = arguments.at or (width / 2, height / 2)
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f"-at {x} {y} is outside of the model's input for {file}, {width}x{height} pixels")
        return Subject(task, model, class_names, images, picture, (x, y), arguments.stages, arguments.label)

    return task, read


def _normalize(file: str) -> tuple[Tensor, np.ndarray]:
    """The input of a variant with random weights, as :meth:`common.inference.predictor.Predictor.preprocess`."""
    picture = read_image(file)
    pixels = picture.astype(np.float32) / 127.5 - 1
    return paddle.to_tensor(pixels.transpose(2, 0, 1)[None]), picture


def class_score(subject: Subject) -> tuple[str, Callable[[Tensor], Tensor]]:
    """A differentiable score of a class.

    Of a classifier it is the logit, by default of the most probable class. Of a segmenter it is the sum of the logits
    over the pixels predicted as the class (Vinogradova et al., arXiv 2002.11434), by default the class at the chosen
    pixel.

    Returns:
        The name of the class and its probability or share of the pixels, as text; and a function that runs the model
        on images and returns the scalar.

    Raises:
        UserError: there is no such class, or no pixel is predicted as it.
    """
    model, names = subject.model, subject.class_names
    with paddle.no_grad():
        output = model(subject.images)
    if subject.task == "image_classification":
        probabilities = paddle.nn.functional.softmax(output)[0]
        label = int(probabilities.argmax()) if subject.label is None else _find_label(names, subject.label)
        return f"{names[label]}, {100 * float(probabilities[label]):.1f} %", lambda images: model(images)[0, label]
    labels = output[0][0].argmax(0)
    x, y = map(int, subject.pixel)
    label = int(labels[y, x]) if subject.label is None else _find_label(names, subject.label)
    mask = (labels == label).astype("float32")
    share = float(mask.mean())
    if share == 0:
        raise UserError(f"no pixel is predicted as {names[label]}; choose another -label")
    text = f"{names[label]}, {100 * share:.1f} % of the pixels"
    return text, lambda images: (model(images)[0][0, label] * mask).sum()


def _find_label(names: Sequence[str], chosen: str) -> int:
    if composed(chosen) in names:
        return list(names).index(composed(chosen))
    if chosen.isdecimal() and int(chosen) < len(names):
        return int(chosen)
    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"-label {chosen} is not a class; the classes are {known}")
