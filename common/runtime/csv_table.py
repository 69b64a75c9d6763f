"""CSV files with one dataclass per row, written atomically."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_type_hints

from ..errors import UserError
from .text_file import write_text

__all__ = ["read_table", "write_table"]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Line = TypeVar("Line", bound="DataclassInstance")


def read_table(file: Path, kind: type[Line]) -> list[Line]:
    """Read a table; a missing file has no rows.

    Args:
        kind: a dataclass whose fields are the columns; the type of each, such as ``int``, converts its text.

    Raises:
        UserError: the file cannot be read, has other columns, or a line is damaged; the message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    columns, types = _columns(kind), get_type_hints(kind)
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        if next(lines, None) != columns:
            raise UserError(f"{file} does not begin with the columns {','.join(columns)}; give another file")
        found = []
        for cells in lines:
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} of {len(columns)} cells")
            found.append(kind(*(types[column](cell) for column, cell in zip(columns, cells, strict=True))))
        return found
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} line {lines.line_num} is damaged ({error}); correct or delete it") from error


def write_table(file: Path, kind: type[Line], lines: Iterable[Line]) -> None:
    """Replace a table atomically.

    Raises:
        OSError: it cannot be written; it is unchanged then.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(kind))
    writer.writerows(map(astuple, lines))
    write_text(file, text.getvalue())


def _columns(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]
