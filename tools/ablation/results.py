"""What the runs of an ablation gave: a CSV file of one line a run, which is at any time whole."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.runtime.csv_table import read_table, write_table
from tools.ablation.rows import natural

__all__ = ["Result", "read_results", "write_results"]


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        row, seed: which one.
        top1: validation accuracy in % after the last epoch.
        best_top1: the highest of all epochs; it is chosen on the images that it is measured on.
        params, multiply_adds: see :class:`tools.ablation.rows.Counts`.
        seconds: training, without evaluations, at the median speed of the run.
        fingerprint: see :func:`tools.ablation.rows.fingerprint`.
        code_version: see :func:`common.runtime.machine.code_version`.
        machine: see :func:`common.runtime.machine.describe_device`.
        date: when it was finished, in UTC.
    """

    row: str
    seed: int
    top1: float
    best_top1: float
    params: int
    multiply_adds: int
    seconds: float
    fingerprint: str
    code_version: str
    machine: str
    date: str


def read_results(file: Path) -> list[Result]:
    """Read the finished runs; none where there is no file.

    Raises:
        UserError: as :func:`common.runtime.csv_table.read_table`, or a run is in it twice.
    """
    results = read_table(file, Result)
    seen: set[tuple[str, int]] = set()
    for result in results:
        if (result.row, result.seed) in seen:
            raise UserError(f"{file} has {result.row} with seed {result.seed} twice; delete one")
        seen.add((result.row, result.seed))
    return results


def write_results(results: Iterable[Result], file: Path) -> None:
    """Write all finished runs, in the order of their names and seeds, in place of what the file held.

    Raises:
        OSError: it cannot be written; it is then as it was.
    """
    write_table(file, Result, sorted(results, key=lambda result: (natural(result.row), result.seed)))
