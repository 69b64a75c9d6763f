"""Text tables with one line per class."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["class_table", "worst_table"]

_MOST = 30  # lines of a table of the worst classes


def class_table(
    names: Sequence[str], columns: Mapping[str, Iterable[float]], title: str, heading: str = "class"
) -> str:
    """Format a table below a title.

    Args:
        names: of the classes.
        columns: by heading, one value per class: integers, or floats, which get two decimals; NaN becomes ``-``.
        title: the first line.
        heading: of the names.
    """
    texts = [[heading, *map(_format, values)] for heading, values in columns.items()]
    widths = [max(9, 2 + max(map(len, column))) for column in texts]
    first = [heading, *names]
    first_width = _column_width(first)
    lines = [title]
    for name, *cells in zip(first, *texts, strict=True):
        row = "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(_pad(name, first_width) + row)
    return "\n".join(lines)


def worst_table(names: Sequence[str], columns: Mapping[str, np.ndarray], by: str, title: str) -> str:
    """Format a table of all classes, or of the 30 with the lowest values of one column, the lowest first.

    Args:
        names, columns, title: see :func:`class_table`.
        by: heading of the column. NaN is no low value.
    """
    if len(names) <= _MOST:
        return class_table(names, columns, title)
    order = np.argsort(columns[by], kind="stable")[:_MOST]
    shown = {heading: values[order] for heading, values in columns.items()}
    title = f"{title}, the {_MOST} with the lowest {by} ({len(names) - _MOST:,} others are left out)"
    return class_table([names[number] for number in order], shown, title)


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
