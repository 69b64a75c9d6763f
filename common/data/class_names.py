"""Class names from a text file, and a check of the order of classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError, printable

__all__ = ["check_class_order", "printable_names", "read_class_names"]

_MAX_LENGTH = 200  # characters of a name


def read_class_names(folder: Path, files: Sequence[str]) -> tuple[list[str], Path] | None:
    """Read the first of the files that exists: one name per line, empty lines are skipped.

    Lines ``NUMBER NAME``, as PaddleClas writes them, are sorted by their numbers if these are 0 to n - 1.

    Args:
        folder: where the files are.
        files: their names. They are read as UTF-8, with or without a byte order mark; invalid bytes become U+FFFD.

    Returns:
        The names and the path of the file, or None if no file exists.
    """
    for path in (folder / file for file in files):
        if path.is_file():
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            return printable_names(_in_order(lines)), path
    return None


def _in_order(lines: list[str]) -> list[str]:
    pairs = [line.split(maxsplit=1) for line in lines]
    numbers = [int(pair[0]) if len(pair) == 2 and pair[0].isdecimal() else -1 for pair in pairs]
    if sorted(numbers) != list(range(len(lines))):
        return lines
    return [pairs[index][1] for index in sorted(range(len(lines)), key=numbers.__getitem__)]


def printable_names(names: Iterable[str]) -> list[str]:
    """Make the class names of a file or folder safe to print; see :func:`common.errors.printable`."""
    return [printable(name, _MAX_LENGTH) for name in names]


def check_class_order(names: Sequence[str] | None, learned: Sequence[str] | None, data: str, source: str) -> None:
    """Check that the data numbers its classes as a model does. Classes may be renamed, but not reordered.

    Args:
        names, learned: class names of the data and of the model, or None.
        data, source: where they come from, for the message.

    Raises:
        UserError: a class has another number.
    """
    for number, (name, other) in enumerate(zip(names or (), learned or (), strict=False)):
        if learned and name != other and name in learned:
            raise UserError(
                f"class {number} is {name!r} in {data} and {other!r} in {source}; use the same order of "
                "classes as in training"
            )
