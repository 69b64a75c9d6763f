"""Markdown tables, and the sections of documents that programs write.

A section is what stands between the lines ``<!-- begin NAME -->`` and ``<!-- end NAME -->``.
"""

from __future__ import annotations

import os
from collections.abc import Container, Sequence
from pathlib import Path

from common.errors import UserError, printable
from common.runtime.atomic_file import write_text
from common.runtime.regular_file import open_regular

__all__ = ["markdown_table", "read_section", "replace_section"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[int]) -> str:
    """Format a table whose columns have the same width in all lines; texts of files are made printable.

    Args:
        right: columns, counted from 0, that are aligned to the right.
    """
    header, *rows = [list(map(printable, row)) for row in (header, *rows)]
    widths = [max(3, *map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = [f"{'-' * (width - 1)}:" if number in right else "-" * width for number, width in enumerate(widths)]
    lines = []
    for row in (header, rule, *rows):
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.rjust(width) if number in right else cell.ljust(width) for number, (cell, width) in pairs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_section(document: Path, name: str) -> str:
    """The text of a section, without blank lines around it.

    Raises:
        UserError: the document cannot be read, or does not have the section exactly once.
    """
    return "\n".join(_split(document, name)[1].strip().splitlines())


def replace_section(document: Path, name: str, content: str) -> None:
    """Replace the text of a section.

    Raises:
        UserError: as :func:`read_section`, or the document cannot be written.
    """
    head, _, tail = _split(document, name)
    end = "\r\n" if "\r\n" in head + tail else "\n"
    text = end.join([head, *content.strip().splitlines(), tail])
    try:
        write_text(Path(os.path.realpath(document)), text)  # of a link, the document itself
    except OSError as error:
        raise UserError(f"cannot write {document}: {error.strerror or error}") from error


def _split(document: Path, name: str) -> tuple[str, str, str]:
    """The text up to the section, the section, and the rest; the marks are in the first and the last."""
    try:
        with open_regular(document, "rb") as file:
            text = file.read().decode()  # keeps the ends of lines
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from error
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, _, rest = text.partition(begin)
    section, found, tail = rest.partition(end)
    if not found or text.count(begin) + text.count(end) != 2:
        raise UserError(f"{document} must have the lines {begin} and {end} once, in this order")
    return head + begin, section, end + tail
