"""The figures printed by the paper and by the papers of neighboring models; paper_figures.csv holds them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.runtime.csv_table import read_table

__all__ = ["NEIGHBORS", "PAPER", "SOURCES", "PaperFigure", "figures_of", "find_figure"]

PAPER = "Pale Transformer"
SOURCES = {
    PAPER: "https://arxiv.org/abs/2112.14000",
    "Swin Transformer": "https://arxiv.org/abs/2103.14030",
    "CSWin Transformer": "https://arxiv.org/abs/2107.00652",
}
NEIGHBORS = tuple(paper for paper in SOURCES if paper != PAPER)


@dataclass(frozen=True)
class PaperFigure:
    """One printed figure.

    Attributes:
        paper: a key of ``SOURCES``.
        task: folder of the task's launcher.
        model: backbone; those of ``PAPER`` have their names of ``create_model``.
        metric: ``params`` (millions), ``flops`` (billions of multiply-adds), or a metric of the evaluation (percent).
        text: the figure with the printed digits.
        mark: its source, see ``docs/paper.md``; empty for neighbors.
    """

    paper: str
    task: str
    model: str
    metric: str
    text: str
    mark: str

    @property
    def value(self) -> float:
        return float(self.text)

    @property
    def last_digit(self) -> float:
        """The value of one unit of the last printed digit."""
        return 10.0 ** -len(self.text.partition(".")[2])


@cache
def _read() -> tuple[PaperFigure, ...]:
    return tuple(read_table(Path(__file__).with_suffix(".csv"), PaperFigure))


def figures_of(task: str, paper: str = PAPER) -> Iterator[PaperFigure]:
    """The figures of one task in one paper, in the order of the file."""
    return (figure for figure in _read() if (figure.task, figure.paper) == (task, paper))


def find_figure(task: str, model: str, metric: str) -> PaperFigure | None:
    """One figure of ``PAPER``, or None if it does not print it."""
    found = (figure for figure in figures_of(task) if (figure.model, figure.metric) == (model, metric))
    return next(found, None)
