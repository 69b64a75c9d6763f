"""The figures that the paper and its neighbours print, out of ``paper_figures.csv``: the only place that has them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..runtime.csv_table import read_table

__all__ = ["NEIGHBOURS", "PAPER", "SOURCES", "VALIDATION", "PaperFigure", "figures_of", "find_figure"]

_FILE = Path(__file__).with_suffix(".csv")

PAPER = "Pale Transformer"
# Papers, and where they are. The neighbours' figures are those of their own papers.
SOURCES = {
    PAPER: "https://arxiv.org/abs/2112.14000",
    "Swin Transformer": "https://arxiv.org/abs/2103.14030",
    "CSWin Transformer": "https://arxiv.org/abs/2107.00652",
}
# What the figures of a task were measured on: the data set, and the images of its validation part.
VALIDATION = {
    "image_classification": ("ImageNet-1K", 50_000),
    "semantic_segmentation": ("ADE20K", 2_000),
    "object_detection": ("COCO", 5_000),
}
NEIGHBOURS = tuple(paper for paper in SOURCES if paper != PAPER)


@dataclass(frozen=True)
class PaperFigure:
    """A printed figure.

    Attributes:
        paper: one of ``SOURCES``.
        task: folder of the task's launcher.
        model: backbone; those of ``PAPER`` are called as in ``create_model``.
        metric: ``params`` (millions), ``flops`` (billions of multiply-adds), or as the task's evaluation calls it (in
            percent).
        text: with the digits that are printed.
        mark: how it is known, see ``docs/paper.md``; empty for neighbours.
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
        """What one in the last digit is worth."""
        return 10.0 ** -len(self.text.partition(".")[2])

    def as_record(self) -> dict[str, Any]:
        """The figure as plain values, for JSON."""
        return {**asdict(self), "value": self.value, "source": SOURCES[self.paper]}


@cache
def _read() -> tuple[PaperFigure, ...]:
    return tuple(read_table(_FILE, PaperFigure))


def figures_of(task: str, paper: str = PAPER) -> Iterator[PaperFigure]:
    """The figures of a task in a paper, in the file's order."""
    return (figure for figure in _read() if (figure.task, figure.paper) == (task, paper))


def find_figure(task: str, model: str, metric: str, paper: str = PAPER) -> PaperFigure | None:
    """One figure, or None where the paper has none."""
    found = (figure for figure in figures_of(task, paper) if (figure.model, figure.metric) == (model, metric))
    return next(found, None)
