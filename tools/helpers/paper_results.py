"""What this project has for the rows of the paper's tables: counts from the code, and recorded results."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import paddle

from common.flops import count_flops, params
from common.runtime.csv_table import read_table
from common.tasks import TASKS
from common.training.results import Result, results_file
from tools.helpers.configured_model import build_configured
from tools.helpers.paper_figures import PaperFigure

__all__ = [
    "ABLATIONS",
    "MODELS",
    "ROOT",
    "TABLES",
    "Counts",
    "Table",
    "ablation_result",
    "configuration",
    "count",
    "count_classifier",
    "count_demo",
    "is_off",
    "measured",
    "training_runs",
]

ROOT = Path(__file__).resolve().parents[2]
MODELS = ("pale_tiny", "pale_small", "pale_base")
ABLATIONS = sorted((ROOT / "image_classification" / "configs" / "ablation").glob("*.yaml"))


@dataclass(frozen=True)
class Table:
    """One table of the paper.

    Attributes:
        title: data set and setting.
        size: of the images that the multiply-adds are of.
        configuration: file below ``TASK/configs``, with ``{}`` for the backbone.
        model, data_set: names that ``-eval -record`` gives to a row of the table, ``{}`` for the backbone.
    """

    title: str
    size: tuple[int, int]
    configuration: str
    model: str
    data_set: str


# The tables by the folders of their tasks.
TABLES = {
    "image_classification": Table(
        "ImageNet-1K, 300 epochs, at 224x224",
        (224, 224),
        "{}_224.yaml",
        "{}",
        "ImageNet-1K",
    ),
    "semantic_segmentation": Table(
        "ADE20K, UPerNet, 160,000 steps, at 512x2048; parameters include the auxiliary head, multiply-adds do not",
        (512, 2048),
        "upernet_{}_ade20k_160k.yml",
        "PaleUPerNet {}",
        "ADE20K",
    ),
    "object_detection": Table(
        "COCO, Mask R-CNN, 12 epochs, at 800x1280 with 1000 boxes and 100 masks",
        (800, 1280),
        "mask_rcnn_{}_1x_coco.yml",
        "MaskRCNN {} 12 epochs",
        "COCO",
    ),
}


@dataclass(frozen=True)
class Counts:
    """What is counted from the code.

    Attributes:
        params: millions of trainable values.
        flops: billions of multiply-adds of a forward pass on one image, or None if they are not counted. They include
            the norms as fvcore counts them, 5 for each value of a LayerNorm and 2 for one of a BatchNorm, which the
            paper seems to do [C].
    """

    params: float
    flops: float | None


# ---- counted


def configuration(task: str, model: str) -> Path:
    """The configuration of a row of a task's table."""
    return ROOT / task / "configs" / TABLES[task].configuration.format(model)


@cache
def count(task: str, model: str) -> Counts:
    """Count a row as the paper does; see the titles of ``TABLES``."""
    _, built = build_configured(configuration(task, model))
    if task == "object_detection":
        from object_detection.flops import count_detector_flops

        return _as_counts(built, count_detector_flops(built, *TABLES[task].size, norms=True))
    return _as_counts(built, count_flops(built, *TABLES[task].size, norms=True))


def count_classifier(path: Path) -> Counts:
    """Count a configuration of image classification, at its own image size."""
    config, model = build_configured(path)
    return _as_counts(model, count_flops(model, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE, norms=True))


@cache
def count_demo(task: str) -> Counts:
    """Count ``pale_nano``: the classifier of ``create_model`` at 224x224, or the parameters of the model for nuclei."""
    if task == "image_classification":
        from common.pale_transformer import create_model

        classifier = create_model("pale_nano")
        return _as_counts(classifier, count_flops(classifier, 224, 224, norms=True))
    entry = TASKS[task]
    config = entry.config().load(Namespace(cfg=entry.config().default_file, opts=[]))
    classes = {"semantic_segmentation": 2, "object_detection": 1}[task]  # segmentation has the background, too
    return _as_counts(entry.build_model()(config, classes), None)


def _as_counts(model: paddle.nn.Layer, multiply_adds: int | None) -> Counts:
    return Counts(params(model) / 1e6, multiply_adds and multiply_adds / 1e9)


def is_off(figure: PaperFigure, ours: float) -> bool:
    """Whether a count differs from the paper's figure by more than one unit of the last printed digit."""
    return abs(ours - figure.value) > figure.last_digit * (1 + 1e-9)


# ---- recorded


@cache
def _results_of(task: str) -> tuple[Result, ...]:
    return tuple(read_table(ROOT / results_file(task), Result))


def measured(task: str, model: str, metric: str) -> Result | None:
    """The newest recorded result of a row of the paper."""
    table = TABLES[task]
    return _newest(task, table.model.format(model), table.data_set, metric)


def ablation_result(path: Path) -> Result | None:
    """The newest recorded top-1 of a configuration of an ablation on the paper's data."""
    from image_classification.config import CONFIG, model_title

    task = "image_classification"
    title = model_title(CONFIG.load(Namespace(cfg=path, opts=[])))
    return _newest(task, title, TABLES[task].data_set, "top1")


def _newest(task: str, model: str, data_set: str, metric: str) -> Result | None:
    wanted = model, data_set, metric
    found = [result for result in _results_of(task) if (result.model, result.data_set, result.metric) == wanted]
    return max(found, key=lambda result: result.date, default=None)


def training_runs(task: str, metrics: Iterable[str]) -> dict[tuple[str, str, str], list[float]]:
    """Recorded training runs on other data than the paper's: the values of all seeds by model, data set and metric."""
    runs: dict[tuple[str, str, str], list[float]] = {}
    for result in _results_of(task):
        if result.metric in metrics and not result.checkpoint_sha256 and result.data_set != TABLES[task].data_set:
            runs.setdefault((result.model, result.data_set, result.metric), []).append(float(result.value))
    return runs
