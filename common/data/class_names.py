"""Names of classes: out of the text file that stands beside the data, and compared with those that a model learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError

__all__ = ["check_class_order", "read_class_names"]


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


def check_class_order(names: Sequence[str] | None, learnt: Sequence[str] | None, data: str, source: str) -> None:
    """Stop where the data numbers the classes otherwise than a model did; other names for them are no error.

    Args:
        names, learnt: of the data's classes and of the model's; None where they have none.
        data, source: what has them, for the message.

    Raises:
        UserError: a class has another number.
    """
    for number, (name, other) in enumerate(zip(names or (), learnt or (), strict=False)):
        if learnt and name != other and name in learnt:
            raise UserError(
                f"class {number} is {name!r} in {data} and {other!r} in {source}; give the data's classes the order "
                "that they had in training"
            )
