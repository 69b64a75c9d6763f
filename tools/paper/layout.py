"""Tables as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from common.data.class_table import column_width, pad

__all__ = ["aligned"]

_GAP = "  "


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Columns of text for a terminal.

    Args:
        right: the columns, from 0, whose texts stand to the right.
    """
    widths = [column_width(column) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            " " * (width - column_width([text])) + text if number in right else pad(text, width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(_GAP.join(cells).rstrip())
    return "\n".join(lines)
