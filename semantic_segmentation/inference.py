"""Logits and labels of an image: whole or in sliding windows, at several scales and flipped.

Sliding windows are implemented here, so that memory does not grow with the height of an image. Scales, flips, and the
resizing back to the original size are those of ``paddleseg.core.infer``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddleseg.core import infer

from common.errors import UserError
from common.pale_transformer import STRIDE

__all__ = ["InferenceSettings", "Model", "predict_labels", "predict_large", "predict_logits"]

_CHUNK = 2**26  # logits that are resized at once: 256 MB

Model = Callable[[paddle.Tensor], Sequence[paddle.Tensor]]
ReadWindow = Callable[[int, int, int, int], paddle.Tensor]  # (top, bottom, left, right) -> input of the model


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of inference, with the names and meanings of PaddleSeg's ``test_config``.

    Attributes:
        is_slide: average the logits of overlapping windows instead of taking the whole image at once.
        crop_size, stride: (width, height) of a window, and of the steps between windows, in pixels.
        aug_eval: average the logits over ``scales`` and flips, which have no effect otherwise.
        scales: factors of the image's size.
        flip_horizontal, flip_vertical: also use the mirrored images; both together give four.

    Raises:
        UserError: a value is invalid.
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
            self._require(isinstance(getattr(self, name), bool), name, "true or false")
        for name in ("crop_size", "stride"):
            value = getattr(self, name)
            if value is None:
                self._require(not self.is_slide, name, "[width, height] if is_slide is true")
            else:
                is_size = isinstance(value, tuple) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
                self._require(is_size, name, "two positive integers, [width, height]")
        valid = isinstance(self.scales, tuple) and all(
            type(s) in (int, float) and 0 < s < math.inf for s in self.scales
        )
        self._require(bool(valid and self.scales), "scales", "one or more positive numbers")
        if self.crop_size and self.stride:
            fits = all(step <= side for step, side in zip(self.stride, self.crop_size, strict=True))
            self._require(fits, "stride", f"at most crop_size {list(self.crop_size)}, or pixels are left out")

    def _require(self, condition: bool, name: str, expected: str) -> None:
        value = getattr(self, name)
        if not condition:
            raise UserError(f"{name} is {list(value) if isinstance(value, tuple) else value!r}; it must be {expected}")

    @classmethod
    def from_test_config(cls, test_config: Mapping[str, Any] | None, source: str = "test_config") -> InferenceSettings:
        """Read PaddleSeg's ``test_config``, whose ``scales`` may be a single number. ``None`` gives the defaults.

        Args:
            test_config: the section of the configuration.
            source: its name, for messages.

        Raises:
            UserError: a key is unknown, or a value is invalid.
        """
        values = dict(test_config or {})
        known = [field.name for field in fields(cls)]
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{source}: {name} is unknown; known are {', '.join(known)}")
            if name == "scales" and isinstance(value, int | float):
                values[name] = (value,)
            elif isinstance(value, list):
                values[name] = tuple(value)
        try:
            return cls(**values)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error


def predict_logits(model: Model, image: paddle.Tensor, settings: InferenceSettings) -> paddle.Tensor:
    """Compute the logits of one image of any size.

    Args:
        model: ``model(images)`` returns a list whose first entry is the logits at the images' size; in evaluation mode.
        image: float32 [1, 3, H, W].
        settings: of the inference.

    Returns:
        [1, classes, H, W], float32, or float64 if windows were averaged, as in PaddleSeg.

    Raises:
        UserError: the image has no pixels at one of the scales.
    """
    if not settings.aug_eval:
        return _logits_at_one_scale(model, image, settings)
    height, width = image.shape[2:]
    for scale in settings.scales:
        if int(min(height, width) * scale + 0.5) == 0:  # PaddleSeg's rounding
            raise UserError(f"scale {scale} leaves nothing of an image of {height}x{width} pixels; remove it")
    _, logits = infer.aug_inference(
        lambda images: [_logits_at_one_scale(model, images, settings)],
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
    """Predict the most probable class of each pixel of one image; of equal ones, the first.

    Args:
        model, image, settings: see :func:`predict_logits`.
        trans_info: record of resizing and padding by PaddleSeg's transforms, which are undone.

    Returns:
        [h, w], the size before those transforms; uint8, or uint16 for more than 256 classes.
    """
    if settings.is_slide and not settings.aug_eval and not trans_info:
        height, width = image.shape[2:]
        bands = _slide(model, _window_reader(image), height, width, settings)
        return np.concatenate([_argmax(band) for band in bands])
    return _resized_argmax(predict_logits(model, image, settings), trans_info)


def predict_large(
    model: Model, image: np.ndarray, normalize: Callable[[np.ndarray], np.ndarray], settings: InferenceSettings
) -> np.ndarray:
    """Predict as :func:`predict_labels` in sliding windows, each of which is normalized on its own.

    Memory is that of the logits of one row of windows: 8 bytes x classes x window height x image width.

    Args:
        model: see :func:`predict_logits`.
        image: RGB uint8 [H, W, 3].
        normalize: maps a window, uint8 [h, w, 3], to the model's input, float32 [3, h, w].
        settings: with ``is_slide`` and without ``aug_eval``.

    Returns:
        [H, W], uint8, or uint16 for more than 256 classes.
    """

    def read_window(top: int, bottom: int, left: int, right: int) -> paddle.Tensor:
        return paddle.to_tensor(normalize(image[top:bottom, left:right])[np.newaxis])

    height, width = image.shape[:2]
    return np.concatenate([_argmax(band) for band in _slide(model, read_window, height, width, settings)])


def _logits_at_one_scale(model: Model, image: paddle.Tensor, settings: InferenceSettings) -> paddle.Tensor:
    if not settings.is_slide:
        return _forward(model, image)
    height, width = image.shape[2:]
    bands = _slide(model, _window_reader(image), height, width, settings)
    return paddle.to_tensor(np.concatenate([band.copy() for band in bands], axis=1)[np.newaxis])


def _forward(model: Model, images: paddle.Tensor) -> paddle.Tensor:
    """Compute float32 logits [B, classes, h, w]; images smaller than the stride of the backbone are padded.

    The padding is 0, the mean color of normalized images. [A: PaddleSeg and Swin's code do not take such images]
    """
    height, width = images.shape[2:]
    if min(height, width) < STRIDE:
        images = F.pad(images, [0, max(0, STRIDE - width), 0, max(0, STRIDE - height)])
    with paddle.no_grad():
        logits = model(images)[0]
    return logits[:, :, :height, :width].astype("float32")


def _window_reader(image: paddle.Tensor) -> ReadWindow:
    return lambda top, bottom, left, right: image[:, :, top:bottom, left:right]


def _slide(
    model: Model, read_window: ReadWindow, height: int, width: int, settings: InferenceSettings
) -> Iterator[np.ndarray]:
    """Yield bands of averaged logits from top to bottom, float64 [classes, rows, width], each valid until the next.

    Windows have the places, and logits are added in the order, of PaddleSeg's ``slide_inference``, so that the results
    are identical. A band is yielded when all windows that cover it have been added.
    """
    (window_width, window_height), (step_x, step_y) = settings.crop_size, settings.stride
    tops, lefts = _starts(height, window_height, step_y), _starts(width, window_width, step_x)
    window_width, window_height = min(window_width, width), min(window_height, height)
    across, down = _coverage(width, lefts, window_width), _coverage(height, tops, window_height)
    sums = np.empty(0)  # of the rows from the current top on: [classes, window_height, width]
    for top, next_top in pairwise([*tops, height]):
        for left in lefts:
            window = read_window(top, top + window_height, left, left + window_width)
            logits = _forward(model, window)[0].numpy()
            if not sums.size:
                sums = np.zeros((len(logits), window_height, width))
            sums[:, :, left : left + window_width] += logits
        done, rest = next_top - top, window_height - (next_top - top)
        sums[:, :done] /= down[top:next_top, np.newaxis] * across
        yield sums[:, :done]
        sums[:, :rest] = sums[:, done:].copy()
        sums[:, rest:] = 0


def _starts(length: int, window: int, stride: int) -> list[int]:
    """First positions of the windows along one axis; the last window is moved back to end with the image."""
    return [*range(0, length - window, stride), max(length - window, 0)]


def _coverage(length: int, starts: Sequence[int], window: int) -> np.ndarray:
    """Number of windows that cover each position: int64 [length]."""
    counts = np.zeros(length, np.int64)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _resized_argmax(logits: paddle.Tensor, trans_info: Sequence) -> np.ndarray:
    """Undo the transforms and take the argmax, a few classes at a time, which saves memory.

    Args:
        logits: [1, classes, H, W].
        trans_info: see :func:`predict_labels`.

    Returns:
        [h, w], as :func:`_argmax`.
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
    """Argmax over the first axis, the classes; uint8, or uint16 for more than 256 classes."""
    return _narrow(np.argmax(logits, axis=0), len(logits))


def _narrow(labels: np.ndarray, classes: int) -> np.ndarray:
    return labels.astype(np.uint8 if classes <= 256 else np.uint16)
