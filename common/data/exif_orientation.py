"""The orientation of an image that cameras write into EXIF data."""

from __future__ import annotations

from contextlib import suppress

from PIL import ExifTags, Image, TiffImagePlugin

__all__ = ["TURNS", "exif_orientation", "orientation_of_exif"]

TURNS = {  # from the stored pixels of each EXIF orientation to the upright image
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def exif_orientation(image: Image.Image) -> int:
    """The EXIF orientation of an image that is not decoded yet: 2 to 8, or 1 if there is none or its value is no other.

    1 is upright, 2 to 4 are mirrored or turned by 180 degrees, 5 to 8 have width and height swapped. As OpenCV, this
    takes no orientation from XMP, and ignores damaged EXIF data.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        value = image.tag_v2.get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    return orientation_of_exif(image.info.get("exif", b""))


def orientation_of_exif(data: bytes) -> int:
    """That of EXIF data; 1 if it is damaged."""
    exif = Image.Exif()
    with suppress(Exception):  # Pillow raises nearly any type on damaged data
        exif.load(data)
        value = exif.get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    return 1
