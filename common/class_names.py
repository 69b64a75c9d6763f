"""Names of classes out of the text file that stands beside the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["read_class_names"]


def read_class_names(folder: Path, files: Sequence[str]) -> tuple[list[str], Path] | None:
    """Read the first of the files that there is: one name a line, without empty lines.

    Args:
        files: their names in the folder. UTF-8 with or without a byte order mark; what is none becomes U+FFFD.

    Returns:
        The names and the file that they are from, or None if there is no such file.
    """
    for path in (folder / file for file in files):
        if path.is_file():
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            return [line.strip() for line in text.splitlines() if line.strip()], path
    return None
