"""Image files, as OpenCV reads them: their pixels, or a look at whether they can be read and how large they are."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import UserError, one_line

__all__ = ["is_turned", "look_at_image", "read_image"]


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
            deep = image.mode.startswith("I")
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
        pixels = cv2.imread(path)
        size = None if pixels is None else pixels.shape[1::-1]
    if size is None:
        raise UserError(
            f"image {path} cannot be read with OpenCV, as training does; replace it by an intact PNG or JPEG"
        )
    return size, deep


def read_image(path: str) -> np.ndarray | None:
    """Decode an image as ``cv2.imread`` does, from a file of any name: ``imread`` crashes on names that are not UTF-8.

    Returns:
        RGB uint8 [h, w, 3], or None if the file cannot be read or is no image.
    """
    try:
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    return None if pixels is None else np.ascontiguousarray(pixels[:, :, ::-1])


def is_turned(path: str) -> bool:
    """Whether the EXIF orientation of an image swaps its sides."""
    try:
        with Image.open(path) as image:
            return _swaps_sides(image)
    except UnidentifiedImageError:
        return False


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
