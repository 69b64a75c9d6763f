"""The tables that tools/paper_tables.py prints and writes into documents."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from tqdm import tqdm

from tools.helpers.markdown import markdown_table, read_section, replace_section
from tools.helpers.paper_figures import NEIGHBORS, SOURCES, figures_of, find_figure
from tools.helpers.paper_results import (
    ABLATIONS,
    MODELS,
    ROOT,
    TABLES,
    Counts,
    ablation_result,
    configuration,
    count,
    count_classifier,
    count_demo,
    is_off,
    measured,
    training_runs,
)
from tools.helpers.training_cost import training_cost, training_cost_table

__all__ = ["check_counts", "print_tables", "sections", "update_documents"]

# Metrics and their titles. The first two are counted, the others are measured.
METRICS = {
    "params": "parameters, M",
    "flops": "multiply-adds, G",
    "top1": "top-1, %",
    "top1_token_labels": "top-1 token labels, %",
    "mIoU": "mIoU, %",
    "mIoU_multi_scale": "mIoU multi-scale, %",
    **{f"{kind}_{metric}": f"{kind} {metric}, %" for kind in ("box", "mask") for metric in ("AP", "AP50", "AP75")},
}
COUNTED = ("params", "flops")
# The metrics of the README's tables, and those of the runs on our own small data sets.
README_METRICS = {
    "image_classification": ("top1", "top1_token_labels"),
    "semantic_segmentation": ("mIoU", "mIoU_multi_scale"),
    "object_detection": ("box_AP", "mask_AP"),
}
DEMO_METRICS = {
    "image_classification": ("top1",),
    "semantic_segmentation": ("mIoU",),
    "object_detection": ("box_AP50", "mask_AP50"),
}
DEMO_DATA_SETS = {
    "mnist5k": "MNIST-5k",
    "fashion_mnist": "Fashion-MNIST",
    "Nuclei": "nuclei",
    "HENuclei": "H&E nuclei",
    "NucleiDataSet": "nuclei",
}


# ---- print


def print_tables() -> None:
    """Print the paper's three tables, its ablations, and the figures of neighboring models."""
    for task, table in TABLES.items():
        print(f"{table.title}\n\n{compare(task, METRICS)}\n", flush=True)
    print(
        f"Ablations on ImageNet-1K, configured in image_classification/configs/ablation\n\n{ablations()}\n", flush=True
    )
    for task in TABLES:
        print(f"Neighbors, {task.replace('_', ' ')}\n\n{neighbors(task, padded=True)}\n")


def compare(task: str, metrics: Sequence[str]) -> str:
    """A line for each figure of a task's table: the paper's, ours, the difference, and the origin of ours."""
    rows = []
    figures = [figure for figure in figures_of(task) if figure.metric in metrics]
    for figure in tqdm(figures, task, disable=None, leave=False):  # counting takes seconds per model
        if figure.metric in COUNTED:
            ours = getattr(count(task, figure.model), figure.metric)
            origin = "counted, too far from the paper's" if is_off(figure, ours) else "counted"
            numbers = [f"{ours:.2f}", f"{ours - figure.value:+.2f}"]
        elif result := measured(task, figure.model, figure.metric):
            origin = f"measured {result.date.partition('T')[0]}"
            numbers = [f"{float(result.value):.1f}", f"{float(result.value) - figure.value:+.1f}"]
        else:
            hours = training_cost(configuration(task, figure.model)).gpu_hours
            numbers, origin = ["-", "-"], f"not run: ~{hours:.0f} A100-hours"
        rows.append([figure.model, METRICS[figure.metric], f"{figure.text} [{figure.mark}]", *numbers, origin])
    return markdown_table(
        ["model", "figure", "paper", "ours", "difference", "origin of ours"], rows, (2, 3, 4), padded=True
    )


def ablations() -> str:
    """What the paper varies. Its figures are not known here."""
    rows = []
    for path in tqdm(ABLATIONS, "ablations", disable=None, leave=False):
        counts, result = count_classifier(path), ablation_result(path)
        top1 = f"{float(result.value):.1f}" if result else f"not run: ~{training_cost(path).gpu_hours:.0f} A100-hours"
        rows.append([path.stem, f"{counts.params:.2f}", f"{counts.flops:.2f}", top1])
    return markdown_table(["row", *(METRICS[metric] for metric in (*COUNTED, "top1"))], rows, (1, 2, 3), padded=True)


def neighbors(task: str, padded: bool = False) -> str:
    """The figures of neighboring models, each from its own paper."""
    figures = [figure for paper in NEIGHBORS for figure in figures_of(task, paper)]
    metrics = list(dict.fromkeys(figure.metric for figure in figures))
    rows = []
    for (paper, model), group in groupby(figures, lambda figure: (figure.paper, figure.model)):
        printed = {figure.metric: figure.text for figure in group}
        cells = [printed.get(metric, "-") for metric in metrics]
        rows.append([model, *cells, f"[{paper}]({SOURCES[paper]})"])
    header = ["model", *(METRICS[metric] for metric in metrics), "source"]
    return markdown_table(header, rows, range(1, len(metrics) + 1), padded)


# ---- check


def check_counts() -> None:
    """Print the counted figures, and exit with 1 if one is off."""
    figures = [figure for task in TABLES for figure in figures_of(task) if figure.metric in COUNTED]
    for task, table in TABLES.items():
        print(f"{table.title}\n\n{compare(task, COUNTED)}\n", flush=True)
    off = sum(is_off(figure, getattr(count(figure.task, figure.model), figure.metric)) for figure in figures)
    if off:
        print(
            f"{off} of {len(figures)} counted figures differ from the paper's by more than one unit of the last digit"
        )
        raise SystemExit(1)
    print(f"all {len(figures)} counted figures agree with the paper's, to one unit of the last printed digit")


# ---- documents


def sections() -> Iterator[tuple[Path, str, str]]:
    """Document, name and content of each section that -markdown writes."""
    for task in TABLES:
        for readme in ("README.md", "README_cn.md"):
            yield ROOT / readme, task, readme_table(task)
        yield ROOT / task / "README.md", "models", task_table(task)
        yield ROOT / task / "README.md", "neighbors", neighbors(task)
        yield ROOT / "docs" / "paper.md", task, paper_table(task)
    yield ROOT / "docs" / "reproduction.md", "training_cost", training_cost_table()


def update_documents(write: bool) -> None:
    """Write the sections that are out of date, or name them and exit with 1."""
    outdated = [section for section in sections() if read_section(*section[:2]) != section[2]]
    for document, name, content in outdated:
        if write:
            replace_section(document, name, content)
        print(f"{document.relative_to(ROOT)}: the table {name!r} {'was written' if write else 'is out of date'}")
    if not outdated:
        print("all documents are up to date")
    elif not write:
        print("python tools/paper_tables.py -markdown updates them")
        raise SystemExit(1)


def readme_table(task: str) -> str:
    """The paper's models and pale_nano, with the most important metrics."""
    metrics = README_METRICS[task]
    rows = [_model_row(task, model, metrics) for model in MODELS]
    rows.append(["`pale_nano`", *_counted(count_demo(task)), *["-"] * len(metrics), _demo(task)])
    return markdown_table([*_header(task, metrics), "here"], rows, right=range(1, 3 + len(metrics)))


def task_table(task: str) -> str:
    """The paper's models with all metrics and links to their configurations."""
    metrics = [figure.metric for figure in figures_of(task) if figure.model == MODELS[0]][len(COUNTED) :]
    rows = []
    for model in MODELS:
        file = configuration(task, model).name
        rows.append([*_model_row(task, model, metrics), f"[{file}](configs/{file})"])
    header = [*_header(task, metrics), "here", "configuration"]
    return markdown_table(header, rows, right=range(1, 3 + len(metrics)))


def paper_table(task: str) -> str:
    """What the paper prints, with the marks of docs/paper.md, and what is counted from the code."""
    figures = list(figures_of(task))
    header = ["model", *(f"{METRICS[f.metric]} [{f.mark}]" for f in figures if f.model == MODELS[0]), "counted here"]
    rows = []
    for model in MODELS:
        printed = [figure.text for figure in figures if figure.model == model]
        rows.append([f"`{model}`", *printed, ", ".join(_counted(count(task, model)))])
    return markdown_table(header, rows, right=range(1, len(header)))


def _header(task: str, metrics: Sequence[str]) -> list[str]:
    height, width = TABLES[task].size
    titles = [f"paper's {_name(metric)}" for metric in metrics]
    return ["model", "params (paper)", f"multiply-adds at {height}x{width} (paper)", *titles]


def _model_row(task: str, model: str, metrics: Sequence[str]) -> list[str]:
    """Name, counts with the paper's in parentheses, the paper's metrics, and the newest measurements here."""
    printed = {metric: find_figure(task, model, metric).text for metric in (*COUNTED, *metrics)}
    params, flops = _counted(count(task, model))
    found = [(metric, measured(task, model, metric)) for metric in metrics]
    ours = ", ".join(f"{_name(m)} {float(r.value):.1f}" for m, r in found if r)
    sizes = f"{params} ({printed['params']}M)", f"{flops} ({printed['flops']}G)"
    return [f"`{model}`", *sizes, *(printed[metric] for metric in metrics), ours or "not run"]


def _name(metric: str) -> str:
    return METRICS[metric].partition(",")[0]


def _counted(counts: Counts) -> tuple[str, str]:
    flops = counts.flops
    return f"{counts.params:.2f}M", "-" if flops is None else f"{flops:.2f}G" if flops < 100 else f"{flops:.1f}G"


def _demo(task: str) -> str:
    """The metrics of pale_nano on small data sets."""
    parts = []
    found = training_runs(task, DEMO_METRICS[task])
    for (_, data_set), group in groupby(found, lambda key: key[:2]):
        keys = list(group)
        values = ", ".join(f"{_name(key[-1])} {median(found[key]):.1f}" for key in keys)
        seeds = len(found[keys[0]])
        parts.append(f"{values} on {DEMO_DATA_SETS[data_set]}" + f" (median of {seeds} runs)" * (seeds > 1))
    return "; ".join(parts)
