"""Pictures that this project writes, with a mark by which it knows them again."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

__all__ = ["is_own_picture", "save_picture"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_KEYWORD, _MARK = "Software", "Pale Transformer in PaddlePaddle"  # a text chunk (PNG specification, 11.3.3)
_HEAD = 256  # bytes; Pillow puts the text right behind the 33 bytes of signature and header


def save_picture(image: Image.Image, path: Path) -> None:
    """Save an image as PNG, marked.

    Raises:
        OSError: it cannot be written.
    """
    info = PngInfo()
    info.add_text(_KEYWORD, _MARK)
    image.save(path, format="PNG", pnginfo=info)


def is_own_picture(path: Path) -> bool:
    """Whether :func:`save_picture` wrote a file; of one that cannot be read it is not known."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return head.startswith(_SIGNATURE) and f"tEXt{_KEYWORD}\0{_MARK}".encode("latin-1") in head
