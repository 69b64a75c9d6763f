"""Text tables with one line per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["class_table"]


def class_table(names: Sequence[str], columns: Mapping[str, Iterable[float]], title: str) -> str:
    """Format a table below a title.

    Args:
        names: of the classes.
        columns: by heading, one value per class: integers, or floats, which get two decimals; NaN becomes ``-``.
        title: the first line.
    """
    texts = [[heading, *map(_format, values)] for heading, values in columns.items()]
    widths = [max(9, 2 + max(map(len, column))) for column in texts]
    first = ["class", *names]
    first_width = _column_width(first)
    lines = [title]
    for name, *cells in zip(first, *texts, strict=True):
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(_pad(name, first_width) + row)
    return "\n".join(lines)


def _format(value: float) -> str:
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    return "-" if np.isnan(value) else f"{value:.2f}"


def _column_width(texts: Iterable[str]) -> int:
    """Terminal columns of the widest text."""
    return max(map(_columns, texts))


def _pad(text: str, width: int) -> str:
    """Append blanks up to a number of terminal columns."""
    return text + " " * (width - _columns(text))


def _columns(text: str) -> int:
    """Terminal columns of a text; East Asian wide characters take two, combining ones none."""
    characters = [character for character in text if not unicodedata.combining(character)]
    return len(characters) + sum(unicodedata.east_asian_width(character) in "WF" for character in characters)
