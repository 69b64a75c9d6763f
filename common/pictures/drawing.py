"""Drawing of label maps: colors, overlays, legends, indexed PNGs, and pictures side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import choose_font, printable

__all__ = [
    "color_map",
    "denormalize",
    "font_size",
    "index_png",
    "overlay",
    "palette",
    "present_classes",
    "side_by_side",
    "with_legend",
]

# Distinguishable for color-blind people: a dark gray, which suits a background, Okabe and Ito's palette without black,
# and colors of Paul Tol's qualitative palettes.
_FIRST_COLORS = (
    "464b55", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "882255", "ddcc77",
    "332288", "44aa99", "aa4499", "bbcc33", "ffaabb", "663333", "99ddff", "117733", "ee3377", "dddddd",
)  # fmt: skip
_MARGIN, _LINE = 0.6, 1.35  # in font sizes
_MIN_FONT, _MAX_FONT = 11, 40  # pixels
_UNKNOWN = (0, 0, 0)  # color of labels without a class


@functools.lru_cache(maxsize=8)
def palette(classes: int) -> np.ndarray:
    """Colors of class numbers, RGB uint8 [classes, 3], read-only.

    The first 20 are chosen for color-blind people; the others are those of PASCAL VOC's color map.
    """
    numbers = np.arange(classes)
    colors = np.zeros((classes, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((numbers >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    first = np.array([tuple(bytes.fromhex(color)) for color in _FIRST_COLORS], np.uint8)
    colors[: len(first)] = first[:classes]
    colors.setflags(write=False)
    return colors


def color_map(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Paint each label in its color; labels outside of 0 to classes - 1, such as 255, become black.

    Args:
        labels: integers [h, w].
        colors: uint8 [classes, 3].

    Returns:
        RGB uint8 [h, w, 3].
    """
    table = np.concatenate([colors, np.array([_UNKNOWN], np.uint8)])
    return table[np.where(_known(labels, colors), labels, len(colors))]


def overlay(image: np.ndarray, labels: np.ndarray, colors: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Blend :func:`color_map` into an image; pixels whose label has no color stay as they are.

    Args:
        image: RGB uint8 [h, w, 3].
        labels: integers [h, w].
        colors: uint8 [classes, 3].
        opacity: of the colors, 0 to 1.

    Returns:
        RGB uint8 [h, w, 3].

    Raises:
        ValueError: image and labels differ in size.
    """
    blended = Image.blend(Image.fromarray(image), Image.fromarray(color_map(labels, colors)), opacity)
    return np.where(_known(labels, colors)[..., np.newaxis], np.asarray(blended), image)


def _known(labels: np.ndarray, colors: np.ndarray) -> np.ndarray:
    return (labels >= 0) & (labels < len(colors))


def denormalize(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo ``(pixels / 255 - mean) / std``.

    Args:
        image: float [3, h, w].
        mean, std: one value for each channel.

    Returns:
        RGB uint8 [h, w, 3], clipped.
    """
    pixels = image.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)


def present_classes(*labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the classes that occur in the label maps, the most frequent first: int64 [n].

    Args:
        labels: integers, each [h, w].
        classes: number of classes; other labels, such as 255, are not counted.
    """
    pixels = np.zeros(classes, np.int64)
    for image in labels:
        pixels += np.bincount(image[(image >= 0) & (image < classes)].ravel(), minlength=classes)
    order = np.argsort(-pixels, kind="stable")
    return order[pixels[order] > 0]


def index_png(labels: np.ndarray, colors: np.ndarray) -> Image.Image:
    """Make an image whose pixel values are the labels.

    Args:
        labels: integers [h, w], 0 to 255, or 0 to 65535 if there are more than 256 colors.
        colors: uint8 [classes, 3], the palette; labels without a color are shown black.

    Returns:
        Mode ``P`` (8 bits with a palette), or ``I;16`` (16 bits, no palette) for more than 256 colors.

    Raises:
        ValueError: a label is out of range.
    """
    dtype = np.uint8 if len(colors) <= 256 else np.uint16
    if labels.size and not 0 <= labels.min() <= labels.max() <= np.iinfo(dtype).max:
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit into {np.dtype(dtype)}")
    image = Image.fromarray(labels.astype(dtype))
    if dtype == np.uint8:
        table = np.tile(np.array(_UNKNOWN, np.uint8), (256, 1))
        table[: len(colors)] = colors
        image.putpalette(table.tobytes())
    return image


def with_legend(picture: np.ndarray, names: Sequence[str], colors: np.ndarray) -> np.ndarray:
    """Add a legend below a picture.

    Args:
        picture: RGB uint8 [h, w, 3].
        names: one for each color; pass only the classes that occur (:func:`present_classes`) to keep it readable.
        colors: uint8 [n, 3].

    Returns:
        RGB uint8, with the picture in its top left corner.
    """
    if len(names) == 0:
        return picture
    height, width = picture.shape[:2]
    font = choose_font(names, font_size(height, width))
    texts = [printable(name) for name in names]
    line, margin = math.ceil(_LINE * font.size), math.ceil(_MARGIN * font.size)
    column = line + margin + math.ceil(max(font.getlength(text) for text in texts))
    columns = min(len(texts), max(1, (width - margin) // column))
    rows = math.ceil(len(texts) / columns)
    canvas = _white(height + rows * line + 2 * margin, max(width, columns * column + margin))
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for number, (text, color) in enumerate(zip(texts, np.asarray(colors).tolist(), strict=True)):
        x, y = margin + number // rows * column, height + margin + number % rows * line
        box = (x, y + (line - font.size) // 2, x + font.size, y + (line + font.size) // 2)
        draw.rectangle(box, fill=tuple(color), outline="black")
        draw.text((x + line, y + line // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Put pictures in a row on white, each below its title.

    Args:
        pictures: RGB uint8 [h, w, 3] each, of any sizes.
        titles: one for each picture.

    Returns:
        RGB uint8 [H, W, 3].
    """
    tallest = max(picture.shape[0] for picture in pictures)
    font = choose_font(titles, font_size(tallest, sum(picture.shape[1] for picture in pictures)))
    texts = [printable(title) for title in titles]
    gap, line = math.ceil(_MARGIN * font.size), math.ceil(_LINE * font.size)
    widths = [
        max(picture.shape[1], math.ceil(font.getlength(text))) for picture, text in zip(pictures, texts, strict=True)
    ]
    canvas = _white(gap + line + tallest + gap, gap + sum(width + gap for width in widths))
    draw = ImageDraw.Draw(canvas)
    x = gap
    for picture, text, width in zip(pictures, texts, widths, strict=True):
        draw.text((x, gap + line // 2), text, fill="black", font=font, anchor="lm")
        canvas.paste(Image.fromarray(picture), (x, gap + line))
        x += width + gap
    return np.asarray(canvas)


def _white(height: int, width: int) -> Image.Image:
    return Image.new("RGB", (width, height), "white")


def font_size(height: int, width: int, share: float = 1 / 26) -> int:
    """Choose a font size in pixels for a picture.

    Args:
        height, width: of the picture, in pixels.
        share: font size / square root of the picture's area, before it is limited to readable sizes.
    """
    return round(min(max(math.sqrt(height * width) * share, _MIN_FONT), _MAX_FONT))
