"""Pictures of detected objects: boxes, masks, names and scores, and the detections beside the truth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle_masks

from common.inference.predictor import PredictOptions
from common.pictures.drawing import font_size, palette, side_by_side
from common.pictures.fonts import choose_font, printable

__all__ = ["Objects", "detections_beside_truth", "draw_detections"]

_SMALL = 640  # pixels; pictures whose longer side is shorter are enlarged, or the labels would hide the objects
_OPACITY = 0.35  # of the masks
_FONT = 1 / 50  # of the picture's size
_LIGHT = 0.179  # relative luminance above which black has more contrast than white, after WCAG 2


class Objects(Protocol):
    """Objects of one image: ``object_detection.evaluation.Detections``, or the truth.

    Attributes:
        boxes: float [n, 4], x1, y1, x2, y2 in pixels.
        labels: integers [n], 0 to classes - 1.
        scores: float [n] in 0..1, or ``None``.
        masks: n COCO RLE dicts of the image's size, or ``None``.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None
    masks: Sequence[dict[str, Any]] | None


def draw_detections(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray | None,
    masks: Sequence[dict[str, Any]] | None,
    names: Sequence[str],
) -> np.ndarray:
    """Draw objects over an image: translucent masks, boxes, and a text with class and score at each box.

    A colour stands for a class or, where there is but one, for an object: touching objects of the same class are told
    apart by it, and the name, which would be the same everywhere, is left out. Texts are placed in the order of the
    objects, where they hide no other text; in a crowd, those that find no place are left out. Larger objects are drawn
    below smaller ones.

    Args:
        image: RGB uint8 [h, w, 3].
        boxes: float [n, 4], x1, y1, x2, y2 in pixels.
        labels: integers [n], 0 to classes - 1.
        scores: float [n] in 0..1, or ``None`` for objects that have none.
        masks: n COCO RLE dicts of the image's size, or ``None``.
        names: of all classes.

    Returns:
        RGB uint8 [k h, k w, 3]: an image whose longer side has less than 640 pixels is enlarged by a whole number k.

    Raises:
        ValueError: a mask is of another size than the image.
    """
    height, width = image.shape[:2]
    scale = max(1, math.ceil(_SMALL / max(height, width)))
    pixels = cv2.resize(image, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    font = choose_font(names, font_size(*pixels.shape[:2], _FONT))
    line = max(2, round(font.size / 9))
    colours = _colours(labels, len(names))
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
    areas = (boxes[:, 2:] - boxes[:, :2]).clip(0).prod(axis=1)
    from_large_to_small = np.argsort(-areas, kind="stable")
    for number in from_large_to_small if masks is not None else ():
        _paint_mask(pixels, masks[number], scale, colours[number].tolist(), line)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for number in from_large_to_small:
        _draw_box(draw, boxes[number], colours[number].tolist(), line)
    _draw_texts(picture, list(_texts(labels, scores, names, font, pixels.shape[1] - font.size)), boxes, colours, font)
    return np.asarray(picture)


def detections_beside_truth(
    image: np.ndarray,
    detections: Objects,
    truth: Objects,
    names: Sequence[str],
    threshold: float = PredictOptions.threshold,
) -> np.ndarray:
    """Two pictures as by :func:`draw_detections`, side by side: what the model says, and what is true.

    Args:
        image: RGB uint8 [h, w, 3].
        detections: the highest score first.
        truth: its scores, if it has any, are not looked at.
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


def _colours(labels: np.ndarray, classes: int) -> np.ndarray:
    """A colour for each object, RGB uint8 [n, 3]; never the palette's first, which is made for a background."""
    if classes > 1:
        return palette(classes + 1)[1:][labels]
    light = [colour for colour in palette(20)[1:] if _contrast(colour) == (0, 0, 0)]
    return np.resize(light, (len(labels), 3))


def _contrast(colour: Sequence[int]) -> tuple[int, int, int]:
    """Black or white, whichever stands out from the colour."""
    luminance = (np.asarray(colour) / 255) ** 2.2 @ (0.2126, 0.7152, 0.0722)
    return (0, 0, 0) if luminance > _LIGHT else (255, 255, 255)


def _paint_mask(pixels: np.ndarray, mask: dict[str, Any], scale: int, colour: list[int], line: int) -> None:
    """Blend a mask into the enlarged pixels, and draw its outline."""
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    if tuple(mask["size"]) != (height, width):
        raise ValueError(f"image of {(height, width)} pixels, mask of {tuple(mask['size'])}")
    left, top, across, down = map(int, rle_masks.toBbox(mask))
    if not across:
        return
    inside = rle_masks.decode(mask)[top : top + down, left : left + across]
    inside = inside.repeat(scale, axis=0).repeat(scale, axis=1)
    part = pixels[top * scale :, left * scale :][: len(inside), : inside.shape[1]]
    part[inside > 0] = np.rint((1 - _OPACITY) * part[inside > 0] + _OPACITY * np.array(colour))
    outlines, _ = cv2.findContours(inside, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(pixels, outlines, -1, colour, line, offset=(left * scale, top * scale))


def _draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, colour: list[int], line: int) -> None:
    """Draw the edges of a box inside of it, with a thin rim that stands out from the colour on any image."""
    width, height = draw.im.size
    left, top = np.minimum(np.maximum(np.rint(box[:2]), 0), (width - 1, height - 1)).astype(int).tolist()
    right, bottom = np.minimum(np.rint(box[2:]), (width, height)).astype(int).tolist()
    right, bottom = max(right - 1, left), max(bottom - 1, top)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=_contrast(colour))
    draw.rectangle((left, top, right, bottom), outline=tuple(colour), width=line)


def _texts(
    labels: np.ndarray,
    scores: np.ndarray | None,
    names: Sequence[str],
    font: ImageFont.FreeTypeFont,
    room: int,
) -> Iterator[str]:
    """What to write at each object, in at most so many pixels; a name that is too long ends in dots."""
    for number, label in enumerate(labels):
        name = printable(names[label]) if len(names) > 1 else ""
        score = "" if scores is None else f"{scores[number]:.2f}"
        text, letters = f"{name} {score}".strip(), len(name)
        while letters and font.getlength(text) > room:
            letters -= 1
            text = f"{name[:letters].rstrip()}… {score}".strip()
        yield text


def _draw_texts(
    picture: Image.Image, texts: Sequence[str], boxes: np.ndarray, colours: np.ndarray, font: ImageFont.FreeTypeFont
) -> None:
    """Write each text into a filled rectangle at its box where it hides no other text and least of the boxes."""
    draw = ImageDraw.Draw(picture)
    limits = np.array(picture.size * 2, np.float64)
    taken = np.zeros((0, 4))
    for text, box, colour in zip(texts, boxes, colours.tolist(), strict=True):
        size = np.array([math.ceil(font.getlength(text)) + font.size // 2, math.ceil(1.25 * font.size)])
        if not text or (size > picture.size).any():
            continue
        places = _places(np.clip(box, 0, limits), size, picture.size)
        free = places[_overlaps(places, taken).sum(axis=1) == 0]
        if not len(free):
            continue
        place = free[_overlaps(free, boxes).sum(axis=1).argmin()]
        taken = np.append(taken, place[np.newaxis], axis=0)
        left, top, right, bottom = place.astype(int).tolist()
        draw.rectangle((left, top, right - 1, bottom - 1), fill=tuple(colour))
        draw.text(((left + right) // 2, (top + bottom) // 2), text, fill=_contrast(colour), font=font, anchor="mm")


def _places(box: np.ndarray, size: np.ndarray, limits: Sequence[int]) -> np.ndarray:
    """Where a text may stand, the best first: above and below the box, beside it, and in its corners; float [n, 4]."""
    (left, top, right, bottom), (width, height) = np.rint(box), size
    corners = np.array(
        [
            (left, top - height), (left, bottom), (right - width, top - height), (right - width, bottom),
            (right, top), (left - width, top), (right, bottom - height), (left - width, bottom - height),
            (left, top), (left, bottom - height), (right - width, top), (right - width, bottom - height),
        ]
    )  # fmt: skip
    corners = np.clip(corners, 0, limits - size)
    return np.concatenate([corners, corners + size], axis=1)


def _overlaps(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Area of what each two of the boxes [m, 4] and [n, 4] have in common: float [m, n]."""
    start = np.maximum(first[:, np.newaxis, :2], second[:, :2])
    end = np.minimum(first[:, np.newaxis, 2:], second[:, 2:])
    return (end - start).clip(0).prod(axis=2)
