"""From an image to logits or labels: whole, in sliding windows, at several scales and flipped.

The sliding is :func:`_slide`, for validation images and for images of any height alike; scales, flips and the way
back to the size of the original image are PaddleSeg's (``paddleseg.core.infer``).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice, pairwise
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddleseg.core import infer
from PIL import Image

from common.errors import UserError
from common.pale_transformer import STRIDE

__all__ = ["InferenceSettings", "Model", "predict_bands", "predict_labels", "predict_large", "predict_logits"]

_CHUNK = 2**26  # logits that are brought to the size of the image at once: 256 MB
MIN_SIZE = STRIDE

Model = Callable[[paddle.Tensor], Sequence[paddle.Tensor]]


@dataclass(frozen=True)
class InferenceSettings:
    """How an image goes through the model; the names and meanings are those of PaddleSeg's ``test_config``.

    Attributes:
        is_slide: average the logits of overlapping windows instead of taking the image as a whole.
        crop_size, stride: (width, height) of a window and of the steps between windows, in pixels.
        aug_eval: average the logits over ``scales`` and flips, which have no effect without it.
        scales: factors on the image's size.
        flip_horizontal, flip_vertical: also the mirrored images; both together make four.

    Raises:
        UserError: a value is impossible.
    """

    is_slide: bool = False
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    aug_eval: bool = False
    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False

    def __post_init__(self):
        for name in ("is_slide", "aug_eval", "flip_horizontal", "flip_vertical"):
            _expect(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        for name in ("crop_size", "stride"):
            value = getattr(self, name)
            _expect(value is None or _is_size(value), name, value, "two positive whole numbers, [width, height]")
            _expect(value is not None or not self.is_slide, name, value, "[width, height], as is_slide is on")
        _expect(
            isinstance(self.scales, tuple) and self.scales and all(map(_is_scale, self.scales)),
            "scales", self.scales, "one or more positive numbers",
        )  # fmt: skip
        if self.crop_size and self.stride:
            fits = all(step <= side for step, side in zip(self.stride, self.crop_size, strict=True))
            _expect(fits, "stride", self.stride, f"at most crop_size {list(self.crop_size)}, or pixels are left out")

    @classmethod
    def from_test_config(cls, test_config: Mapping[str, Any] | None, source: str = "test_config") -> InferenceSettings:
        """Read PaddleSeg's form, in which ``scales`` may be a single number; ``None`` is the whole image.

        Args:
            source: where it comes from, for messages.

        Raises:
            UserError: a key is unknown or a value impossible.
        """
        known = [field.name for field in fields(cls)]
        values = dict(test_config or {})
        for name in values:
            if name not in known:
                raise UserError(f"{source}: {name} is unknown; known are {', '.join(known)}")
        if isinstance(values.get("scales"), int | float):
            values["scales"] = (values["scales"],)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def _expect(condition: bool, name: str, value: Any, expected: str) -> None:
    if not condition:
        shown = list(value) if isinstance(value, tuple) else value
        raise UserError(f"{name} is {shown!r}; it must be {expected}")


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(side) is int and side > 0 for side in value)


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < math.inf


def predict_logits(model: Model, image: paddle.Tensor, settings: InferenceSettings) -> paddle.Tensor:
    """Logits of one image of any size.

    Args:
        model: ``model(images)`` gives a list whose first entry is the logits at the images' size; in evaluation mode.
        image: float32 [1, 3, H, W].

    Returns:
        [1, classes, H, W], float32, or float64 where windows were averaged, as PaddleSeg does.

    Raises:
        UserError: a scale leaves nothing of the image.
    """
    height, width = image.shape[2:]
    if not settings.aug_eval:
        return _logits(model, image, settings)
    for scale in settings.scales:
        if int(min(height, width) * scale + 0.5) == 0:  # as PaddleSeg rounds
            raise UserError(f"scale {scale} leaves nothing of an image of {height}x{width} pixels; remove it")
    _, logits = infer.aug_inference(
        lambda images: [_logits(model, images, settings)],
        image,
        trans_info=[],
        scales=settings.scales,
        flip_horizontal=settings.flip_horizontal,
        flip_vertical=settings.flip_vertical,
    )
    return logits


def predict_labels(
    model: Model, image: paddle.Tensor, settings: InferenceSettings, trans_info: Sequence = ()
) -> np.ndarray:
    """The most probable class of each pixel of one image; of several equally probable ones the first.

    The logits are brought back to the image's size a few classes at a time, so that its size costs memory for these
    alone; those of all classes are kept at the size that the model gave them.

    Args:
        model, image: see :func:`predict_logits`.
        trans_info: what PaddleSeg's transforms noted of resizing and padding; it is undone before the choice.

    Returns:
        [h, w] of the image before those transforms, uint8, or uint16 for more than 256 classes.
    """
    if settings.is_slide and not settings.aug_eval and not trans_info:
        height, width = image.shape[2:]
        rows = _slide(model, _tensor_reader(image), height, width, settings)
        return np.stack([_argmax(row) for row in rows])
    return _most_probable(predict_logits(model, image, settings), trans_info)


def predict_bands(
    model: Model,
    image: np.ndarray | Image.Image,
    normalise: Callable[[np.ndarray], np.ndarray],
    settings: InferenceSettings,
) -> Iterator[np.ndarray]:
    """Label an image in sliding windows, from top to bottom, in memory that does not grow with its height.

    The labels are exactly those of ``predict_labels``. What is kept is the logits of one row of windows, 8 bytes x
    classes x height of a window x width of the image.

    Args:
        model: see :func:`predict_logits`.
        image: uint8 [H, W, 3], or a Pillow image, which is read as RGB.
        normalise: turns a part of it, uint8 [h, w, 3], into the model's input, float32 [3, h, w].
        settings: with ``is_slide``, and without ``aug_eval``, which needs the image as a whole.

    Yields:
        Bands of finished rows, [rows, W], uint8, or uint16 for more than 256 classes.

    Raises:
        UserError: the settings are others.
    """
    if not settings.is_slide:
        raise UserError("is_slide is off; labelling a large image in parts needs is_slide, crop_size and stride")
    if settings.aug_eval:
        raise UserError("aug_eval is on, but scales and flips need the image as a whole; turn it off")
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected uint8 [H, W, 3], not {image.dtype} {list(image.shape)}")
        height, width = image.shape[:2]
    else:
        width, height = image.size

    def read_window(top: int, bottom: int, left: int, right: int) -> paddle.Tensor:
        if isinstance(image, np.ndarray):
            window = image[top:bottom, left:right]
        else:
            window = np.asarray(image.crop((left, top, right, bottom)).convert("RGB"))
        return paddle.to_tensor(normalise(window)[np.newaxis])

    def bands() -> Iterator[np.ndarray]:
        rows = _slide(model, read_window, height, width, settings)
        tops = _starts(height, settings.crop_size[1], settings.stride[1])
        for top, next_top in pairwise([*tops, height]):
            yield np.stack([_argmax(row) for row in islice(rows, next_top - top)])

    return bands()


def predict_large(
    model: Model,
    image: np.ndarray | Image.Image,
    normalise: Callable[[np.ndarray], np.ndarray],
    settings: InferenceSettings,
) -> np.ndarray:
    """All bands of :func:`predict_bands` as one array, [H, W]."""
    return np.concatenate(list(predict_bands(model, image, normalise, settings)))


def _logits(model: Model, image: paddle.Tensor, settings: InferenceSettings) -> paddle.Tensor:
    """[1, classes, H, W] of one image at its own scale."""
    if not settings.is_slide:
        return _forward(model, image)
    height, width = image.shape[2:]
    logits = np.empty(0)
    for y, row in enumerate(_slide(model, _tensor_reader(image), height, width, settings)):
        if y == 0:
            logits = np.empty((1, len(row), height, width))
        logits[0, :, y] = row
    return paddle.to_tensor(logits)


def _forward(model: Model, images: paddle.Tensor) -> paddle.Tensor:
    """Logits, float32 [B, classes, h, w]; the right and the bottom of what the backbone finds too small are padded.

    Zeros are the mean colour of normalised images. [A: PaddleSeg and Swin's code do not take such images]
    """
    height, width = images.shape[2:]
    if min(height, width) < MIN_SIZE:
        images = F.pad(images, [0, max(0, MIN_SIZE - width), 0, max(0, MIN_SIZE - height)])
    with paddle.no_grad():
        logits = model(images)[0]
    return logits[:, :, :height, :width].astype("float32")


def _tensor_reader(image: paddle.Tensor) -> Callable[[int, int, int, int], paddle.Tensor]:
    return lambda top, bottom, left, right: image[:, :, top:bottom, left:right]


def _slide(
    model: Model,
    read_window: Callable[[int, int, int, int], paddle.Tensor],
    height: int,
    width: int,
    settings: InferenceSettings,
) -> Iterator[np.ndarray]:
    """Yield, row by row from the top, the logits averaged over the windows, float64 [classes, width].

    The windows stand where PaddleSeg's ``slide_inference`` puts them, and each pixel's logits are added up in its
    order, so every number is the same; only it keeps the whole image's. A row is given away once no window covers it.

    Args:
        read_window: gives the model's input for top, bottom, left, right.
    """
    (window_width, window_height), (step_x, step_y) = settings.crop_size, settings.stride
    tops, lefts = _starts(height, window_height, step_y), _starts(width, window_width, step_x)
    window_width, window_height = min(window_width, width), min(window_height, height)
    across = _windows_over(width, lefts, window_width)
    down = _windows_over(height, tops, window_height)
    rows: deque[np.ndarray] = deque()  # sums of the rows from the current top
    for top, next_top in pairwise([*tops, height]):
        for left in lefts:
            window = read_window(top, top + window_height, left, left + window_width)
            logits = _forward(model, window)[0].numpy()
            rows.extend(np.zeros((len(logits), width)) for _ in range(window_height - len(rows)))
            for y, row in enumerate(rows):
                row[:, left : left + window_width] += logits[:, y]
        for y in range(top, next_top):
            row = rows.popleft()
            row /= down[y] * across
            yield row


def _starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along one axis: every ``stride``, the last one moved back to end with the image."""
    return [*range(0, length - window, stride), max(length - window, 0)]


def _windows_over(length: int, starts: Sequence[int], window: int) -> np.ndarray:
    """How many windows cover each position: int64 [length]."""
    counts = np.zeros(length, np.int64)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _most_probable(logits: paddle.Tensor, trans_info: Sequence) -> np.ndarray:
    """Undo the transforms for a few classes at a time, and keep the first of the largest so far, and its value.

    Args:
        logits: [1, classes, H, W].

    Returns:
        As :func:`_argmax`.
    """
    classes = logits.shape[1]
    pixels = max(math.prod(size[:2]) for size in (logits.shape[2:], *(size for _, size in trans_info)))
    step = min(max(1, _CHUNK // pixels), classes)
    highest = labels = None
    for first in range(0, classes, step):
        part = infer.reverse_transform(logits[:, first : first + step], trans_info, mode="bilinear")[0]
        value, label = part.max(axis=0), part.argmax(axis=0, dtype="int32") + first
        if labels is not None:
            higher = value > highest
            value, label = paddle.where(higher, value, highest), paddle.where(higher, label, labels)
        highest, labels = value, label
    return _narrow(labels.numpy(), classes)


def _argmax(logits: np.ndarray) -> np.ndarray:
    """The first of the largest along the classes, which come first; uint8, or uint16 for more than 256 classes."""
    return _narrow(np.argmax(logits, axis=0), len(logits))


def _narrow(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels.astype(np.uint8 if classes <= 256 else np.uint16)
