"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Container, Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int]) -> str:
    """Lay cells out as a table.

    Args:
        right: the columns, from 0, whose texts stand to the right.
    """
    rule = ["-----:" if number in right else "------" for number in range(len(header))]
    return "\n".join([f"| {' | '.join(header)} |", f"|{'|'.join(rule)}|", *(f"| {' | '.join(row)} |" for row in rows)])
