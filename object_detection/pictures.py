"""Pictures of detected objects: boxes, masks, names and scores, and the detections beside the ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils
from scipy.optimize import linear_sum_assignment

from common.inference.predictor import PredictOptions
from common.pictures.drawing import font_size, palette, side_by_side
from common.pictures.fonts import choose_font, printable

if TYPE_CHECKING:
    from object_detection.evaluation import Detections

__all__ = ["detections_beside_truth", "draw_detections"]

_SMALL = 640  # pixels; an image whose longer side is shorter is enlarged, or labels would hide the objects
_OPACITY = 0.35  # of the masks
_FONT = 1 / 36  # of the picture's size
_SAME_OBJECT = 0.1  # IoU


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: Sequence[dict[str, Any]] | None,
    names: Sequence[str],
    numbers: np.ndarray | None = None,
) -> np.ndarray:
    """Draw objects over an image: translucent masks, boxes, and a label with class and score at each box.

    Each class has a color. If there is only one class, each object has one, so that touching objects can be told apart,
    and labels have no name. Labels are placed in the order of the objects; one that would cover another is left out.
    Larger objects are drawn below smaller ones.

    Args:
        image: RGB uint8 [h, w, 3].
        boxes: float [n, 4], x1, y1, x2, y2 in pixels.
        labels: integers [n], 0 to classes - 1.
        scores: float [n] in 0..1, or ``None``.
        masks: n COCO RLE dicts of the image's size, or ``None``.
        names: of all classes.
        numbers: integers [n], which color each object has if there is only one class; 0 to n - 1 by default.

    Returns:
        RGB uint8 [k h, k w, 3]: an image whose longer side has less than 640 pixels is enlarged by an integer k.

    Raises:
        ValueError: a mask has another size than the image.
    """
    height, width = image.shape[:2]
    scale = max(1, math.ceil(_SMALL / max(height, width)))
    pixels = cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    # The palette's first color is for a background.
    colors = palette(len(names) + 1)[1:] if len(names) > 1 else palette(20)[1:]
    numbers = np.arange(len(labels)) if numbers is None else numbers
    colors = colors[labels] if len(names) > 1 else colors[numbers % len(colors)]
    font = choose_font(names, font_size(*pixels.shape[:2], _FONT))
    line = max(2, round(font.size / 9))
    from_large_to_small = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1), kind="stable")
    for number in from_large_to_small if masks is not None else ():
        _draw_mask(pixels, masks[number], scale, colors[number], line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    last = picture.width - 1, picture.height - 1
    corners = np.clip(np.rint(boxes).reshape(-1, 2, 2) - [[0, 0], [1, 1]], 0, last).astype(
        int
    )  # the last one is inside
    for number in from_large_to_small:
        left, top = corners[number, 0].tolist()
        right, bottom = np.maximum(corners[number, 1], corners[number, 0]).tolist()
        draw.rectangle((left, top, right, bottom), outline=tuple(colors[number].tolist()), width=line)
    taken: list[tuple[int, ...]] = []
    for number, label in enumerate(labels):
        name = printable(names[label]) if len(names) > 1 else ""
        text = name if scores is None else f"{name} {scores[number]:.2f}".strip()
        _draw_label(draw, text, corners[number], colors[number].tolist(), font, taken)
    return np.asarray(picture)


def detections_beside_truth(
    image: np.ndarray,
    detections: Detections,
    truth: Detections,
    names: Sequence[str],
    threshold: float = PredictOptions.threshold,
) -> np.ndarray:
    """Two pictures of :func:`draw_detections` side by side: the detections and the ground truth.

    If there is only one class, a detection and the true object that it overlaps most have the same color.

    Args:
        image: RGB uint8 [h, w, 3].
        detections: sorted by score, the highest first.
        truth: its scores are not used.
        names: of all classes.
        threshold: detections with a lower score are left out.

    Returns:
        RGB uint8.
    """
    shown = int((detections.scores >= threshold).sum())
    masks = detections.masks and detections.masks[:shown]
    found = draw_detections(
        image, detections.boxes[:shown], detections.labels[:shown], detections.scores[:shown], masks, names
    )
    numbers = _match(detections.boxes[:shown], truth.boxes)
    true = draw_detections(image, truth.boxes, truth.labels, None, truth.masks, names, numbers)
    return side_by_side([found, true], [f"detections, score at least {threshold:g}", "ground truth"])


def _match(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The number of the detection of each true object, each used once, or a number above all of them: int64 [true]."""
    numbers = len(found) + np.arange(len(true))
    if len(found) and len(true):
        sides = [np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1) for boxes in (true, found)]
        iou = mask_utils.iou(*(boxes.astype(np.float64) for boxes in sides), np.zeros(len(found)))
        for row, column in zip(*linear_sum_assignment(iou, maximize=True), strict=True):
            if iou[row, column] >= _SAME_OBJECT:
                numbers[row] = column
    return numbers


def _draw_mask(pixels: np.ndarray, mask: dict[str, Any], scale: int, color: np.ndarray, line: int) -> None:
    """Blend a mask into the enlarged pixels, and draw its outline."""
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    if tuple(mask["size"]) != (height, width):
        raise ValueError(f"image of {(height, width)} pixels, mask of {tuple(mask['size'])}")
    left, top, mask_width, mask_height = map(int, mask_utils.toBbox(mask))
    if not mask_width:
        return
    inside = mask_utils.decode(mask)[top : top + mask_height, left : left + mask_width]
    inside = inside.repeat(scale, axis=0).repeat(scale, axis=1)
    part = pixels[top * scale :, left * scale :][: len(inside), : inside.shape[1]]
    part[inside > 0] = np.rint((1 - _OPACITY) * part[inside > 0] + _OPACITY * color)
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outlines, -1, color.tolist(), line, offset=(left * scale, top * scale))


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    corners: np.ndarray,
    color: list[int],
    font: ImageFont.FreeTypeFont,
    taken: list[tuple[int, ...]],
) -> None:
    """Write a text on a filled rectangle above its box, below it or inside, where no other label is.

    Args:
        corners: of the box, [[left, top], [right, bottom]].
        taken: the rectangles of all labels so far; that of this one is added.
    """
    width, height = math.ceil(font.getlength(text)) + font.size // 2, math.ceil(1.25 * font.size)
    picture_width, picture_height = draw.im.size
    if not text:
        return
    (left, top), (_, bottom) = corners.tolist()
    left = max(0, min(left, picture_width - width))
    for y in (top - height, bottom + 1, top):
        place = (left, y, left + width, y + height)
        if 0 <= y <= picture_height - height and not any(_overlap(place, other) for other in taken):
            draw.rectangle((left, y, left + width - 1, y + height - 1), fill=tuple(color))
            # White with a black outline can be read on every color.
            center = (left + width // 2, y + height // 2)
            draw.text(center, text, fill="white", font=font, anchor="mm", stroke_width=1, stroke_fill="black")
            taken.append(place)
            return


def _overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
