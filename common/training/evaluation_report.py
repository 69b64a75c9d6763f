"""The folder of ``-report``: tables and pictures of what a model gets wrong."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..data.confusion import list_confusions
from ..errors import UserError
from ..pictures.charts import draw_confusion
from ..runtime.atomic_file import replace_file
from ..runtime.csv_table import write_columns
from ..runtime.folders import refuse_other_files
from ..runtime.regular_file import open_regular

__all__ = ["ReportFiles", "class_files", "confusion_files", "prepare_report", "write_report"]

ReportFiles = Mapping[str, Callable[[BinaryIO], None]]  # functions that write the content, by the names of the files

# The files of all tasks. One evaluation writes some of them.
_FILES = (
    *("classes.csv", "confusion.csv", "confusion.png", "errors.csv"),
    *("precision_recall.csv", "precision_recall.png"),
)
_HEADINGS = (b"class,images,recall,", b"class,IoU,Acc,", b"class,objects,")  # how the first of them begins


def prepare_report(folder: Path, record: Path | None = None) -> None:
    """Create the folder of a report, before the evaluation.

    Args:
        record: file of results, which must not be in the folder.

    Raises:
        UserError: it cannot be created, or contains other files than those of a report.
    """
    if record and os.path.realpath(record.parent) == os.path.realpath(folder):
        raise UserError(f"-record {record} is in the folder of -report, whose files are replaced; give another -record")
    refuse_other_files(folder, _is_expected, "those of a report", "-report")
    if not _is_report(folder):
        raise UserError(f"{folder} holds files with names of a report that are none; give another -report")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def write_report(folder: Path, files: ReportFiles) -> None:
    """Write files atomically, and delete those of an earlier report that this one does not have.

    Args:
        folder: from :func:`prepare_report`.
        files: of the evaluation.

    Raises:
        UserError: a file cannot be written.
    """
    try:
        for name, write in files.items():
            with replace_file(folder / name) as file:
                write(file)
        for name in set(_FILES) - set(files):
            (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error


def class_files(names: Sequence[str], columns: Mapping[str, Iterable[Any]]) -> ReportFiles:
    """The table of the classes.

    Args:
        names: of the classes.
        columns: by heading, a value per class.
    """
    return {"classes.csv": partial(write_columns, columns={"class": names, **columns})}


def confusion_files(names: Sequence[str], matrix: np.ndarray) -> ReportFiles:
    """The confusion matrix as a list of pairs of classes, the most frequent confusions first, and as a picture.

    Args:
        names: of the classes.
        matrix: int64 [classes, classes], see :mod:`common.data.confusion`.
    """
    pairs = list_confusions(matrix, correct=True)
    columns: dict[str, Iterable[Any]] = {
        "true": [names[number] for number in pairs.label],
        "predicted": [names[number] for number in pairs.prediction],
        "count": pairs.count,
        "share": pairs.share,
    }
    return {
        "confusion.csv": partial(write_columns, columns=columns),
        "confusion.png": partial(draw_confusion, matrix=matrix, names=names),
    }


def _is_report(folder: Path) -> bool:
    """Whether a folder has no file of a report, or the table of the classes, which every report has."""
    table = folder / _FILES[0]
    if not table.is_file():
        return not any(os.path.lexists(folder / name) for name in _FILES)
    with open_regular(table, "rb") as file:
        return file.readline(100).startswith(_HEADINGS)


def _is_expected(path: Path) -> bool:
    return not path.is_dir() and (path.name in _FILES or path.name.startswith("."))


def _cannot_write(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}; give another -report")
