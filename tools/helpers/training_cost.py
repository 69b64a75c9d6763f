"""What training each row of the paper would cost, computed from its configuration; nothing is measured on a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from paddle import nn

from common.flops import count_layer_flops, params
from tools.helpers.configured_model import build_configured, task_of
from tools.helpers.markdown import markdown_table
from tools.helpers.paper_results import ROOT, configuration

__all__ = ["GPU_FLOPS", "TrainingCost", "training_cost", "training_cost_table"]

GPU_FLOPS = 312e12  # per second, of an A100 in half precision: NVIDIA's data sheet
# The share of GPU_FLOPS that training reaches [A]: that of Swin-B on V100, from the times that an author of Swin states
# (github.com/microsoft/Swin-Transformer, issue 68: 15.4G multiply-adds, 16 V100, 12 minutes an epoch).
UTILIZATION = 0.08
RANKS = 8  # GPUs that the batch sizes of the configurations are for
IMAGENET_IMAGES, COCO_IMAGES = 1_281_167, 117_266  # in the training sets; of COCO, those with objects


@dataclass(frozen=True)
class TrainingCost:
    """Cost of the training that a configuration describes.

    Attributes:
        parameters: trainable values.
        averaged: whether an exponential moving average of the parameters is kept.
        forward: multiply-adds of a forward pass on one image in training.
        images: images trained on, over all epochs.
    """

    parameters: int
    averaged: bool
    forward: int
    images: int

    @property
    def flops(self) -> float:
        """Two per multiply-add; a backward pass takes twice as many as a forward pass."""
        return 2.0 * 3.0 * self.forward * self.images

    @property
    def gpu_hours(self) -> float:
        return self.flops / (GPU_FLOPS * UTILIZATION) / 3600

    @property
    def state_bytes(self) -> int:
        """Weights, gradients, the two moments of AdamW, and the average, in float32."""
        return 4 * self.parameters * (4 + self.averaged)


@cache
def training_cost(path: Path) -> TrainingCost:
    """Compute the cost of a configuration of any task.

    Raises:
        common.errors.UserError: the configuration is invalid.
    """
    config, model = build_configured(path)
    count = {
        "image_classification": _classification,
        "semantic_segmentation": _segmentation,
        "object_detection": _detection,
    }[task_of(path)]
    return TrainingCost(params(model), config.TRAIN.EMA_DECAY > 0, *count(config, model))


def _classification(config: Any, model: nn.Layer) -> tuple[int, int]:
    side = config.DATA.IMAGE_SIZE
    return count_layer_flops(model, [1, 3, side, side]), config.TRAIN.EPOCHS * IMAGENET_IMAGES


def _segmentation(config: Any, model: nn.Layer) -> tuple[int, int]:
    (crop,) = [t["crop_size"] for t in config.train_dataset["transforms"] if t["type"] == "RandomPaddingCrop"]
    width, height = crop
    # Models are counted in evaluation mode, in which UPerNet leaves out its auxiliary head.
    stride, channels = 2 ** (2 + model.aux_in_index), model.backbone.out_channels[model.aux_in_index]
    auxiliary = count_layer_flops(model.auxiliary_head, [1, channels, height // stride, width // stride])
    return count_layer_flops(model, [1, 3, height, width]) + auxiliary, config.iters * config.batch_size * RANKS


def _detection(config: Any, model: nn.Layer) -> tuple[int, int]:
    from object_detection.flops import count_detector_flops

    assigner = config.BBoxAssigner
    boxes = assigner["batch_size_per_im"]
    forward = count_detector_flops(model, 800, 1280, boxes, round(boxes * assigner["fg_fraction"]))
    return forward, config.epoch * COCO_IMAGES


def training_cost_table() -> str:
    """A Markdown table with a row for each task and variant of the paper."""
    header = [
        "configuration",
        "forward multiply-adds",
        "images",
        "FLOPs",
        "GB of state",
        "A100-hours",
        "hours on 8 A100",
    ]
    rows = []
    for task in ("image_classification", "semantic_segmentation", "object_detection"):
        for variant in ("pale_tiny", "pale_small", "pale_base"):
            path = configuration(task, variant)
            cost = training_cost(path)
            rows.append(
                [
                    f"`{path.relative_to(ROOT).as_posix()}`",
                    f"{cost.forward / 1e9:.1f}G",
                    f"{cost.images / 1e6:.1f}M",
                    f"{cost.flops / 1e18:.1f}e18",
                    f"{cost.state_bytes / 1e9:.1f}",
                    f"{cost.gpu_hours:.0f}",
                    f"{cost.gpu_hours / RANKS:.1f}",
                ]
            )
    return markdown_table(header, rows, right=range(1, len(header)))
