"""Markdown, CSV and pictures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

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
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = [heading in words for heading in header]
    rule = ["-" * width if is_left else "-" * (width - 1) + ":" for width, is_left in zip(widths, left, strict=True)]
    aligned = (
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, left, strict=True)
        ]
        for line in lines
    )
    first, *others = (f"| {' | '.join(line)} |" for line in aligned)
    return "\n".join([first, f"| {' | '.join(rule)} |", *others])


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
