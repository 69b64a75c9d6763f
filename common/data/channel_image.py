"""Images of any number of channels with 8 or 16 bits or floating-point numbers: TIFF and NumPy files, and all others.

OpenCV and Pillow decode at most four channels, so that tifffile reads such TIFF files. It decodes them uncompressed or
with DEFLATE, and with other compressions if imagecodecs is installed.
"""

from __future__ import annotations

import importlib.util
import math
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import TiffImagePlugin

from ..errors import UserError
from .image_file import (
    MAX_PIXELS,
    ImageInfo,
    check_regular,
    decode,
    look_at_image,
    naming_the_file,
    open_image,
    stored_bits,
)
from .image_limits import check_size

__all__ = ["ARRAY_SUFFIX", "MAX_CHANNELS", "look_at_channels", "read_channels"]

ARRAY_SUFFIX = ".npy"
MAX_CHANNELS = 64

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAX_VALUES = 3 * MAX_PIXELS  # of all channels: those of the largest color image
_MAX_COMPRESSED = 2**22  # bytes of a strip or tile, which DEFLATE expands to at most 1032 times as many
_UNCOMPRESSED = 1  # values of the tag Compression
_BUILT_IN = (_UNCOMPRESSED, 8, 32946)  # without other packages: the others are DEFLATE
_SEPARATE_PLANES, _UNSPECIFIED = 2, 0  # values of the tags PlanarConfiguration and ExtraSamples (TIFF 6.0)


def read_channels(path: str, channels: int) -> np.ndarray:
    """Decode an image.

    Files other than TIFF and ``.npy`` are converted to one channel (gray) or three (red, green, blue), and alpha is
    dropped, as OpenCV does; so are TIFF files that OpenCV can read. The channels of other TIFF files and of arrays
    keep their order. A TIFF file may have them interleaved, in planes, or one on each page.

    Args:
        path: of the file; the name of an array ends in ``.npy``, and its shape is ``[h, w, channels]`` or, of one
            channel, ``[h, w]``.
        channels: the number that the image must have.

    Returns:
        ``[h, w, channels]``: uint8, uint16, or float32 for floating-point numbers of any size.

    Raises:
        UserError: the file does not exist, is damaged, has another number of channels or numbers of another kind, or
            is too large; the message names it.
    """
    if path.lower().endswith(ARRAY_SUFFIX):
        with naming_the_file(path):
            return _as_pixels(_read_array(path, channels))
    if not _is_for_opencv(path, channels):
        with naming_the_file(path):
            return _as_pixels(_read_tiff(path, channels))
    if channels not in (1, 3):
        raise UserError(
            f"cannot read image {path}: it does not have {channels} channels, which only TIFF and {ARRAY_SUFFIX} files "
            "can have; set img_channels to 3, or convert it"
        )
    pixels = decode(path, cv2.IMREAD_ANYDEPTH | (cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR))
    with naming_the_file(path):
        return _as_pixels(np.ascontiguousarray(np.atleast_3d(pixels)[:, :, ::-1]))


def look_at_channels(path: str, channels: int) -> tuple[ImageInfo, np.ndarray | None]:
    """Check that :func:`read_channels` can read an image; see :func:`common.data.image_file.look_at_image`.

    Returns:
        What that finds; and the lowest and highest values of each channel, [2, channels], if they are floating-point
        numbers, else None.

    Raises:
        UserError: as :func:`read_channels`.
    """
    if channels in (1, 3) and not path.lower().endswith(ARRAY_SUFFIX) and _is_for_opencv(path, channels):
        return look_at_image(path), None
    pixels = read_channels(path, channels)
    height, width = pixels.shape[:2]
    extremes = np.stack([pixels.min((0, 1)), pixels.max((0, 1))]) if pixels.dtype == np.float32 else None
    return ImageInfo(width, height, is_deep=pixels.dtype == np.uint16, orientation=1), extremes


def _is_for_opencv(path: str, channels: int) -> bool:
    """Whether a file is no TIFF, or one with gray or colors, perhaps with alpha; OpenCV mixes up planes of 16 bits."""
    with naming_the_file(path):
        check_regular(path)
        with Path(path).open("rb") as file:
            if file.read(4) not in _TIFF_STARTS:
                return True
        if channels not in (1, 3):
            return False
        try:
            with open_image(path) as image:
                tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
                planes = tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == _SEPARATE_PLANES
                extra = tags.get(TiffImagePlugin.EXTRASAMPLES, ())
                return image.mode != "F" and _UNSPECIFIED not in extra and not (planes and stored_bits(path, image) > 8)
        except UserError:
            return False


def _read_tiff(path: str, channels: int) -> np.ndarray:
    import tifffile  # takes a while, and most data has no such files

    with tifffile.TiffFile(path) as file:
        pages: list[Any] = [file.pages.first]
        if channels > 1 and pages[0].samplesperpixel == 1:
            pages = list(islice(file.pages, MAX_CHANNELS + 1))
        _check_channels(sum(page.samplesperpixel for page in pages), channels)
        for page in pages:
            _check_page(page, pages[0], channels)
        parts = [page.asarray(maxworkers=1) for page in pages]
    if pages[0].axes == "SYX":
        return parts[0].transpose(1, 2, 0)
    return np.dstack(parts) if len(parts) > 1 else np.atleast_3d(parts[0])


def _check_page(page: Any, first: Any, channels: int) -> None:
    """Check what the tags of a ``tifffile.TiffPage`` tell, before it is decoded."""
    if page.axes not in ("YX", "YXS", "SYX") or page.shape != first.shape or page.dtype != first.dtype:
        raise UserError("its pages are not the channels of one image; save its channels in one page")
    if getattr(page.tags.get("Orientation"), "value", 1) != 1:
        raise UserError("its tag Orientation turns or mirrors it; save it upright")
    _check_values(page.imagewidth, page.imagelength, channels, page.dtype)
    if page.compression not in _BUILT_IN and importlib.util.find_spec("imagecodecs") is None:
        raise UserError(
            f"reading {getattr(page.compression, 'name', page.compression)} compression needs pip install imagecodecs; "
            "install it, or save it uncompressed or with DEFLATE"
        )
    if page.compression != _UNCOMPRESSED and max(page.databytecounts) > _MAX_COMPRESSED:
        raise UserError(f"it has a compressed strip of more than {_MAX_COMPRESSED:,} bytes; save it in tiles")


def _read_array(path: str, channels: int) -> np.ndarray:
    check_regular(path)
    with Path(path).open("rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}[version[0]]
        shape, _, dtype = read_header(file)
        if len(shape) not in (2, 3):
            raise UserError(f"its shape is {list(shape)}; save it as [height, width, channels]")
        height, width, found = (*shape, 1)[:3]
        _check_channels(found, channels)
        _check_values(width, height, channels, dtype)
        size = Path(path).stat().st_size - file.tell()
        if size != math.prod(shape) * dtype.itemsize:
            raise UserError(f"it is damaged: its shape is {list(shape)}, but it has {size} bytes; replace it")
    return np.atleast_3d(np.load(path, allow_pickle=False))


def _check_channels(found: int, channels: int) -> None:
    if found != channels:
        has = f"{found} channels, not {channels}"
        if (found, channels) == (1, 3):
            has = "1 channel, not 3, and gray arrays and floating-point numbers are not converted"
        raise UserError(f"it has {has}; correct img_channels, or convert or remove it")


def _check_values(width: int, height: int, channels: int, dtype: np.dtype | None) -> None:
    _check_kind(dtype)
    if min(width, height) < 1:
        raise UserError("it has no pixels; remove it from the data")
    check_size(width, height)
    if width * height * channels > _MAX_VALUES:
        raise UserError(f"it has {width}x{height} pixels of {channels} channels, more than {_MAX_VALUES:,} values")


def _check_kind(dtype: np.dtype | None) -> None:
    if dtype is None or not (dtype.kind == "f" or (dtype.kind == "u" and dtype.itemsize <= 2)):
        raise UserError(f"its pixels are {dtype}; save them as uint8, uint16 or floating-point numbers")


def _as_pixels(array: np.ndarray) -> np.ndarray:
    """Contiguous, in the byte order of this machine, and floating-point numbers as float32."""
    _check_kind(array.dtype)
    with np.errstate(over="ignore"):  # the result is infinite, which is refused
        array = np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype.newbyteorder("="))
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError("it has values that are not finite, such as NaN; replace them")
    return array
