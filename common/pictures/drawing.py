"""Pictures of labels: colours, overlays, legends, index images, and several pictures side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .fonts import choose_font, drawable

__all__ = [
    "colour_map",
    "font_size",
    "index_png",
    "original_pixels",
    "overlay",
    "palette",
    "present_classes",
    "side_by_side",
    "with_legend",
]

# The first is a quiet one, for what is so often the background. The others are Okabe and Ito's without black, and some
# of Paul Tol's qualitative schemes: both were made to be told apart by the colour-blind.
_FIRST_COLOURS = (
    "464b55", "e69f00", "56b4e9", "009e73", "f0e442", "0072b2", "d55e00", "cc79a7", "882255", "ddcc77",
    "332288", "44aa99", "aa4499", "bbcc33", "ffaabb", "663333", "99ddff", "117733", "ee3377", "dddddd",
)  # fmt: skip
_GRID = np.linspace(0, 255, 26)  # of each channel of the further colours
_MARGIN, _LINE = 0.6, 1.35  # of the font's size
_MIN_FONT, _MAX_FONT = 11, 40  # pixels
_OUTSIDE = (0, 0, 0)  # what a class without a colour gets in a picture of its own


@functools.lru_cache(maxsize=8)
def palette(classes: int) -> np.ndarray:
    """Colours for class numbers: RGB uint8 [classes, 3], read-only.

    The first 20 are chosen for colour-blind people; each further one is the farthest, in CIELAB, from all before it and
    from black and white, among 17,576 colours. Beyond those they repeat. Fewer classes have the first colours of more.
    """
    first = np.array([tuple(bytes.fromhex(colour)) for colour in _FIRST_COLOURS], np.uint8)
    candidates = np.stack(np.meshgrid(_GRID, _GRID, _GRID), axis=-1).reshape(-1, 3).astype(np.uint8)
    places = _lab(candidates)
    nearest = np.full(len(candidates), np.inf)
    chosen = list(first[:classes])
    for place in _lab(np.concatenate([first, np.array([[0] * 3, [255] * 3], np.uint8)])):
        nearest = np.minimum(nearest, ((places - place) ** 2).sum(axis=1))
    while len(chosen) < min(classes, len(first) + len(candidates)):
        farthest = int(nearest.argmax())
        chosen.append(candidates[farthest])
        nearest = np.minimum(nearest, ((places - places[farthest]) ** 2).sum(axis=1))
    colours = np.resize(np.array(chosen, np.uint8), (classes, 3))
    colours.setflags(write=False)
    return colours


def _lab(colours: np.ndarray) -> np.ndarray:
    """sRGB uint8 [n, 3] to CIELAB (D65) [n, 3], after IEC 61966-2-1 and CIE 15."""
    srgb = colours / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    relative = linear @ (to_xyz / to_xyz.sum(axis=1, keepdims=True)).T
    x, y, z = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29).T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


def colour_map(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Paint each label in its colour, and those without one (255 for unlabelled pixels, say) black.

    Args:
        labels: integers [h, w].
        colours: uint8 [classes, 3].

    Returns:
        RGB uint8 [h, w, 3].
    """
    table = np.concatenate([colours, np.array([_OUTSIDE], np.uint8)])
    return table[np.where(_known(labels, colours), labels, len(colours))]


def overlay(image: np.ndarray, labels: np.ndarray, colours: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Paint labels over an image; pixels whose label has no colour stay as they are.

    Args:
        image: RGB uint8 [h, w, 3].
        labels: integers [h, w].
        colours: uint8 [classes, 3].
        opacity: of the paint, 0 to 1.

    Returns:
        RGB uint8 [h, w, 3].

    Raises:
        ValueError: image and labels differ in size.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image of {image.shape[:2]} pixels, labels of {labels.shape}")
    paint = colour_map(labels, colours)
    painted = np.asarray(Image.blend(Image.fromarray(image), Image.fromarray(paint), opacity))
    return np.where(_known(labels, colours)[..., np.newaxis], painted, image)


def _known(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    return (labels >= 0) & (labels < len(colours))


def original_pixels(image: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undo the normalisation of an image.

    Args:
        image: float [3, h, w].
        mean, std: what was subtracted from each channel and what it was divided by, for pixels from 0 to 1.

    Returns:
        RGB uint8 [h, w, 3]; what is outside of its range is clipped.
    """
    pixels = image.transpose(1, 2, 0) * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return np.rint(255 * pixels.clip(0, 1)).astype(np.uint8)


def present_classes(*labels: np.ndarray, classes: int) -> np.ndarray:
    """The classes that occur in any of the label images, the largest first: int64 [n].

    Args:
        labels: integers, each [h, w].
        classes: their number; what is not below it (unlabelled pixels) does not count.
    """
    pixels = np.zeros(classes, np.int64)
    for image in labels:
        pixels += np.bincount(image[(image >= 0) & (image < classes)].ravel(), minlength=classes)
    order = np.argsort(-pixels, kind="stable")
    return order[pixels[order] > 0]


def index_png(labels: np.ndarray, colours: np.ndarray) -> Image.Image:
    """An image whose pixel values are the labels, to be saved as PNG.

    Args:
        labels: integers [h, w], 0 to 255, or 0 to 65535 if there are more than 256 colours.
        colours: uint8 [classes, 3]; viewers show them, and labels without one black.

    Returns:
        mode ``P`` (8 bits with a palette), or ``I;16`` (16 bits, no palette) for more than 256 colours.

    Raises:
        ValueError: a label does not fit.
    """
    dtype = np.uint8 if len(colours) <= 256 else np.uint16
    if labels.size and not 0 <= labels.min() <= labels.max() <= np.iinfo(dtype).max:
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not fit into {np.dtype(dtype)}")
    image = Image.fromarray(labels.astype(dtype))
    if dtype == np.uint8:
        table = np.tile(np.array(_OUTSIDE, np.uint8), (256, 1))
        table[: len(colours)] = colours
        image.putpalette(table.tobytes())
    return image


def with_legend(picture: np.ndarray, names: Sequence[str], colours: np.ndarray) -> np.ndarray:
    """Add a panel with a box of each colour and its name, to the right, or below a picture that is wider than high.

    Args:
        picture: RGB uint8 [h, w, 3].
        names: one for each colour, in the order to show; only the classes that occur (:func:`present_classes`) keep it
            readable. Letters that no installed font has are written without their accents, or as a question mark.
        colours: uint8 [n, 3].

    Returns:
        RGB uint8; the picture is its top left corner. The panel, and a picture that is smaller, end in white.
    """
    if len(names) == 0:
        return picture
    height, width = picture.shape[:2]
    font = choose_font(names, font_size(height, width))
    texts = [drawable(name, font) for name in names]
    line, margin = math.ceil(_LINE * font.size), math.ceil(_MARGIN * font.size)
    column = line + margin + math.ceil(max(font.getlength(text) for text in texts))
    if width > height:
        columns = min(len(texts), max(1, (width - margin) // column))
        rows = math.ceil(len(texts) / columns)
        canvas = _white(height + rows * line + 2 * margin, max(width, columns * column + margin))
        top, left = height + margin, margin
    else:
        most_columns = max(1, 2 * width // column)  # a long legend grows downwards, not ever wider
        rows = min(len(texts), max((height - 2 * margin) // line, math.ceil(len(texts) / most_columns)))
        columns = math.ceil(len(texts) / rows)
        canvas = _white(max(height, rows * line + 2 * margin), width + columns * column + margin)
        top, left = margin, width + margin
    canvas.paste(Image.fromarray(picture))
    draw = ImageDraw.Draw(canvas)
    for number, (text, colour) in enumerate(zip(texts, np.asarray(colours).tolist(), strict=True)):
        x, y = left + number // rows * column, top + number % rows * line
        box = (x, y + (line - font.size) // 2, x + font.size, y + (line + font.size) // 2)
        draw.rectangle(box, fill=tuple(colour), outline="black")
        draw.text((x + line, y + line // 2), text, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def side_by_side(pictures: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Put pictures in a row, each below its title.

    Args:
        pictures: RGB uint8 [h, w, 3] each, of any sizes.
        titles: one for each; what no font has is replaced as in :func:`with_legend`.

    Returns:
        RGB uint8 [H, W, 3] with white between and around them.
    """
    tallest = max(picture.shape[0] for picture in pictures)
    font = choose_font(titles, font_size(tallest, sum(picture.shape[1] for picture in pictures)))
    texts = [drawable(title, font) for title in titles]
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


def font_size(height: int, width: int, share: float = 1 / 36) -> int:
    """A size in pixels that can be read when the whole of a picture of this size is looked at, and at all.

    Args:
        height, width: of the picture, in pixels.
        share: of the square root of its area.
    """
    return round(min(max(math.sqrt(height * width) * share, _MIN_FONT), _MAX_FONT))
