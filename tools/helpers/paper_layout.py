"""The tables that tools/paper_tables.py prints and writes into documents."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from tqdm import tqdm

from image_classification.config import CONFIG, model_title
from tools.helpers.chinese_tables import in_chinese
from tools.helpers.markdown import markdown_table, read_section, replace_section
from tools.helpers.paper_figures import (
    MODELS,
    NEIGHBORS,
    ROOT,
    TABLES,
    Counts,
    configuration,
    count,
    count_demo,
    demo_results,
    measured,
    printed,
)
from tools.helpers.training_cost import training_cost
from tools.helpers.training_memory import training_memory

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
DEMO_DATA_SETS = {
    "mnist5k": "MNIST-5k",
    "fashion_mnist": "Fashion-MNIST",
    "Nuclei": "nuclei",
    "HENuclei": "H&E nuclei",
    "NucleiDataSet": "nuclei",
}
CARDS = (24, 40, 80)  # GB of a GPU
USABLE = 0.85  # of a GPU; the rest is for the CUDA context, workspaces, temporary values and fragmentation [A]
ABLATIONS = sorted((ROOT / "image_classification" / "configs" / "ablation").glob("*.yaml"))


# ---- commands


def print_tables() -> None:
    """Print the paper's three tables, its ablations, and the figures of neighboring models."""
    for task, table in TABLES.items():
        print(f"{table.title}\n\n{compare(task)}\n", flush=True)
    print(f"Ablations on ImageNet-1K, configured in image_classification/configs/ablation\n\n{ablations()}\n")
    for task in TABLES:
        print(f"Neighbors, {task.replace('_', ' ')}\n\n{neighbors(task)}\n")


def check_counts() -> None:
    """Compare the counted figures with the paper's, print those that are off, and exit with 1 if there are any."""
    figures = [figure for task in TABLES for figure in printed(task).values() if figure.metric in COUNTED]
    off = 0
    for figure in tqdm(figures, disable=None, leave=False):
        ours = getattr(_counted(figure.task, figure.model), figure.metric)
        if not figure.agrees(ours):
            off += 1
            tqdm.write(f"{figure.task} {figure.model}: {METRICS[figure.metric]}: {ours:.2f}, the paper {figure.text}")
    if off:
        print(f"{off} of {len(figures)} figures differ from the paper's by more than one unit of the last digit")
        raise SystemExit(1)
    print(f"all {len(figures)} counted figures agree with the paper's, to one unit of the last printed digit")


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


# ---- tables


def compare(task: str) -> str:
    """A line for each figure of a task's table: the paper's, ours, the difference, and the origin of ours."""
    rows = []
    for (model, metric), figure in tqdm(printed(task).items(), task, disable=None, leave=False):
        if metric in COUNTED:
            ours, digits = getattr(_counted(task, model), metric), 2
            origin = "counted" if figure.agrees(ours) else "counted, too far from the paper's"
        elif result := measured(task, TABLES[task].model.format(model), metric):
            ours, digits, origin = result.value, 1, f"measured {result.date[:10]}"
        else:
            ours, digits, origin = None, 1, _not_run(task, configuration(task, model))
        numbers = ["-", "-"] if ours is None else [f"{ours:.{digits}f}", f"{ours - float(figure.text):+.{digits}f}"]
        rows.append([model, METRICS[metric], f"{figure.text} [{figure.mark}]", *numbers, origin])
    return markdown_table(["model", "figure", "paper", "ours", "difference", "origin of ours"], rows, (2, 3, 4))


def ablations() -> str:
    """What the paper varies. Its figures are not known here."""
    task, rows = "image_classification", []
    for file in tqdm(ABLATIONS, "ablations", disable=None, leave=False):
        result = measured(task, model_title(CONFIG.load(Namespace(cfg=file, opts=[]))), "top1")
        top1 = f"{result.value:.1f}" if result else _not_run(task, file)
        rows.append([file.stem, *(f"{figure:.2f}" for figure in count(task, file)), top1])
    return markdown_table(["row", *(METRICS[metric] for metric in (*COUNTED, "top1"))], rows, (1, 2, 3))


def neighbors(task: str) -> str:
    """The figures of neighboring models, each from its own paper."""
    papers = {paper: printed(task, paper) for paper in NEIGHBORS}
    metrics = list(dict.fromkeys(metric for figures in papers.values() for _, metric in figures))
    rows = []
    for paper, figures in papers.items():
        for model in dict.fromkeys(model for model, _ in figures):
            texts = [figures[model, metric].text if (model, metric) in figures else "-" for metric in metrics]
            rows.append([model, *texts, f"[{paper}]({NEIGHBORS[paper]})"])
    return markdown_table(["model", *map(METRICS.get, metrics), "source"], rows, range(1, len(metrics) + 1))


def sections() -> Iterator[tuple[Path, str, str]]:
    """Document, name and content of each section that -markdown writes."""
    yield ROOT / "README.md", "models", summary_table()
    yield ROOT / "README_cn.md", "models", in_chinese(summary_table())
    for task in TABLES:
        for name, table in (("models", model_table(task, "configs")), ("neighbors", neighbors(task))):
            yield ROOT / task / "README.md", name, table
            yield ROOT / task / "README_cn.md", name, in_chinese(table)
        yield ROOT / "docs" / "paper.md", task, paper_table(task)
    yield ROOT / "docs" / "reproduction.md", "training_cost", cost_table()
    yield ROOT / "docs" / "gpu.md", "memory", memory_table()


def summary_table() -> str:
    """The paper's models: counts of the classifiers with the paper's in parentheses, and a figure for each task."""
    shown = {  # title: task and metric
        "ImageNet top-1": ("image_classification", "top1"),
        "ADE20K mIoU": ("semantic_segmentation", "mIoU"),
        "COCO box AP": ("object_detection", "box_AP"),
        "COCO mask AP": ("object_detection", "mask_AP"),
    }
    figures, rows = {task: printed(task) for task in TABLES}, []
    for model in MODELS:
        params, flops = _with_units(_counted("image_classification", model))
        counted = figures["image_classification"]
        sizes = f"{params} ({counted[model, 'params'].text}M)", f"{flops} ({counted[model, 'flops'].text}G)"
        rows.append([f"`{model}`", *sizes, *(figures[task][model, metric].text for task, metric in shown.values())])
    header = ["model", "params (paper)", "multiply-adds at 224x224 (paper)", *(f"paper's {title}" for title in shown)]
    return markdown_table(header, rows, range(1, len(header)))


def model_table(task: str, folder: str) -> str:
    """The paper's models and pale_nano: counts with the paper's in parentheses, the paper's metrics, and our results.

    Args:
        folder: of the configurations, relative to the document.
    """
    table, figures, rows = TABLES[task], printed(task), []
    for model in MODELS:
        params, flops = _with_units(_counted(task, model))
        sizes = f"{params} ({figures[model, 'params'].text}M)", f"{flops} ({figures[model, 'flops'].text}G)"
        results = {metric: measured(task, table.model.format(model), metric) for metric in table.metrics}
        ours = ", ".join(f"{_name(metric)} {found.value:.1f}" for metric, found in results.items() if found)
        link = f"[`{model}`]({folder}/{table.configuration.format(model)})"
        rows.append([link, *sizes, *(figures[model, metric].text for metric in table.metrics), ours or "not run"])
    demo = []
    for (_, data_set), values in demo_results(task).items():
        medians = ", ".join(f"{_name(metric)} {median(runs):.1f}" for metric, runs in values.items())
        seeds = len(next(iter(values.values())))
        demo.append(f"{medians} on {DEMO_DATA_SETS[data_set]}" + (f" (median of {seeds} runs)" if seeds > 1 else ""))
    rows.append(["`pale_nano`", *_with_units(count_demo(task)), *["-"] * len(table.metrics), "; ".join(demo)])
    flops = "multiply-adds at {}x{} (paper)".format(*table.size)
    header = ["model", "params (paper)", flops, *(f"paper's {_name(metric)}" for metric in table.metrics), "here"]
    return markdown_table(header, rows, range(1, len(header) - 1))


def paper_table(task: str) -> str:
    """What the paper prints, with the marks of docs/paper.md, and what is counted from the code."""
    figures = list(printed(task).values())
    titles = [f"{METRICS[figure.metric]} [{figure.mark}]" for figure in figures if figure.model == MODELS[0]]
    rows = []
    for model in MODELS:
        texts = [figure.text for figure in figures if figure.model == model]
        rows.append([f"`{model}`", *texts, ", ".join(_with_units(_counted(task, model)))])
    return markdown_table(["model", *titles, "counted here"], rows, range(1, 2 + len(titles)))


def cost_table() -> str:
    """The computed cost of training each row of the paper."""
    header = ["configuration", "forward multiply-adds", "images", "FLOPs", "GB of state", "A100-hours"]
    rows = []
    for file, task in ((configuration(task, model), task) for task in TABLES for model in MODELS):
        cost = training_cost(task, file)
        cells = [f"`{file.relative_to(ROOT).as_posix()}`", f"{cost.forward / 1e9:.1f}G", f"{cost.images / 1e6:.1f}M"]
        cells += [f"{cost.flops / 1e18:.1f}e18", f"{cost.state_bytes / 1e9:.1f}"]
        rows.append([*cells, f"{cost.gpu_hours:.0f}", f"{cost.gpu_hours / 8:.1f}"])
    return markdown_table([*header, "hours on 8 A100"], rows, range(1, 7))


def memory_table() -> str:
    """The computed memory of training each row of the paper, and the largest batch for each size of a GPU."""
    header = ["configuration", "GB of state", "MB per image", *(f"batch in {card} GB" for card in CARDS)]
    rows = []
    for file, task in ((configuration(task, model), task) for task in TABLES for model in MODELS):
        full, half = (training_memory(task, file, amp) for amp in (False, True))
        forms = (full.state, full.image), (half.state, half.image), (half.state, half.recomputed)
        cells = [" / ".join(f"{state / 1e9:.1f}" for state in (full.state, half.state))]
        cells += [" / ".join(f"{image / 1e6:.0f}" for _, image in forms)]
        for card in CARDS:
            largest = [max(0, int((USABLE * card * 1e9 - state) / image)) for state, image in forms]
            cells.append(" / ".join(str(batch) if batch else "-" for batch in largest))
        rows.append([f"`{file.relative_to(ROOT).as_posix()}`", *cells])
    return markdown_table(header, rows, range(1, len(header)))


# ---- cells


def _counted(task: str, model: str) -> Counts:
    return count(task, configuration(task, model))


def _not_run(task: str, file: Path) -> str:
    return f"not run: ~{training_cost(task, file).gpu_hours:.0f} A100-hours"


def _name(metric: str) -> str:
    return METRICS[metric].partition(",")[0]


def _with_units(counts: Counts) -> tuple[str, str]:
    flops = counts.flops
    return f"{counts.params:.2f}M", "-" if flops is None else f"{flops:.2f}G" if flops < 100 else f"{flops:.1f}G"
