"""The figures of the paper's tables: those that it prints, and ours, counted from the code or recorded in results/."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import paddle
from paddle import nn

from common.flops import count_flops, params
from common.pale_transformer import create_model
from common.runtime.csv_table import read_table
from common.tasks import TASKS
from common.training.results import Result, results_file

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("pale_tiny", "pale_small", "pale_base")
PAPER = "Pale Transformer"
NEIGHBORS = {  # papers of neighboring models
    "Swin Transformer": "https://arxiv.org/abs/2103.14030",
    "CSWin Transformer": "https://arxiv.org/abs/2107.00652",
}


class Table(NamedTuple):
    """One table of the paper. In three of its texts, ``{}`` stands for the backbone.

    Attributes:
        title: data set and setting.
        size: height and width of the images that the multiply-adds are of.
        configuration: file below ``TASK/configs``.
        model, data_set: names that ``-eval -record`` gives to a row of the table.
        metrics: those that README.md shows.
        demo_metrics: those of ``pale_nano`` on small data sets that README.md shows.
    """

    title: str
    size: tuple[int, int]
    configuration: str
    model: str
    data_set: str
    metrics: Sequence[str]
    demo_metrics: Sequence[str]


# The tables by the folders of their tasks.
TABLES = {
    "image_classification": Table(
        title="ImageNet-1K, 300 epochs, at 224x224",
        size=(224, 224),
        configuration="{}_224.yaml",
        model="{}",
        data_set="ImageNet-1K",
        metrics=("top1", "top1_token_labels"),
        demo_metrics=("top1",),
    ),
    "semantic_segmentation": Table(
        title="ADE20K, UPerNet, 160,000 steps, at 512x2048; only parameters include the auxiliary head",
        size=(512, 2048),
        configuration="upernet_{}_ade20k_160k.yml",
        model="PaleUPerNet {}",
        data_set="ADE20K",
        metrics=("mIoU", "mIoU_multi_scale"),
        demo_metrics=("mIoU",),
    ),
    "object_detection": Table(
        title="COCO, Mask R-CNN, 12 epochs, at 800x1280 with 1000 boxes and 100 masks",
        size=(800, 1280),
        configuration="mask_rcnn_{}_1x_coco.yml",
        model="MaskRCNN {} 12 epochs",
        data_set="COCO",
        metrics=("box_AP", "mask_AP"),
        demo_metrics=("box_AP50", "mask_AP50"),
    ),
}


def configuration(task: str, model: str) -> Path:
    """The configuration of a row of a task's table."""
    return ROOT / task / "configs" / TABLES[task].configuration.format(model)


def build_configured(task: str, file: Path, num_classes: int | None = None) -> tuple[Any, nn.Layer]:
    """A configuration, and its model without initial values.

    Args:
        num_classes: in place of the number in the configuration.

    Raises:
        common.errors.UserError: the configuration is impossible.
    """
    config = TASKS[task].config().load(Namespace(cfg=str(file), opts=[]))
    num_classes = num_classes or attrgetter(TASKS[task].num_classes_key)(config)
    with paddle.LazyGuard():  # counting needs no values
        return config, TASKS[task].build_model()(config, num_classes)


# ---- printed


@dataclass(frozen=True)
class PaperFigure:
    """A figure that a paper prints, a line of paper_figures.csv.

    Attributes:
        paper: ``PAPER`` or a key of ``NEIGHBORS``.
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

    def agrees(self, ours: float) -> bool:
        """Whether ours differs by at most one unit of the last printed digit."""
        last_digit = 10.0 ** -len(self.text.partition(".")[2])
        return abs(ours - float(self.text)) <= last_digit * (1 + 1e-9)


@cache
def _read() -> list[PaperFigure]:
    return read_table(Path(__file__).with_suffix(".csv"), PaperFigure)


def printed(task: str, paper: str = PAPER) -> dict[tuple[str, str], PaperFigure]:
    """The figures of one task in one paper, by model and metric, in the order of the file."""
    return {(figure.model, figure.metric): figure for figure in _read() if (figure.task, figure.paper) == (task, paper)}


# ---- counted


class Counts(NamedTuple):
    """What is counted from the code.

    Attributes:
        params: millions of trainable values.
        flops: billions of multiply-adds of a forward pass on one image, or None if they are not counted. They include
            the norms as fvcore counts them, 5 for each value of a LayerNorm and 2 for one of a BatchNorm, which the
            paper seems to do [C].
    """

    params: float
    flops: float | None


@cache
def count(task: str, file: Path) -> Counts:
    """Count a configuration as the paper does; see the titles of ``TABLES``."""
    _, model = build_configured(task, file)
    if task == "object_detection":
        from object_detection.flops import count_detector_flops

        flops = count_detector_flops(model, *TABLES[task].size, norms=True)
    else:
        flops = count_flops(model, *TABLES[task].size, norms=True)
    return Counts(params(model) / 1e6, flops / 1e9)


@cache
def count_demo(task: str) -> Counts:
    """Count ``pale_nano``: the classifier of ``create_model`` at 224x224, or the parameters of the model for nuclei."""
    if task == "image_classification":
        model = create_model("pale_nano")
        return Counts(params(model) / 1e6, count_flops(model, 224, 224, norms=True) / 1e9)
    classes = {"semantic_segmentation": 2, "object_detection": 1}[task]  # segmentation has the background, too
    _, model = build_configured(task, TASKS[task].config().default_file, classes)
    return Counts(params(model) / 1e6, None)


# ---- recorded


@cache
def recorded(task: str) -> list[Result]:
    """All recorded results of a task."""
    return read_table(ROOT / results_file(task), Result)


def measured(task: str, title: str, metric: str) -> Result | None:
    """The newest recorded result on the paper's data.

    Args:
        title: of the model, as ``-record`` writes it.
    """
    wanted = title, TABLES[task].data_set, metric
    found = [result for result in recorded(task) if (result.model, result.data_set, result.metric) == wanted]
    return max(found, key=lambda result: result.date, default=None)


def demo_results(task: str) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Recorded training runs on small data sets: by model and data set, the values of all seeds for each metric."""
    runs: dict[tuple[str, str], dict[str, list[float]]] = {}
    for result in recorded(task):
        small = result.data_set != TABLES[task].data_set and not result.checkpoint_sha256
        if small and result.metric in TABLES[task].demo_metrics:
            metrics = runs.setdefault((result.model, result.data_set), {})
            metrics.setdefault(result.metric, []).append(result.value)
    return runs
