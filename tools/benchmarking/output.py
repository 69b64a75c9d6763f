"""Markdown, CSV and pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tools.helpers.markdown import markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MACHINE", "Record", "digits", "pyplot", "save_figure", "table", "write_csv"]

Record = dict[str, Any]

# The columns of tools.benchmarking.machine.describe_machine.
MACHINE = ("date", "git", "cpu", "cores", "memory_gb", "system", "python")


def digits(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], words: Sequence[str]) -> str:
    """A Markdown table, its columns as wide as their cells; those with headings in ``words`` stand to the left."""
    right = [number for number, heading in enumerate(header) if heading not in words]
    return markdown_table(header, list(rows), right, padded=True)


def write_csv(records: Sequence[Record], machine: Mapping[str, Any], file: Path, columns: Sequence[str]) -> None:
    """Write all records, each with what it was measured on."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows({**machine, **record} for record in records)


def pyplot() -> ModuleType:
    """matplotlib's pyplot, for pictures in files. It is imported late, because that takes half a second."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save_figure(figure: Figure, file: Path) -> None:
    figure.savefig(file, dpi=110)
    pyplot().close(figure)
