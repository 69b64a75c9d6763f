"""A model with an image in front of it: what the pictures of all tasks are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import Tensor, nn

from common.errors import UserError

__all__ = ["ClassScore", "Subject", "classification_score", "segmentation_score"]


@dataclass(frozen=True)
class Subject:
    """What is looked at.

    Attributes:
        model: is or has a Pale Transformer; in evaluation mode.
        images: float32 ``[1, 3, H, W]``.
        picture: RGB uint8 ``[H, W, 3]``, ``images`` as one sees them.
        pixel: x and y of the chosen one in it.
        class_names: of the model; empty where there are none.
    """

    model: nn.Layer
    images: Tensor
    picture: np.ndarray
    pixel: tuple[float, float]
    class_names: Sequence[str]


@dataclass(frozen=True)
class ClassScore:
    """What a model says of a class.

    Attributes:
        label, name: of the class.
        text: what the score is of, for a title.
        of: maps ``images`` to the score, a scalar that gradients can be taken of.
    """

    label: int
    name: str
    text: str
    of: Callable[[Tensor], Tensor]


def classification_score(subject: Subject, chosen: str | None) -> ClassScore:
    """The logit of a class, the most probable one unless another is chosen by name or number.

    Raises:
        UserError: there is no such class.
    """
    with paddle.no_grad():
        probabilities = paddle.nn.functional.softmax(subject.model(subject.images))[0]
    label = int(probabilities.argmax()) if chosen is None else _label_of(subject, chosen, len(probabilities))
    name = subject.class_names[label] if subject.class_names else str(label)
    text = f"{name}, {100 * float(probabilities[label]):.1f} %"
    return ClassScore(label, name, text, lambda images: subject.model(images)[0, label])


def segmentation_score(subject: Subject, chosen: str | None) -> ClassScore:
    """The sum of a class's logits over the pixels that are predicted as it (Vinogradova et al., arXiv 2002.11434).

    It is the class at the chosen pixel unless another is chosen by name or number.

    Raises:
        UserError: there is no such class, or no pixel is predicted as it.
    """
    with paddle.no_grad():
        labels = subject.model(subject.images)[0][0].argmax(0)
    x, y = map(int, subject.pixel)
    label = int(labels[y, x]) if chosen is None else _label_of(subject, chosen, len(subject.class_names))
    name, pixels = subject.class_names[label], labels == label
    share = float(pixels.astype("float32").mean())
    if share == 0:
        raise UserError(f"no pixel is predicted as {name}; choose another -label")
    mask = pixels.astype("float32")
    return ClassScore(
        label,
        name,
        f"{name}, {100 * share:.1f} % of the pixels",
        lambda images: (subject.model(images)[0][0, label] * mask).sum(),
    )


def _label_of(subject: Subject, chosen: str, classes: int) -> int:
    names = list(subject.class_names)
    if chosen in names:
        return names.index(chosen)
    if chosen.isdecimal() and int(chosen) < classes:
        return int(chosen)
    known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    raise UserError(f"-label {chosen} is no class; known are {known or f'0 to {classes - 1}'}")
