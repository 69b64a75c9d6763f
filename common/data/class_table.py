"""Figures of each class as a text table."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["class_table", "column_width", "pad"]

_WIDTH = 9  # of a column of figures


def class_table(names: Sequence[str], columns: Mapping[str, Iterable[float]], title: str) -> str:
    """Lay out a line for each class below a title.

    Args:
        names: of the classes.
        columns: a figure of each class by heading: integers, or floats that are shown with two decimals, NaN as ``-``.
    """
    width = column_width(("class", *names))
    lines = [title, pad("class", width) + "".join(f"{heading:>{_WIDTH}}" for heading in columns)]
    for name, *values in zip(names, *columns.values(), strict=True):
        lines.append(pad(name, width) + "".join(f"{_shown(value):>{_WIDTH}}" for value in values))
    return "\n".join(lines)


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.2f}"


def column_width(texts: Iterable[str]) -> int:
    """Columns of a terminal that the widest of some texts takes."""
    return max(map(_columns, texts))


def pad(text: str, width: int) -> str:
    """Fill a text with blanks up to so many columns of a terminal."""
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    """Columns that a text takes on a terminal, where Chinese characters, for one, take two."""
    letters = [letter for letter in text if not unicodedata.combining(letter)]
    return len(letters) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in letters)
