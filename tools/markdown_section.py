"""Parts of Markdown documents that programs write: from ``<!-- begin NAME -->`` to ``<!-- end NAME -->``."""

from __future__ import annotations

from pathlib import Path

from common.errors import UserError
from common.runtime.text_file import write_text

__all__ = ["read_section", "replace_section"]


def read_section(document: Path, name: str) -> str:
    """What stands between the two marks of ``name``, without blank lines around it.

    Raises:
        UserError: the document cannot be read, or has not exactly one such part.
    """
    return _split(document, name)[1].strip()


def replace_section(document: Path, name: str, content: str) -> None:
    """Put ``content`` between the two marks of ``name``; what was there is dropped.

    Raises:
        UserError: as :func:`read_section`, or the document cannot be written.
    """
    head, _, tail = _split(document, name)
    try:
        write_text(document, f"{head}\n{content.strip()}\n{tail}")
    except OSError as error:
        raise UserError(f"cannot write {document}: {error.strerror or error}") from error


def _split(document: Path, name: str) -> tuple[str, str, str]:
    """What is before the section, mark included, what is in it, and what is after it, mark included."""
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
