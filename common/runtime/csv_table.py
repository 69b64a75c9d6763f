"""CSV files: tables with one dataclass per row, and named columns."""

from __future__ import annotations

import contextlib
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
            if next(lines, columns) != columns:  # an empty file has no rows, either
                raise UserError(f"{file} has other columns than {','.join(columns)}; give another file")
            return [
                kind(*(_read(types[column], cell) for column, cell in zip(columns, cells, strict=True)))
                for cells in lines
            ]
        except (ValueError, csv.Error) as error:
            if not lines.line_num:
                raise UserError(f"{file} is no table ({error}); give another file") from error
            raise UserError(f"{file} line {lines.line_num} is damaged ({error}); correct or delete it") from error


def _read(kind: type, cell: str) -> Any:
    value = kind(cell)
    if kind is not str and not abs(value) < 2**63:  # NaN is not, either
        raise ValueError(f"{cell[:80]} is not finite, or huge")
    return value


def append_rows(file: Path, kind: type[Row], rows: Iterable[Row]) -> None:
    """Append rows to a table, or create it. Without rows, this checks that the file can be written.

    Several processes may append at a time. After an error the table has its old rows.

    Raises:
        UserError: see :func:`read_table`.
        OSError: the file cannot be written.
    """
    if file.exists():
        open_regular(file).close()  # refuses a pipe, which would be waited for
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab", buffering=0) as table:
        with contextlib.suppress(ImportError, OSError):  # Windows, or a file system without locks
            import fcntl

            fcntl.flock(table, fcntl.LOCK_EX)
        read_table(file, kind)
        old = file.read_bytes()
        text = io.StringIO("" if old[-1:] in (b"", b"\n") else "\n", newline="")  # some editors end within a line
        text.seek(0, io.SEEK_END)
        writer = csv.writer(text, lineterminator="\n")
        if not old:
            writer.writerow(_columns(kind))
        writer.writerows(map(astuple, rows))
        new = text.getvalue().encode(errors="backslashreplace")  # paths may be no text
        try:
            while new:
                new = new[table.write(new) :]
        except OSError:  # such as a full disk, which may take half a row
            os.truncate(file, len(old))
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
