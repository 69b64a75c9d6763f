"""Markdown tables, and the sections of documents that programs write.

A section is what stands between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from common.errors import UserError
from common.runtime.atomic_file import write_text

__all__ = ["markdown_table", "read_section", "replace_section"]


def markdown_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int], padded: bool = False
) -> str:
    """Format a table.

    Args:
        right: columns, counted from 0, that are aligned to the right.
        padded: give all cells of a column the same width, for a terminal. Without it, a changed cell changes one line.
    """
    columns = range(len(header))
    widths = [max(3, *(len(row[number]) for row in (header, *rows))) if padded else 0 for number in columns]
    rule = ["-" * (width or 6) for width in widths]
    lines = [
        [
            f"{cell:>{widths[number]}}" if number in right else f"{cell:<{widths[number]}}"
            for number, cell in enumerate(row)
        ]
        for row in (header, *rows)
    ]
    rule = [f"{dashes[:-1]}:" if number in right else dashes for number, dashes in enumerate(rule)]
    first, *others = (f"| {' | '.join(line)} |" for line in lines)
    second = f"| {' | '.join(rule)} |" if padded else f"|{'|'.join(rule)}|"
    return "\n".join([first, second, *others])


def read_section(document: Path, name: str) -> str:
    """The text of a section, without blank lines around it.

    Raises:
        UserError: the document cannot be read, or does not have the section exactly once.
    """
    return _split(document, name)[1].strip()


def replace_section(document: Path, name: str, content: str) -> None:
    """Replace the text of a section.

    Raises:
        UserError: as :func:`read_section`, or the document cannot be written.
    """
    head, _, tail = _split(document, name)
    try:
        write_text(document, f"{head}\n{content.strip()}\n{tail}")
    except OSError as error:
        raise UserError(f"cannot write {document}: {error.strerror or error}") from error


def _split(document: Path, name: str) -> tuple[str, str, str]:
    """The text before the section, in it and after it; the first and the last have its marks."""
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from error
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, found_begin, rest = text.partition(begin)
    section, found_end, tail = rest.partition(end)
    if not found_begin or not found_end or text.count(begin) + text.count(end) != 2:
        raise UserError(f"{document} must have the lines {begin} and {end} once, in this order")
    return head + begin, section, end + tail
