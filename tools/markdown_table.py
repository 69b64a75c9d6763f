"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Container, Sequence

__all__ = ["markdown_table"]


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int], padded: bool = False
) -> str:
    """Lay cells out as a table.

    Args:
        right: the columns, from 0, whose texts stand to the right.
        padded: make the columns as wide as their longest cell, which can be read on a terminal; else a changed cell
            changes one line only.
    """
    columns = range(len(header))
    # A rule of fewer than three letters is none to some readers.
    widths = [max(3, *(len(row[number]) for row in (header, *rows))) if padded else 0 for number in columns]
    lines = [
        [f"{cell:>{width}}" if number in right else f"{cell:<{width}}" for number, (cell, width) in enumerate(cells)]
        for cells in (zip(row, widths, strict=True) for row in (header, *rows))
    ]
    rule = ["-" * (width or 6) for width in widths]
    rule = [f"{dashes[:-1]}:" if number in right else dashes for number, dashes in enumerate(rule)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    below = f"| {' | '.join(rule)} |" if padded else f"|{'|'.join(rule)}|"
    return "\n".join([first, below, *others])
