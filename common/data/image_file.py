"""Which files are images, and the two ways in which they are read.

- :func:`list_images` lists the images of a folder, for all tasks.
- :func:`load_rgb` reads with Pillow, for classification: EXIF orientation is ignored, as is usual for ImageNet; 16-bit
  gray is scaled to 8 bits; alpha is dropped.
- :func:`read_image` reads with OpenCV, for segmentation and detection, as PaddleSeg and PaddleDetection do: EXIF
  orientation is applied; of 16 bits the upper 8 are kept; alpha is dropped.
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import UserError, one_line

__all__ = [
    "IMAGE_SUFFIXES",
    "backslash_hint",
    "check_name",
    "is_ignored",
    "is_turned",
    "list_images",
    "load_rgb",
    "look_at_image",
    "read_image",
    "to_rgb",
]

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip


def is_ignored(name: str) -> bool:
    """Whether a file or folder is never data: hidden ones (``._photo.jpg``, ``.ipynb_checkpoints``), ``__MACOSX``."""
    return name.startswith(".") or name == "__MACOSX"


def list_images(folder: str | Path) -> list[str]:
    """List the files in and below a folder whose names end in one of ``IMAGE_SUFFIXES``, sorted.

    Links to folders are followed. What :func:`is_ignored` names is left out.
    """
    found, visited = [], set()
    for parent, subfolders, files in os.walk(folder, followlinks=True):  # strings: a million Path objects take long
        real_parent = os.path.realpath(parent)
        if real_parent in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real_parent)
        subfolders[:] = [name for name in subfolders if not is_ignored(name)]
        paths = (os.path.join(parent, name) for name in files if not is_ignored(name))  # noqa: PTH118
        found += [path for path in paths if path.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(found)


def load_rgb(path: str | Path, min_size: int | None = None) -> Image.Image:
    """Decode an image with Pillow.

    Args:
        path: of the image file.
        min_size: in pixels; a JPEG may then be decoded at a half, quarter or eighth of its size, as long as both sides
            keep so many. This is faster and changes the pixels.

    Returns:
        8-bit RGB; EXIF orientation is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            return to_rgb(image)
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise UserError("not an image format that Pillow supports") from error
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise UserError(one_line(error)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a Pillow image to 8-bit RGB.

    Alpha is dropped, not blended, as in torchvision and timm. 16-bit gray is scaled to 8 bits, where Pillow's own
    conversion saturates.

    Raises:
        ValueError: the pixels are floating-point numbers, whose range is not defined.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range; save the image with 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # a direct conversion to RGB makes Pillow warn
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def read_image(path: str) -> np.ndarray | None:
    """Decode an image as ``cv2.imread`` does, whatever its name: ``cv2.imread`` opens only UTF-8 names.

    Returns:
        RGB uint8 [h, w, 3], or None if the file cannot be decoded.
    """
    try:
        content = np.fromfile(path, np.uint8)
        pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if len(content) else None
    except (OSError, cv2.error):
        return None
    return None if pixels is None else np.ascontiguousarray(pixels[:, :, ::-1])


def check_name(path: str) -> None:
    """Refuse a file name that ``cv2.imread``, which PaddleSeg uses, cannot open or crashes on.

    Raises:
        UserError: the name is not UTF-8.
    """
    if path.encode(errors="replace") != os.fsencode(path):
        raise UserError(f"image {path} has a name that is not UTF-8, which PaddleSeg cannot read; rename it")


def backslash_hint(path: str | Path) -> str:
    """What to add to the message that a file is missing: its path may have been written on Windows."""
    return "; its backslashes separate no folders here: write /" if "\\" in str(path) and os.sep == "/" else ""


def look_at_image(path: str) -> tuple[tuple[int, int], bool]:
    """Check that OpenCV can read an image, mostly without decoding it.

    Of a PNG the header and the checksums are read, of a JPEG the header and the end; other formats are decoded.

    Returns:
        Width and height as OpenCV gives them, and whether there are more than 8 bits per channel, which OpenCV drops.

    Raises:
        UserError: the file is missing or damaged, or OpenCV cannot read its format.
    """
    if not Path(path).is_file():
        raise UserError(f"image {path} does not exist; restore it, or remove it from the data{backslash_hint(path)}")
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
        pass  # OpenCV may support the format
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise UserError(
            f"image {path} is damaged ({one_line(error)}); replace it, or remove it from the data"
        ) from error
    if size is None:
        pixels = read_image(path)
        size = None if pixels is None else pixels.shape[1::-1]
    if size is None:
        raise UserError(
            f"image {path} cannot be read with OpenCV, which training uses; replace it with an intact PNG or JPEG"
        )
    return size, deep


def is_turned(path: str) -> bool:
    """Whether the EXIF orientation of an image swaps width and height."""
    try:
        with Image.open(path) as image:
            return _swaps_sides(image)
    except UnidentifiedImageError:
        return False


def _bits_per_channel(path: str, image: Image.Image) -> int:
    """Bits per channel in the file; Pillow opens some 16-bit files with 8 bits."""
    if image.format == "PNG":
        with Path(path).open("rb") as file:
            return file.read(25)[24]  # in the header chunk (PNG specification, 11.2.1)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 16 if image.mode.startswith("I") else 8


def _has_end_of_jpeg(path: str) -> bool:
    """Whether the end-of-image marker is near the end of the file: OpenCV reads a truncated JPEG without an error."""
    with Path(path).open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - 64, 0))
        return b"\xff\xd9" in file.read()


def _swaps_sides(image: Image.Image) -> bool:
    """Whether the EXIF orientation, which OpenCV applies and Pillow does not, is a quarter turn."""
    # The first test keeps Pillow from decoding a whole PNG in search of EXIF data.
    return "exif" in image.info and image.getexif().get(0x0112, 1) >= 5
