"""What the runs of an ablation gave: a CSV file of one line a run, which is at any time whole."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from common.errors import UserError
from common.text_file import write_text
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
        code_version: see :func:`common.machine.code_version`.
        machine: see :func:`common.machine.describe_device`.
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


_KINDS = {"int": int, "float": float, "str": str}
_COLUMNS = {field.name: _KINDS[field.type] for field in fields(Result)}


def read_results(file: Path) -> list[Result]:
    """Read the finished runs; none where there is no file.

    Raises:
        UserError: it is no such file, or is damaged; the message names the line.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    if next(lines, None) != list(_COLUMNS):
        raise UserError(f"{file} does not begin with the columns {','.join(_COLUMNS)}; give another -results")
    results: dict[tuple[str, int], Result] = {}
    for number, cells in enumerate(lines, start=2):
        try:
            result = Result(*(kind(cell) for kind, cell in zip(_COLUMNS.values(), cells, strict=True)))
        except ValueError as error:
            raise UserError(f"{file} line {number} is damaged ({error}); mend or delete it") from error
        if (result.row, result.seed) in results:
            raise UserError(f"{file} line {number} repeats {result.row} with seed {result.seed}; delete one")
        results[result.row, result.seed] = result
    return list(results.values())


def write_results(results: Iterable[Result], file: Path) -> None:
    """Write all finished runs, in the order of their names and seeds, in place of what the file held.

    Raises:
        OSError: it cannot be written; it is then as it was.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(result) for result in sorted(results, key=lambda r: (natural(r.row), r.seed)))
    write_text(file, text.getvalue())
