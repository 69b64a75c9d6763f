"""The rows of the paper's tables beside ours, and what else was measured here."""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.training.paper_figures import NEIGHBOURS, SOURCES, VALIDATION, PaperFigure, figures_of
from common.training.results import Result, read_results, results_file
from tools.helpers.training_cost import training_cost
from tools.paper.metrics import COUNTED
from tools.paper.models import ABLATIONS, ROOT, Counts, configuration, count, count_classifier

__all__ = ["PAPER_TABLES", "TABLES", "TASKS", "Row", "Summary", "counted_rows", "measured", "paper_rows", "summaries"]

TASKS = tuple(VALIDATION)

# The tables with a row for each model, and their tasks.
PAPER_TABLES = {"imagenet": "image_classification", "ade20k": "semantic_segmentation", "coco": "object_detection"}


@dataclass(frozen=True)
class Row:
    """A figure of the paper beside ours.

    Attributes:
        paper: what the paper prints, or None where that is not known.
        ours: None where nobody has measured it.
        origin: how ours came about, or why there is none.
    """

    model: str
    metric: str
    paper: PaperFigure | None
    ours: float | None
    origin: str

    @property
    def difference(self) -> float | None:
        return None if self.ours is None or self.paper is None else self.ours - self.paper.value

    @property
    def is_counted(self) -> bool:
        return self.metric in COUNTED

    @property
    def is_off(self) -> bool:
        """Whether ours is counted, and differs from the paper's by more than one in the last digit printed."""
        if not self.is_counted or self.difference is None:
            return False
        return abs(self.difference) > self.paper.last_digit * (1 + 1e-9)

    def as_record(self) -> dict[str, Any]:
        """The row as plain values, for JSON."""
        known = self.paper
        return {
            "model": self.model,
            "metric": self.metric,
            "paper": known and known.value,
            "mark": known and known.mark,
            "source": known and SOURCES[known.paper],
            "ours": self.ours,
            "difference": self.difference,
            "within_one_digit": not self.is_off if self.is_counted and known else None,
            "origin": self.origin,
        }


@dataclass(frozen=True)
class Summary:
    """One metric of one model, out of all runs that were recorded.

    Attributes:
        value: their median.
        runs: how many.
        checkpoint: SHA-256 of the weights, if these were evaluated from a file.
    """

    model: str
    data_set: str
    metric: str
    value: float
    runs: int
    checkpoint: str

    @property
    def origin(self) -> str:
        """What it was taken out of."""
        if self.checkpoint:
            return f"checkpoint {self.checkpoint[:8]}"
        return f"median of {self.runs} runs" if self.runs > 1 else "one run"

    def as_record(self) -> dict[str, Any]:
        """The summary as plain values, for JSON."""
        return asdict(self)


def paper_rows(task: str) -> Iterator[Row]:
    """The rows of the paper's table of a task; those that were not run say what they would take."""
    counted = {(row.model, row.metric): row for row in counted_rows(task)}
    for figure in figures_of(task):
        if row := counted.get((figure.model, figure.metric)):
            yield row
            continue
        ours, origin = measured(task, figure.model, figure.metric)
        if ours is None:
            needs = [VALIDATION[task][0], *["label maps"] * (figure.metric == "top1_token_labels")]
            origin = f"not run: needs {', '.join(needs)}, {_hours(configuration(task, figure.model))}"
        yield Row(figure.model, figure.metric, figure, ours, origin)


def counted_rows(task: str) -> Iterator[Row]:
    """Those of the paper's rows that can be counted."""
    for figure in figures_of(task):
        if figure.metric in COUNTED:
            yield Row(figure.model, figure.metric, figure, getattr(count(task, figure.model), figure.metric), "counted")


def measured(task: str, model: str, metric: str) -> tuple[float | None, str]:
    """The latest measurement of a row of the paper, and how it came about; None if there is none.

    Args:
        model: the backbone; a result is one of it if it carries the paper's figure.
    """
    found = [
        result
        for result in _results_of(task)
        if result.metric == metric and result.paper_value and model in result.model.split()
    ]
    return _latest(found)


def _ablation_rows() -> Iterator[Row]:
    """What the paper varies, a configuration each. Its figures are not known here."""
    from image_classification.config import CONFIG, model_title

    task = "image_classification"
    for path in ABLATIONS:
        counts: Counts = count_classifier(path)
        for metric in COUNTED:
            yield Row(path.stem, metric, None, getattr(counts, metric), "counted")
        title, data_set = model_title(CONFIG.load(Namespace(cfg=path, opts=[]))), VALIDATION[task][0]
        found = [r for r in _results_of(task) if (r.model, r.data_set, r.metric) == (title, data_set, "top1")]
        ours, origin = _latest(found)
        if ours is None:
            origin = f"not run: needs {data_set}, {_hours(path)}"
        yield Row(path.stem, "top1", None, ours, origin)


def summaries(task: str) -> list[Summary]:
    """What was measured here and is no row of the paper: runs of several seeds as one, evaluated files each."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for result in _results_of(task):
        if not result.paper_value and result.data_set != VALIDATION[task][0]:
            key = result.model, result.data_set, result.metric, result.checkpoint_sha256
            groups.setdefault(key, []).append(float(result.value))
    return [
        Summary(model, data_set, metric, statistics.median(values), len(values), checkpoint)
        for (model, data_set, metric, checkpoint), values in groups.items()
    ]


@cache
def _results_of(task: str) -> tuple[Result, ...]:
    """The recorded results of a task."""
    return tuple(read_results(ROOT / results_file(task)))


def _latest(results: Sequence[Result]) -> tuple[float | None, str]:
    if not results:
        return None, "not run"
    result = max(results, key=lambda result: result.date)
    of = f", checkpoint {result.checkpoint_sha256[:8]}" if result.checkpoint_sha256 else ""
    return float(result.value), f"measured{of}, {result.date.partition('T')[0] or 'undated'}"


def _hours(path: Path) -> str:
    return f"~{training_cost(path).gpu_hours:.0f} A100-hours"


def _neighbours() -> Iterator[PaperFigure]:
    for task in TASKS:
        for paper in NEIGHBOURS:
            yield from figures_of(task, paper)


# The tables by their names on the command line.
TABLES: dict[str, Callable[[], Iterable[Row | PaperFigure | Summary]]] = {
    **{name: partial(paper_rows, task) for name, task in PAPER_TABLES.items()},
    "ablations": _ablation_rows,
    "neighbours": _neighbours,
    "here": lambda: (summary for task in TASKS for summary in summaries(task)),
}
