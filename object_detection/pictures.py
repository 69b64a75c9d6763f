"""Pictures of detected objects: boxes, masks, names and scores, and the detections beside the ground truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as mask_utils

from common.inference.predictor import PredictOptions
from common.pictures.drawing import font_size, palette, side_by_side
from common.pictures.fonts import choose_font, printable

if TYPE_CHECKING:
    from object_detection.evaluation import Detections

__all__ = ["detections_beside_truth", "draw_detections"]

_SMALL = 640  # pixels; an image whose longer side is shorter is enlarged, or labels would hide the objects
_OPACITY = 0.35  # of the masks
_FONT = 1 / 50  # of the picture's size
_LIGHT = 0.179  # relative luminance above which black has more contrast than white (WCAG 2)


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: Sequence[dict[str, Any]] | None,
    names: Sequence[str],
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

    Returns:
        RGB uint8 [k h, k w, 3]: an image whose longer side has less than 640 pixels is enlarged by an integer k.

    Raises:
        ValueError: a mask has another size than the image.
    """
    height, width = image.shape[:2]
    scale = max(1, math.ceil(_SMALL / max(height, width)))
    pixels = cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    font = choose_font(names, font_size(*pixels.shape[:2], _FONT))
    line = max(2, round(font.size / 9))
    colors = _object_colors(labels, len(names)).tolist()
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    from_large_to_small = np.argsort(-(boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1), kind="stable")
    for number in from_large_to_small if masks is not None else ():
        _draw_mask(pixels, masks[number], scale, colors[number], line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for number in from_large_to_small:
        _draw_box(draw, boxes[number], colors[number], line)
    taken: list[tuple[int, ...]] = []
    for number, label in enumerate(labels):
        name = printable(names[label]) if len(names) > 1 else ""
        text = _fit(name, "" if scores is None else f"{scores[number]:.2f}", font, picture.width - font.size)
        _draw_label(draw, text, boxes[number], colors[number], font, taken)
    return np.asarray(picture)


def detections_beside_truth(
    image: np.ndarray,
    detections: Detections,
    truth: Detections,
    names: Sequence[str],
    threshold: float = PredictOptions.threshold,
) -> np.ndarray:
    """Two pictures of :func:`draw_detections` side by side: the detections and the ground truth.

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
    true = draw_detections(image, truth.boxes, truth.labels, None, truth.masks, names)
    return side_by_side([found, true], [f"detections, score at least {threshold:g}", "truth"])


def _object_colors(labels: np.ndarray, classes: int) -> np.ndarray:
    """A color for each object, RGB uint8 [n, 3]; never the palette's first, which is for a background."""
    if classes > 1:
        return palette(classes + 1)[1:][labels]
    light = [color for color in palette(20)[1:] if _text_color(color) == (0, 0, 0)]
    return np.resize(light, (len(labels), 3))


def _text_color(color: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever has more contrast with the color."""
    luminance = (np.asarray(color) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return (0, 0, 0) if luminance > _LIGHT else (255, 255, 255)


def _draw_mask(pixels: np.ndarray, mask: dict[str, Any], scale: int, color: list[int], line: int) -> None:
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
    part[inside > 0] = np.rint((1 - _OPACITY) * part[inside > 0] + _OPACITY * np.array(color))
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outlines, -1, color, line, offset=(left * scale, top * scale))


def _draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, color: list[int], line: int) -> None:
    """Draw the edges of a box on its inside, with a thin rim of black or white."""
    width, height = draw.im.size
    left, top = np.minimum(np.maximum(np.rint(box[:2]), 0), (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.minimum(np.rint(box[2:]), (width, height)).astype(int).tolist()
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_text_color(color))
    draw.rectangle((left, top, right, bottom), outline=tuple(color), width=line)


def _fit(name: str, score: str, font: ImageFont.FreeTypeFont, room: int) -> str:
    """Name and score, in which a name that is too long for so many pixels ends in dots."""
    text = f"{name} {score}".strip()
    while name and font.getlength(text) > room:
        name = name[:-1]
        text = f"{name.rstrip()}… {score}".strip()
    return text


def _draw_label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: np.ndarray,
    color: list[int],
    font: ImageFont.FreeTypeFont,
    taken: list[tuple[int, ...]],
) -> None:
    """Write a text on a filled rectangle above its box, below it or inside, where no other label is.

    Args:
        taken: the rectangles of all labels so far; that of this one is added.
    """
    width, height = math.ceil(font.getlength(text)) + font.size // 2, math.ceil(1.25 * font.size)
    picture_width, picture_height = draw.im.size
    if not text or width > picture_width or height > picture_height:
        return
    left, top, _, bottom = np.rint(np.clip(box, 0, (picture_width, picture_height) * 2)).astype(int).tolist()
    left = min(left, picture_width - width)
    for y in (top - height, bottom, top):
        place = (left, y, left + width, y + height)
        if 0 <= y <= picture_height - height and not any(_overlap(place, other) for other in taken):
            draw.rectangle((left, y, left + width - 1, y + height - 1), fill=tuple(color))
            center = (left + width // 2, y + height // 2)
            draw.text(center, text, fill=_text_color(color), font=font, anchor="mm")
            taken.append(place)
            return


def _overlap(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]
