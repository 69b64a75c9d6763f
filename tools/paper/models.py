"""The models of the paper's tables: where they are configured, and what they count."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import paddle

from common.flops import count_flops, params
from tools.helpers.configured_model import build_configured

__all__ = ["ABLATIONS", "ROOT", "Counts", "configuration", "count", "count_classifier", "count_demo"]

ROOT = Path(__file__).resolve().parents[2]
_CONFIGURATIONS = {
    "image_classification": "{}_224.yaml",
    "semantic_segmentation": "upernet_{}_ade20k_160k.yml",
    "object_detection": "mask_rcnn_{}_1x_coco.yml",
}
ABLATIONS = sorted((ROOT / "image_classification" / "configs" / "ablation").glob("*.yaml"))


@dataclass(frozen=True)
class Counts:
    """What is counted from the code.

    Attributes:
        params: millions of trainable values.
        flops: billions of multiply-adds of a forward pass on one image. As fvcore does, and the paper seems to do [C],
            they include the norms: 5 for each value that a LayerNorm normalises, 2 for one of a BatchNorm. None where
            they are not counted.
    """

    params: float
    flops: float | None


def configuration(task: str, model: str) -> Path:
    """The file that configures a row of a task's table.

    Args:
        task: folder of its launcher.
        model: backbone, as ``create_model`` calls it.
    """
    return ROOT / task / "configs" / _CONFIGURATIONS[task].format(model)


@cache
def count(task: str, model: str) -> Counts:
    """Count a row as the paper does: at 224x224, 512x2048 without the auxiliary head, or 800x1280 with 1000 proposals.

    The parameters of UPerNet include the auxiliary head.
    """
    _, built = build_configured(configuration(task, model), with_values=False)
    if task == "image_classification":
        flops = count_flops(built, 224, 224, norms=True)
    elif task == "semantic_segmentation":
        flops = count_flops(built, 512, 2048, norms=True)
    else:
        from object_detection.flops import count_detector_flops

        flops = count_detector_flops(built, 800, 1280, norms=True)
    return _as_counts(built, flops)


def count_classifier(path: Path) -> Counts:
    """Count what a configuration of the classification describes, at its own image size."""
    config, model = build_configured(path, with_values=False)
    side = config.DATA.IMAGE_SIZE
    return _as_counts(model, count_flops(model, side, side, norms=True))


def count_demo(task: str) -> Counts:
    """Count ``pale_nano``: the classifier of ``create_model`` at 224x224, otherwise the model for the nuclei."""
    if task == "image_classification":
        from common.pale_transformer import create_model

        classifier = create_model("pale_nano")
        return _as_counts(classifier, count_flops(classifier, 224, 224, norms=True))
    if task == "semantic_segmentation":
        from semantic_segmentation.components import build_model
        from semantic_segmentation.config import CONFIG
    else:
        from object_detection.components import build_model
        from object_detection.config import CONFIG
    config = CONFIG.load(Namespace(cfg=CONFIG.default_file, opts=[]))
    classes = {"semantic_segmentation": 2, "object_detection": 1}[task]  # nuclei, and what is between them
    return _as_counts(build_model(config, classes), None)


def _as_counts(model: paddle.nn.Layer, multiply_adds: int | None) -> Counts:
    return Counts(params(model) / 1e6, multiply_adds and multiply_adds / 1e9)
