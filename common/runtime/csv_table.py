"""CSV files: tables with one dataclass per row, and named columns."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, get_type_hints

from ..errors import UserError
from .regular_file import open_regular

__all__ = ["append_rows", "read_table", "write_columns"]

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Row = TypeVar("Row", bound="DataclassInstance")


def read_table(file: Path, kind: type[Row]) -> list[Row]:
    """Read a table; a missing file has no rows.

    Args:
        kind: a dataclass whose fields are the columns; the type of each, ``int``, ``float`` or ``str``, converts its
            text.

    Raises:
        UserError: the file has other columns, or a line is damaged; the message names the line.
        OSError: it cannot be read.
    """
    if not file.exists():
        return []
    columns, types = _columns(kind), get_type_hints(kind)
    with open_regular(file, encoding="utf-8", newline="") as text:
        lines = csv.reader(text)
        try:
            if next(lines, None) != columns:
                raise UserError(f"{file} has other columns than {','.join(columns)}; give another file")
            return [
                kind(*(_read(types[column], cell) for column, cell in zip(columns, cells, strict=True)))
                for cells in lines
            ]
        except (ValueError, csv.Error) as error:
            raise UserError(f"{file} line {lines.line_num} is damaged ({error}); correct or delete it") from error


def _read(kind: type, cell: str) -> Any:
    value = kind(cell)
    if kind is not str and not abs(value) < 2**63:  # NaN is not, either
        raise ValueError(f"{cell[:80]} is not finite, or huge")
    return value


def append_rows(file: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Append rows to a table, or create it. Without rows, this checks that the file can be written.

    After an error the table has its old rows. It is not replaced as a whole, because several processes may append.

    Raises:
        UserError: see :func:`read_table`.
        OSError: the file cannot be written.
    """
    read_table(file, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    ends_within_line = file.exists() and file.read_bytes()[-1:] not in (b"", b"\n")  # as some editors save it
    size = file.stat().st_size if file.exists() else 0
    try:
        with file.open("a", encoding="utf-8", errors="backslashreplace", newline="") as text:  # paths may be no text
            if ends_within_line:
                text.write("\n")
            writer = csv.writer(text, lineterminator="\n")
            if not text.tell():
                writer.writerow(_columns(kind))
            writer.writerows(map(astuple, rows))
    except OSError:  # such as a full disk, which leaves half a row
        if size:
            os.truncate(file, size)
        else:
            file.unlink(missing_ok=True)
        raise


def write_columns(file: BinaryIO, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write columns of one length below their headings, in UTF-8; floats get six digits, NaN an empty cell."""
    text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(list(map(_cell, row)) for row in zip(*columns.values(), strict=True))
    text.detach()  # writes what is buffered, and leaves the file open


def _cell(value: Any) -> str:
    if isinstance(value, float):  # NumPy's float64 is one
        return "" if math.isnan(value) else f"{value:.6g}"
    return str(value)


def _columns(kind: type[Row]) -> list[str]:
    return [field.name for field in fields(kind)]
