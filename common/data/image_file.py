"""Image files of any name: reading them, and a look at whether that will work, mostly without decoding them."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import UserError, one_line

__all__ = ["check_name", "is_turned", "look_at_image", "read_image"]


def read_image(path: str) -> np.ndarray | None:
    """Decode an image as ``cv2.imread`` does, which opens only files whose names are UTF-8.

    Returns:
        RGB uint8 [h, w, 3], or None if the file cannot be read or is no image.
    """
    try:
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    return None if pixels is None else np.ascontiguousarray(pixels[:, :, ::-1])


def check_name(path: str) -> None:
    """Refuse a name that PaddleSeg, which leaves the reading to ``cv2.imread``, cannot open, or crashes on.

    Raises:
        UserError: the name is not UTF-8.
    """
    if path.encode(errors="replace") != os.fsencode(path):
        raise UserError(f"image {path} has a name that is not UTF-8, which PaddleSeg cannot read; rename it")


def look_at_image(path: str) -> tuple[tuple[int, int], bool]:
    """Measure an image as OpenCV will read it, which PaddleSeg and PaddleDetection do.

    Of PNG and JPEG only the header is decoded, and the checksums or the end of the file looked at; other formats are
    read.

    Returns:
        Width and height, and whether OpenCV will lose bits: more than 8 a channel.

    Raises:
        UserError: the file does not exist, or is damaged, or is of a format that OpenCV cannot read.
    """
    if not Path(path).is_file():
        raise UserError(f"image {path} does not exist; restore it, or take it out of the data")
    size, deep = None, False
    try:
        with Image.open(path) as image:
            deep = _bits_per_channel(path, image) > 8
            if image.format in ("PNG", "JPEG"):
                size = None if _swaps_sides(image) else image.size
                if image.format == "PNG":
                    image.verify()
                elif not _has_end_of_jpeg(path):
                    image.load()
    except UnidentifiedImageError:
        pass  # OpenCV may know the format
    except Exception as error:  # on broken data Pillow's decoders raise nearly any type
        raise UserError(
            f"image {path} is damaged ({one_line(error)}); replace it, or take it out of the data"
        ) from error
    if size is None:
        pixels = read_image(path)
        size = None if pixels is None else pixels.shape[1::-1]
    if size is None:
        raise UserError(
            f"image {path} cannot be read with OpenCV, as training does; replace it by an intact PNG or JPEG"
        )
    return size, deep


def is_turned(path: str) -> bool:
    """Whether the EXIF orientation of an image swaps its sides."""
    try:
        with Image.open(path) as image:
            return _swaps_sides(image)
    except UnidentifiedImageError:
        return False


def _bits_per_channel(path: str, image: Image.Image) -> int:
    """As the file has them; Pillow opens some as 8 bits that have 16."""
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            return file.read(25)[24]  # in the header chunk (PNG specification, 11.2.1)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 16 if image.mode.startswith("I") else 8


def _has_end_of_jpeg(path: str) -> bool:
    """Whether the end-of-image marker is near the end of the file; OpenCV reads a truncated JPEG without a word."""
    with Path(path).open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - 64, 0))
        return b"\xff\xd9" in file.read()


def _swaps_sides(image: Image.Image) -> bool:
    """Whether EXIF's orientation, which OpenCV follows and Pillow does not, is a quarter turn."""
    # Without any EXIF, Pillow would decode the whole PNG to look for it.
    return "exif" in image.info and image.getexif().get(0x0112, 1) >= 5
