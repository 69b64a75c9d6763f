"""The tables that documents include, written from the code, the papers' figures and the recorded results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from common.training.paper_figures import NEIGHBOURS, figures_of, find_figure
from tools.helpers.training_cost import training_cost_table
from tools.markdown_section import read_section, replace_section
from tools.markdown_table import markdown_table
from tools.paper.metrics import METRICS
from tools.paper.models import ROOT, Counts, configuration, count, count_demo
from tools.paper.neighbours import neighbour_cells
from tools.paper.rows import TASKS, measured, summaries

__all__ = ["outdated", "sections", "write_sections"]

_MODELS = ("pale_tiny", "pale_small", "pale_base")
_SIZES = {"image_classification": "224x224", "semantic_segmentation": "512x2048", "object_detection": "800x1280"}
# The metrics of the overview, and those of our own small data.
_OVERVIEW = {
    "image_classification": ("top1", "top1_token_labels"),
    "semantic_segmentation": ("mIoU", "mIoU_multi_scale"),
    "object_detection": ("box_AP", "mask_AP"),
}
_DEMO = {
    "image_classification": ("top1",),
    "semantic_segmentation": ("mIoU",),
    "object_detection": ("box_AP50", "mask_AP50"),
}
_DATA_SETS = {
    "mnist5k": "MNIST-5k",
    "fashion_mnist": "Fashion-MNIST",
    "Nuclei": "nuclei",
    "HENuclei": "H&E nuclei",
    "NucleiDataSet": "nuclei",
}


def sections() -> Iterator[tuple[Path, str, str]]:
    """Document, name of its section, and what belongs into it."""
    for task in TASKS:
        for readme in ("README.md", "README_cn.md"):
            yield ROOT / readme, task, _overview(task)
        yield ROOT / task / "README.md", "models", _models(task)
        yield ROOT / task / "README.md", "neighbours", _neighbours(task)
        yield ROOT / "docs" / "paper.md", task, _paper(task)
    yield ROOT / "docs" / "reproduction.md", "training_cost", training_cost_table()


def write_sections() -> list[Path]:
    """Write the sections that are not up to date; return the documents that changed.

    Raises:
        UserError: a document cannot be read or written, or lacks the marks of a section.
    """
    changed = []
    for document, name, content in _outdated():
        replace_section(document, name, content)
        changed.append(document)
    return list(dict.fromkeys(changed))


def outdated() -> list[tuple[Path, str]]:
    """The sections, as document and name, that differ from what would be written.

    Raises:
        UserError: a document cannot be read, or lacks the marks of a section.
    """
    return [(document, name) for document, name, _ in _outdated()]


def _outdated() -> Iterator[tuple[Path, str, str]]:
    return (section for section in sections() if read_section(*section[:2]) != section[2])


def _overview(task: str) -> str:
    metrics = _OVERVIEW[task]
    header = [*_size_header(task), *_titles(metrics), "here"]
    rows = [
        [f"`{model}`", *_sizes(task, model), *_printed(task, model, metrics), _ours(task, model, metrics)]
        for model in _MODELS
    ]
    rows.append(["`pale_nano`", *_cells(count_demo(task)), *["-"] * len(metrics), _demo(task)])
    return markdown_table(header, rows, right=range(1, 3 + len(metrics)))


def _models(task: str) -> str:
    metrics = [figure.metric for figure in figures_of(task) if figure.model == _MODELS[0]][2:]
    header = [
        *_size_header(task),
        *_titles(metrics),
        "here",
        "configuration",
    ]
    rows = []
    for model in _MODELS:
        file = configuration(task, model).name
        cells = [*_sizes(task, model), *_printed(task, model, metrics), _ours(task, model, metrics)]
        rows.append([f"`{model}`", *cells, f"[{file}](configs/{file})"])
    return markdown_table(header, rows, right=range(1, 3 + len(metrics)))


def _paper(task: str) -> str:
    first = [figure for figure in figures_of(task) if figure.model == _MODELS[0]]
    metrics = [figure.metric for figure in first]
    header = ["model", *(f"{METRICS[figure.metric].title} [{figure.mark}]" for figure in first), "counted here"]
    rows = [[f"`{model}`", *_printed(task, model, metrics), ", ".join(_cells(count(task, model)))] for model in _MODELS]
    return markdown_table(header, rows, right=range(1, len(header)))


def _neighbours(task: str) -> str:
    figures = [figure for paper in NEIGHBOURS for figure in figures_of(task, paper)]
    return markdown_table(*neighbour_cells(figures, source="[{paper}]({address})"))


def _size_header(task: str) -> list[str]:
    return ["model", "params (paper)", f"multiply-adds at {_SIZES[task]} (paper)"]


def _titles(metrics: Sequence[str]) -> list[str]:
    return [f"paper's {METRICS[metric].name}" for metric in metrics]


def _sizes(task: str, model: str) -> list[str]:
    """What is counted, and in brackets what the paper prints."""
    printed = _printed(task, model, ("params", "flops"))
    return [f"{ours} ({theirs}{ours[-1]})" for ours, theirs in zip(_cells(count(task, model)), printed, strict=True)]


def _cells(counts: Counts) -> list[str]:
    flops = counts.flops
    return [f"{counts.params:.2f}M", "-" if flops is None else f"{flops:.2f}G" if flops < 100 else f"{flops:.1f}G"]


def _printed(task: str, model: str, metrics: Sequence[str]) -> list[str]:
    return [find_figure(task, model, metric).text for metric in metrics]


def _ours(task: str, model: str, metrics: Sequence[str]) -> str:
    """The latest measurements of a row of the paper."""
    values = ((metric, measured(task, model, metric)[0]) for metric in metrics)
    found = [f"{METRICS[metric].name} {value:.1f}" for metric, value in values if value is not None]
    return ", ".join(found) or "not run"


def _demo(task: str) -> str:
    """What training on our own small data gave."""
    found = [row for row in summaries(task) if row.metric in _DEMO[task] and not row.checkpoint]
    parts = []
    for (data_set, runs), rows in groupby(found, lambda row: (row.data_set, row.runs)):
        values = ", ".join(f"{METRICS[row.metric].name} {row.value:.1f}" for row in rows)
        parts.append(f"{values} on {_DATA_SETS[data_set]}" + f" (median of {runs} runs)" * (runs > 1))
    return "; ".join(parts)
