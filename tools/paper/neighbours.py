"""What the papers of neighbouring models print, as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from common.training.paper_figures import SOURCES, PaperFigure
from tools.paper.metrics import METRICS

__all__ = ["neighbour_cells"]


def neighbour_cells(
    figures: Sequence[PaperFigure], source: str = "{paper}, {address}"
) -> tuple[list[str], list[list[str]], range]:
    """Header, rows, and the columns that stand to the right.

    Args:
        figures: of one task, those of a model together.
        source: how to name a paper.
    """
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    rows = []
    for (paper, model), group in groupby(figures, lambda figure: (figure.paper, figure.model)):
        printed = {figure.metric: figure.text for figure in group}
        cells = (printed.get(metric, "-") for metric in metrics)
        rows.append([model, *cells, source.format(paper=paper, address=SOURCES[paper])])
    header = ["model", *(METRICS[metric].title for metric in metrics), "source"]
    return header, rows, range(1, len(metrics) + 1)
