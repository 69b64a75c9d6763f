"""The font of texts in pictures."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from PIL import ImageFont

__all__ = ["choose_font", "printable"]

_FIRST_CJK = 0x2E80  # code point; nearly all characters from here on are Chinese, Japanese or Korean
# Parts of the file names of common CJK fonts, in the order of preference.
_CJK_FONTS = (
    "notosanscjk",
    "sourcehansans",
    "notoserifcjk",
    "wqy",
    "droidsansfallback",
    "pingfang",
    "hiragino",
    "msyh",
    "simhei",
    "arialuni",
)


def choose_font(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont:
    """Return a CJK font if the texts need one and one is installed, and DejaVu Sans otherwise.

    Args:
        size: in pixels.
    """
    needs_cjk = any(ord(character) >= _FIRST_CJK for text in texts for character in text)
    # Matplotlib ships DejaVu Sans, which has the European letters. Pillow's default font is ASCII only.
    dejavu = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    path = (_find_cjk_font() if needs_cjk else None) or dejavu
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def printable(text: str) -> str:
    """Replace line breaks and other control characters, which Pillow cannot draw in one line, by question marks."""
    return "".join(character if character.isprintable() else "?" for character in text)


@functools.cache
def _find_cjk_font() -> str | None:
    from matplotlib import font_manager  # takes a second to import

    paths = sorted(font_manager.findSystemFonts(), key=lambda path: ("regular" not in path.lower(), path))
    for name in _CJK_FONTS:
        for path in paths:
            if name in Path(path).name.lower():
                return path
    warnings.filterwarnings("ignore", message="Glyph .* missing from")  # of matplotlib, for each character
    print(
        "warning: no font with Chinese, Japanese and Korean characters was found: pictures show boxes instead; install "
        "one, such as Noto Sans CJK (Debian: fonts-noto-cjk)",
        file=sys.stderr,
    )
    return None
