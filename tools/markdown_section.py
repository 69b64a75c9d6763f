"""Parts of Markdown documents that programs write: from ``<!-- begin NAME -->`` to ``<!-- end NAME -->``."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.text_file import write_text

__all__ = ["replace_section"]


def replace_section(document: Path, name: str, content: str) -> None:
    """Put ``content`` between the two marks of ``name``; what was there is dropped.

    Raises:
        UserError: the document cannot be read, or has not exactly one such part.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {document}: {getattr(error, 'strerror', None) or error}") from error
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    head, found_begin, rest = text.partition(begin)
    _, found_end, tail = rest.partition(end)
    if not found_begin or not found_end or text.count(begin) + text.count(end) != 2:
        raise UserError(f"{document} must have the lines {begin} and {end} once, in this order")
    write_text(document, f"{head}{begin}\n{content.strip()}\n{end}{tail}")
