"""Tables of measured figures: CSV files, one a task, that evaluations append to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..runtime.csv_table import read_table, write_table

__all__ = ["Result", "append_results", "read_results", "results_file"]


@dataclass(frozen=True)
class Result:
    """A line of a table. What is not known is empty.

    Attributes:
        value: in percent.
        paper_value: the paper's figure, with the digits that it prints, where this is one of its rows.
        checkpoint_sha256: of the file that was evaluated; empty for the last weights of a training run.
        command: what was run, in the project's folder.
        code_version: see :func:`common.runtime.machine.code_version`.
        machine: see :func:`common.runtime.machine.describe_device`.
        date: when it was measured, in UTC.
    """

    model: str
    data_set: str
    metric: str
    value: str
    paper_value: str
    checkpoint_sha256: str
    command: str
    code_version: str
    machine: str
    date: str


def results_file(task: str) -> Path:
    """Where the results of a task are kept, seen from the project's folder.

    Args:
        task: folder of its launcher.
    """
    return Path("results") / f"{task}.csv"


def read_results(file: Path) -> list[Result]:
    """Read a table; none where there is no file.

    Raises:
        UserError: as :func:`common.runtime.csv_table.read_table`.
    """
    return read_table(file, Result)


def append_results(file: Path, results: Sequence[Result]) -> None:
    """Append lines to a table, which is made if need be; other processes may do the same.

    Called without results, this finds out whether the file can be written at all.

    Raises:
        UserError: it cannot be written, has other columns, or is damaged; it is then as it was.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent):
            write_table(file, Result, [*read_results(file), *results])
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror or error}; give another -record") from error


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time write into a folder, where the system can (Windows cannot)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # network file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
