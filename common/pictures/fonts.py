"""A font that has the letters of some texts, and what to draw where no font has them."""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Iterable
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

__all__ = ["choose_font", "drawable"]

_REGULAR = ("Book", "Medium", "Normal", "Regular", "Roman")  # what fonts call their plain style


def choose_font(texts: Iterable[str], size: int) -> ImageFont.FreeTypeFont:
    """The font that has most of the letters: Matplotlib's own where that has as many as any that is installed.

    Args:
        size: in pixels.
    """
    letters = {letter for text in texts for letter in _composed(text) if letter.isprintable()}
    path = _find_font(frozenset(map(ord, letters)))
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


def drawable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text in letters that the font has: without accents, or as question marks, where it lacks them.

    Once for each script of letters that become question marks, a warning is logged that says what to install.
    """
    codes = _charmap(str(font.path))

    def has(letter: str) -> bool:
        return letter.isprintable() and bool((codes == ord(letter)).any())

    def replace(letter: str) -> str:
        if has(letter):
            return letter
        plain = [part for part in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(part)]
        replaced = "".join(part if has(part) else "?" for part in plain) or "?"
        if "?" in replaced and letter.isprintable():
            _tell_missing(unicodedata.name(letter, "").partition(" ")[0] if letter.isalpha() else "SYMBOL")
        return replaced

    return "".join(map(replace, _composed(text)))


def _composed(text: str) -> str:
    """An accent of its own would stand beside its letter."""
    return unicodedata.normalize("NFC", text)


@functools.cache
def _tell_missing(script: str) -> None:
    logging.getLogger(__name__).warning(
        "no font here has all letters of the class names (%s): pictures show ? instead; install a font that has them, "
        "such as Noto Sans CJK for Chinese, Japanese and Korean (Debian: fonts-noto-cjk)",
        script,
    )


@functools.cache
def _find_font(codes: frozenset[int]) -> str:
    wanted = np.array(sorted(codes), np.int64)

    def found(path: str) -> int:
        return int(np.isin(wanted, _charmap(path)).sum())

    # Matplotlib's own font has European letters, and is there with every Pillow; Pillow's has ASCII only, since 10.1.
    own = str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
    return own if found(own) == len(wanted) else max([own, *_installed_fonts()], key=found)


@functools.cache
def _installed_fonts() -> list[str]:
    """Plain ones first."""
    from matplotlib import font_manager  # takes a second, and only letters that are not European need it

    return sorted(font_manager.findSystemFonts(), key=lambda path: (_style(path) not in _REGULAR, path))


def _style(path: str) -> str:
    try:
        return FT2Font(path).style_name
    except (OSError, RuntimeError):  # no font, whatever its name says
        return ""


@functools.cache
def _charmap(path: str) -> np.ndarray:
    """The code points that a font can draw at any size."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return np.empty(0, np.int64)
    return np.array(sorted(font.get_charmap()) if font.scalable else [], np.int64)
