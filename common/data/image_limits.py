"""Which images are refused before they are decoded: those that would fill the memory, or take minutes."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import BinaryIO

from PIL import Image, TiffImagePlugin

from ..errors import UserError
from .exif_orientation import orientation_of_exif
from .preprocessing import MAX_PIXELS

__all__ = [
    "MAX_HEADER",
    "check_jpeg",
    "check_png",
    "check_ppm_header",
    "check_size",
    "check_text",
    "check_tiles",
    "open_binary",
]

_MAX_RATIO = 32  # of the sides: transforms scale the shorter one to some hundred pixels
_PLAIN_PPM = (b"P1", b"P2", b"P3")  # numbers as text; comments between them take Pillow seconds per megabyte
MAX_HEADER = 4096  # bytes of a PPM file, whose header Pillow reads byte by byte
_MOST_TEXTS = 32  # compressed ones in a PNG; libpng unpacks and keeps 8 MB of each
_MOST_TILE_PIXELS = 2**24  # of a tile of a TIFF
_MOST_SCANS = 100  # of a JPEG; 10 are usual for a progressive one
_BYTES_PER_SCAN = 2**15  # a JPEG may have one more for each: half of them are two bytes that mean nothing in other data


def open_binary(source: str | Path | io.BytesIO) -> BinaryIO:
    """Open the file of a path, or its content."""
    return io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else Path(source).open("rb")


def check_size(width: int, height: int) -> None:
    """Check that an image is neither too large nor, once its shorter side is scaled up, becomes so.

    Raises:
        UserError: there are more than ``MAX_PIXELS``, or one side is more than 32 times the other.
    """
    if width * height > MAX_PIXELS:
        raise UserError(f"it has {width}x{height} pixels, more than {MAX_PIXELS:,}; crop or shrink it")
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise UserError(
            f"it has {width}x{height} pixels, and one side is more than {_MAX_RATIO} times the other; crop it"
        )


def check_png(source: str | Path | io.BytesIO) -> None:
    """Refuse what OpenCV does not check in a PNG, and what it and Pillow see differently.

    OpenCV allocates a chunk of any length that is stated, up to 4 GiB, and libpng prints the name of a color profile in
    warnings. It unpacks a thousand texts. Pillow does not turn an image whose orientation is behind the pixels.
    """
    with open_binary(source) as file:
        end, size, kind, texts, places = 8, file.seek(0, io.SEEK_END), b"", 0, ""
        while end < size and kind != b"IEND":
            file.seek(end)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            end += length + 12  # its length, kind and checksum
            if end > size:
                raise UserError("it is damaged (a chunk is longer than the file); replace or remove it")
            texts += kind in (b"iTXt", b"zTXt")
            if texts > _MOST_TEXTS:
                raise UserError(f"it has more than {_MOST_TEXTS} compressed texts; save it again without them")
            places += {b"eXIf": "E", b"IDAT": "I"}.get(kind, "")
            # OpenCV takes the first one before the pixels, and Pillow the last.
            if kind == b"eXIf" and (places == "EE" or (places != "E" and orientation_of_exif(file.read(length)) > 1)):
                raise UserError("its orientation stands behind its pixels, or twice; save it again")
            if kind == b"iCCP" and not file.read(80).partition(b"\0")[0].decode("latin-1").isprintable():
                raise UserError("the name of its color profile cannot be printed; remove the profile")


def check_jpeg(source: str | Path | io.BytesIO) -> None:
    """Refuse a JPEG of thousands of scans: each takes as long as the whole image, and may have 10 bytes."""
    with open_binary(source) as file:
        if file.read(2) != b"\xff\xd8":
            return
        scans = size = 0
        while block := file.read(2**20):
            size += len(block)
            scans += block.count(b"\xff\xda")
    if scans > _MOST_SCANS + size // _BYTES_PER_SCAN:
        raise UserError(f"it has more than {_MOST_SCANS} scans; save it again")


def check_tiles(image: Image.Image) -> None:
    """Refuse a TIFF whose tiles are far larger than it: each is decoded as a whole."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        sides = [image.tag_v2.get(tag, 1) for tag in (TiffImagePlugin.TILEWIDTH, TiffImagePlugin.TILELENGTH)]
        if not all(isinstance(side, int) for side in sides) or sides[0] * sides[1] > _MOST_TILE_PIXELS:
            raise UserError(f"it has tiles of {sides[0]}x{sides[1]} pixels; save it again with smaller ones")


def check_ppm_header(head: bytes) -> None:
    """Refuse a PPM, PGM or PBM file with a comment or blanks that take Pillow minutes; ``head`` is its beginning."""
    if re.match(rb"P[0-6fy]", head) and len(head) == MAX_HEADER:
        fields = 3 if head[:2] in (b"P1", b"P4") else 4  # the magic, width, height and, but in a PBM, the maximum
        if len(re.sub(rb"#[^\r\n]*[\r\n]?", b"", head).split()) < fields:  # Pillow joins what a comment splits
            raise UserError(f"its header has more than {MAX_HEADER:,} bytes; save it again")


def check_text(head: bytes, file: BinaryIO, image: Image.Image) -> None:
    """Refuse a PPM, PGM or PBM file of numbers as text that is far larger than its pixels need."""
    if head[:2] in _PLAIN_PPM and file.seek(0, io.SEEK_END) > MAX_HEADER + 48 * image.width * image.height:
        raise UserError("it has far more text than pixels; save it as PNG")
