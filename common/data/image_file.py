"""Which files are images, and two of the three ways in which they are read.

- :func:`list_images` lists the images of a folder, for all tasks.
- :func:`load_rgb` reads with Pillow, for classification: 16-bit gray is scaled to 8 bits; alpha is dropped.
- :func:`read_image` reads with OpenCV, for detection, as PaddleDetection does: of 16 bits the upper 8 are kept; alpha
  is dropped.
- :func:`common.data.channel_image.read_channels` reads any number of channels, for segmentation, and keeps 16 bits.

The EXIF orientation of images is applied in all tasks, in training and in prediction. All functions first look at
the header, see :func:`open_image`: a small file can state a size that fills the memory.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import UserError, missing_hint, one_line
from ..runtime.regular_file import is_regular
from .exif_orientation import TURNS, exif_orientation
from .image_limits import (
    MAX_HEADER,
    check_jpeg,
    check_png,
    check_ppm_header,
    check_size,
    check_text,
    check_tiles,
    open_binary,
)
from .preprocessing import MAX_PIXELS, to_rgb

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageInfo",
    "check_header",
    "check_regular",
    "decode",
    "deep_image_warning",
    "is_ignored",
    "list_images",
    "load_rgb",
    "look_at_image",
    "naming_the_file",
    "open_image",
    "other_files_warning",
    "read_image",
    "stored_bits",
]

IMAGE_SUFFIXES = (
    ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow runs Ghostscript for some others
Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # an error from twice as many; below, Pillow only warns, and check_size refuses
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
logging.getLogger(TiffImagePlugin.__name__).setLevel(logging.CRITICAL)  # it prints a line for each file it cannot read
_OF_SYSTEMS = (
    "__MACOSX",
    "@eaDir",
    "Thumbs.db",
    "desktop.ini",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
)
_LOOKED_AT = 100  # images whose headers are read for deep_image_warning


def is_ignored(name: str) -> bool:
    """Whether a file or folder is never data: hidden ones (``._photo.jpg``), and what operating systems add."""
    return name.startswith(".") or name in _OF_SYSTEMS


def list_images(
    folder: str | Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, others: list[str] | None = None
) -> list[str]:
    """List the files in and below a folder whose names end in one of these suffixes, in lower case, sorted.

    Links to folders are followed. What :func:`is_ignored` names is left out.

    Args:
        others: is extended by the files with other suffixes.

    Raises:
        UserError: a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:  # os.walk leaves such folders out otherwise
        raise UserError(f"cannot list {error.filename}: {error.strerror}; check permissions and the disk") from error

    found: list[str] = []
    visited = set()
    # Strings, because a million Path objects take long.
    for parent, subfolders, files in os.walk(folder, onerror=refuse, followlinks=True):
        real_parent = os.path.realpath(parent)
        if real_parent in visited:  # a link to a folder above
            subfolders.clear()
            continue
        visited.add(real_parent)
        subfolders[:] = [name for name in subfolders if not is_ignored(name)]
        for name in files:
            if not is_ignored(name):
                images = found if name.lower().endswith(suffixes) else others
                if images is not None:
                    images.append(os.path.join(parent, name))  # noqa: PTH118
    return sorted(found)


def other_files_warning(others: Sequence[str]) -> str:
    """Say how many files :func:`list_images` has left out, at least one."""
    counts = Counter(Path(file).suffix.lower() or "no suffix" for file in others).most_common(5)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts)
    return (
        f"{len(others)} files are left out, because their suffixes are none of {' '.join(IMAGE_SUFFIXES)}: {kinds}, "
        f"such as {min(others)}; convert them if they are images"
    )


@contextmanager
def open_image(source: str | Path | io.BytesIO) -> Iterator[Image.Image]:
    """Open an image with Pillow, which reads the header only.

    Args:
        source: path of an image file, or its content.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is no image of a supported format, or :func:`check_size` refuses it. The message does not name the
            file.
    """
    if not isinstance(source, io.BytesIO):
        check_regular(source)
    with open_binary(source) as file:
        head = file.read(MAX_HEADER)
        if not head:
            raise UserError("it is empty; replace or remove it")
        check_ppm_header(head)
        file.seek(0)
        try:
            image = Image.open(file, formats=_FORMATS)
        except UnidentifiedImageError as error:
            raise UserError(f"its content is none of {', '.join(_FORMATS)}; convert or remove it") from error
        except Image.DecompressionBombError as error:
            raise UserError(f"it has more than {MAX_PIXELS:,} pixels; crop or shrink it") from error
        except (OSError, MemoryError):
            raise
        except Exception as error:  # Pillow raises nearly any type on damaged headers
            raise UserError(f"it is damaged ({one_line(error)}); replace or remove it") from error
        with image:
            check_size(*image.size)
            check_tiles(image)
            check_text(head, file, image)
            yield image


def check_regular(path: str | Path) -> None:
    """Refuse what is not a regular file, as a pipe, for which one would wait for ever.

    Raises:
        OSError: there is no such file.
        UserError: it is not a regular file. The message does not name it.
    """
    if not is_regular(path):
        raise UserError("it is not a regular file; replace or remove it")


def check_header(path: str, scans: bool = True) -> None:
    """Check what the header of an image tells, before a toolkit decodes it.

    Args:
        scans: whether to count those of a JPEG, which reads the whole file.

    Raises:
        UserError: the file does not exist, cannot be opened, or as :func:`open_image`; the message names the file.
    """
    with naming_the_file(path), open_image(path) as image:
        if image.format == "PNG":
            check_png(path)
        elif scans:
            check_jpeg(path)


@contextmanager
def naming_the_file(path: str) -> Iterator[None]:
    """Turn the errors of reading an image into ``UserError`` that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"image {path} does not exist; restore it, or remove it from the data{missing_hint(path)}"
        ) from error
    except UserError as error:
        raise UserError(f"cannot read image {path}: {error}") from error
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: str, error: Exception) -> UserError:
    if isinstance(error, MemoryError):
        return UserError(f"cannot read image {path}: there is not enough memory; crop or shrink it")
    if isinstance(error, OSError) and error.errno:
        return UserError(f"cannot read image {path}: {error.strerror}; check its permissions and the disk")
    # Pillow's decoders raise nearly any type on damaged files.
    return UserError(f"image {path} is damaged ({one_line(error)}); replace it, or remove it from the data")


def load_rgb(source: str | Path | io.BytesIO, min_size: int | None = None) -> Image.Image:
    """Decode an image with Pillow.

    Args:
        source: path of the image file, or its content.
        min_size: in pixels; a JPEG may then be decoded at a half, quarter or eighth of its size, as long as both sides
            keep so many. This is faster and changes the pixels.

    Returns:
        8-bit RGB, turned by the EXIF orientation.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file cannot be decoded, see :func:`open_image`. The message does not name the file.
    """
    try:
        with open_image(source) as image:
            (check_png if image.format == "PNG" else check_jpeg)(source)
            if min_size is not None:
                image.draft(None, (min_size, min_size))
            turn = None if image.format == "TIFF" else TURNS.get(exif_orientation(image))  # Pillow turns TIFF files
            rgb = to_rgb(image)
            return rgb if turn is None else rgb.transpose(turn)
    except (FileNotFoundError, UserError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly any type on damaged files
        raise UserError(f"{one_line(error)}; replace or remove it") from error


def read_image(path: str) -> np.ndarray:
    """Decode an image as ``cv2.imread`` does, whatever its name: ``cv2.imread`` opens only UTF-8 names.

    Returns:
        RGB uint8 [h, w, 3].

    Raises:
        UserError: as :func:`check_header`, or OpenCV cannot decode the file.
    """
    pixels = decode(path, cv2.IMREAD_COLOR)
    if pixels.dtype != np.uint8 or pixels.ndim != 3:  # a PFM file, which Pillow takes for a PPM file
        raise UserError(f"cannot read image {path}: its pixels are floating-point numbers; save it with 8 bits")
    return np.ascontiguousarray(pixels[:, :, ::-1])


def decode(path: str, flags: int) -> np.ndarray:
    """Decode an image as ``cv2.imread`` does with these flags, whatever its name.

    Returns:
        ``[h, w]`` or, in the order blue, green, red, ``[h, w, 3]``.

    Raises:
        UserError: as :func:`check_header`, or OpenCV cannot decode the file.
    """
    check_header(path)
    try:
        pixels = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    except (OSError, cv2.error) as error:
        raise _unreadable(path, error) from error
    if pixels is None:
        raise UserError(
            f"cannot read image {path}: it is damaged, or OpenCV cannot decode it; replace it with an intact PNG or "
            "JPEG, or remove it"
        )
    return pixels


class ImageInfo(NamedTuple):
    """What :func:`look_at_image` finds.

    Attributes:
        width, height: in pixels, as OpenCV gives them: after the EXIF orientation is applied.
        is_deep: whether there are more than 8 bits per channel, of which OpenCV keeps the upper 8.
        orientation: see :func:`exif_orientation`.
    """

    width: int
    height: int
    is_deep: bool
    orientation: int


def look_at_image(path: str) -> ImageInfo:
    """Check that OpenCV can read an image, mostly without decoding it.

    Of a PNG the header and the checksums are read, of a JPEG the header and the end; other formats are decoded.

    Raises:
        UserError: as :func:`read_image`.
    """
    check_header(path, scans=False)
    with naming_the_file(path), open_image(path) as image:
        if image.mode == "F":
            raise UserError("its pixels are floating-point numbers; save it with 8 bits")
        is_deep, orientation = stored_bits(path, image) > 8, exif_orientation(image)
        if image.format in ("PNG", "JPEG"):
            size = image.size if orientation < 5 else image.size[::-1]
            if image.format == "PNG":
                image.verify()
            elif not _has_end_of_jpeg(path):
                check_jpeg(path)
                image.load()
        else:
            size = None
    width, height = size or read_image(path).shape[1::-1]
    return ImageInfo(width, height, is_deep, orientation)


def deep_image_warning(
    count: int, source: Callable[[int], str | Path | io.BytesIO], describe: Callable[[int], str]
) -> str | None:
    """What to say about images of more than 8 bits per channel, looked for among up to 100.

    Args:
        count: number of images.
        source: returns the path or the content of an image.
        describe: returns its name for the message.

    Returns:
        A line, or None if there are none.
    """
    sample = np.unique(np.linspace(0, count - 1, _LOOKED_AT).astype(int))
    deep = []
    for index in sample:
        with suppress(OSError, UserError):  # they are reported when they are used
            content = source(index)
            with open_image(content) as image:
                if image.mode != "F" and stored_bits(content, image) > 8:
                    deep.append(describe(index))
    if not deep:
        return None
    return (
        f"{len(deep)} of {len(sample)} inspected images have more than 8 bits per channel, such as {deep[0]}: 0 is "
        "read as black and 65535 as white; if they use a smaller range, convert them to 8 bits yourself"
    )


def stored_bits(source: str | Path | io.BytesIO, image: Image.Image) -> int:
    """Bits per channel in the file; Pillow opens some 16-bit files with 8 bits."""
    if image.format == "PNG":
        with open_binary(source) as file:
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
