"""The paper's tables for a terminal of 120 columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from common.training.paper_figures import PaperFigure
from tools.paper.layout import aligned
from tools.paper.metrics import METRICS, Metric
from tools.paper.neighbours import neighbour_cells
from tools.paper.rows import Row, Summary

__all__ = ["CONVENTION", "as_text"]

CONVENTION = """\
A FLOP is one multiply-add. Ours include the norms as fvcore counts them, 5 for a value of a LayerNorm and 2 for one of
a BatchNorm; the paper's seem to include them [C]. The marks are those of docs/paper.md. Hours of an A100 are computed
from counted multiply-adds and an assumed utilisation, see docs/reproduction.md."""


def as_text(name: str, rows: Sequence) -> str:
    """A table of ``tools.paper.rows.TABLES`` with its title."""
    title, lay_out = _LAYOUTS[name]
    return f"{title}\n\n{lay_out(rows)}"


def comparison(rows: Sequence[Row]) -> str:
    """A line for each figure: the paper's, ours, the difference, and how ours came about."""
    header = ["model", "figure", "paper", "ours", "difference", "how ours came about"]
    lines = []
    for model, figures in groupby(rows, lambda row: row.model):
        for number, row in enumerate(figures):
            metric = METRICS[row.metric]
            paper = f"{row.paper.text} [{row.paper.mark}]" if row.paper else "unknown"
            ours = "-" if row.ours is None else f"{row.ours:.{metric.digits}f}"
            difference = "-" if row.difference is None else f"{row.difference:+.{metric.digits}f}"
            origin = f"{row.origin}, too far from the paper's" if row.is_off else row.origin
            lines.append([model if number == 0 else "", metric.title, paper, ours, difference, origin])
    return aligned(header, lines, right=(2, 3, 4))


def _neighbours(figures: Sequence[PaperFigure]) -> str:
    return "\n\n".join(
        f"{task.replace('_', ' ')}\n{aligned(*neighbour_cells(list(group)))}"
        for task, group in groupby(figures, lambda figure: figure.task)
    )


def _summaries(rows: Sequence[Summary]) -> str:
    lines = []
    for row in rows:
        metric = METRICS.get(row.metric, Metric(row.metric))
        lines.append([row.model, row.data_set, metric.title, f"{row.value:.{metric.digits}f}", row.origin])
    return aligned(["model", "data set", "figure", "value", "out of"], lines, right=(3,))


_LAYOUTS: dict[str, tuple[str, Callable[[Sequence], str]]] = {
    "imagenet": ("ImageNet-1K, 300 epochs, at 224x224", comparison),
    "ade20k": (
        "ADE20K, UPerNet, 160,000 steps; multiply-adds at 512x2048. Parameters have the auxiliary head, FLOPs do not",
        comparison,
    ),
    "coco": (
        "COCO, Mask R-CNN, 12 epochs; multiply-adds at 800x1280 with 1000 boxes and 100 masks",
        comparison,
    ),
    "ablations": (
        "Ablations on ImageNet-1K, a file of image_classification/configs/ablation each",
        comparison,
    ),
    "neighbours": ("Neighbours, each from its own paper", _neighbours),
    "here": ("Measured here on data that the paper has not, see docs/results.md", _summaries),
}
