"""Class names from a text file, and a check of the order of classes."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import UserError, printable
from ..runtime.regular_file import open_regular

__all__ = [
    "MAX_CLASSES",
    "check_class_names",
    "check_class_order",
    "composed",
    "distinct_names",
    "has_names",
    "list_names",
    "printable_names",
    "read_class_names",
    "renamed_classes",
]

MAX_CLASSES = 2**16
_MAX_LENGTH = 200  # characters
_NAMES_SHOWN = 10


def composed(name: str) -> str:
    """The composed form (NFC) of a name: macOS and Linux may write the same umlaut or accent in different forms."""
    return unicodedata.normalize("NFC", name)


def read_class_names(folder: Path, files: Sequence[str]) -> tuple[list[str], Path] | None:
    """Read the class names of a folder: one name per line, empty lines are skipped.

    Lines ``NUMBER NAME``, as PaddleClas writes them, are sorted by their numbers if these are 0 to n - 1.

    Args:
        folder: where the files are.
        files: their names. They are read as UTF-8, with or without a byte order mark.

    Returns:
        The :func:`composed` names and the path of the first file, or None if no file exists.

    Raises:
        UserError: a file is not UTF-8, two files have different names, or as :func:`check_class_names`.
        OSError: a file cannot be read, see :func:`common.runtime.regular_file.open_regular`.
    """
    found = [(_read_names(path), path) for path in (folder / file for file in files) if os.path.lexists(path)]
    for names, path in found[1:]:
        if names != found[0][0]:
            raise UserError(f"{found[0][1]} and {path} have different class names; remove or correct one of them")
    return found[0] if found else None


def _read_names(path: Path) -> list[str]:
    try:
        with open_regular(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_CLASSES * _MAX_LENGTH)
    except UnicodeDecodeError as error:
        raise UserError(f"the class names in {path} are not UTF-8 ({error.reason}); save the file as UTF-8") from error
    names = _in_order([composed(line.strip()) for line in text.splitlines() if line.strip()])
    check_class_names(names, path)
    return names


def _in_order(lines: list[str]) -> list[str]:
    pairs = [line.split(maxsplit=1) for line in lines]
    numbers = [int(pair[0]) if len(pair) == 2 and re.fullmatch("[0-9]{1,5}", pair[0]) else -1 for pair in pairs]
    if sorted(numbers) != list(range(len(lines))):
        return lines
    return [pairs[index][1] for index in sorted(range(len(lines)), key=numbers.__getitem__)]


def printable_names(names: Iterable[str]) -> list[str]:
    """Make class names that come with weights safe to print, and compose them; see :func:`common.errors.printable`."""
    return [printable(composed(name), _MAX_LENGTH) for name in names]


def list_names(names: Sequence[str]) -> str:
    """The first ten class names in one line."""
    return ", ".join(names[:_NAMES_SHOWN]) + ", ..." * (len(names) > _NAMES_SHOWN)


def distinct_names(names: Sequence[str] | None, num_classes: int) -> list[str]:
    """Printable names of all classes, of which no two are equal.

    A class without a name has its number. Classes of one name, such as the two cranes of ImageNet, get it appended.
    """
    printed = printable_names(names or ())
    printed += [str(number) for number in range(len(printed), num_classes)]
    counts = Counter(printed)
    return [f"{name} ({number})" if counts[name] > 1 else name for number, name in enumerate(printed)]


def has_names(names: Sequence[str] | None) -> bool:
    """Whether classes have names; their mere numbers 0, 1, ... are none."""
    given = list(names or ())
    return given != [str(number) for number in range(len(given))]


def check_class_names(names: Sequence[str], source: str | Path) -> None:
    """Check that class names can be shown in tables and pictures.

    Args:
        source: where they come from, for the message.

    Raises:
        UserError: there are more than 65,536, or one has more than 200 characters or some that cannot be printed.
    """
    if len(names) > MAX_CLASSES:
        raise UserError(f"{source} has {len(names):,} class names; give at most {MAX_CLASSES:,}")
    for number, name in enumerate(names):
        if len(name) > _MAX_LENGTH:
            raise UserError(
                f"{source}: the name of class {number} has {len(name):,} characters; give it at most {_MAX_LENGTH}"
            )
        if any(not character.isprintable() and unicodedata.category(character) != "Zs" for character in name):
            raise UserError(f"{source}: the name of class {number}, {name!a}, cannot be printed; give it another")


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


def renamed_classes(
    names: Sequence[str] | None, learned: Sequence[str] | None, source: str = "the weights"
) -> list[str]:
    """The classes that the data and ``source`` call by different names; see :func:`check_class_order`.

    Returns:
        A line for each of the first ten and, if there are more, their number; or one line if only one has names.
    """
    if names is None and learned and has_names(learned):
        shown = ", ".join(learned[:3])
        return [f"the data names no classes, so their order cannot be compared with that of {source}: {shown}, ..."]
    if names and has_names(names) and not learned:
        shown = ", ".join(names[:3])
        return [f"{source} have no class names, so their order cannot be compared with that of the data: {shown}, ..."]
    lines = [
        f"class {number} is {name!r} in the data and {other!r} in {source}"
        for number, (name, other) in enumerate(zip(names or (), learned or (), strict=False))
        if name != other
    ]
    more = len(lines) - _NAMES_SHOWN
    return [*lines[:_NAMES_SHOWN], f"and {more:,} more classes"] if more > 0 else lines
