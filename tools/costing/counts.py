"""What training by a configuration computes and keeps, counted from the configuration and the code."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddle import nn

from common.flops import count_layer_flops, params
from tools.costing.kept_memory import count_kept_bytes
from tools.helpers.configured_model import build_configured, task_of

if TYPE_CHECKING:
    from object_detection.flops import DetectorPart

__all__ = ["RANKS", "TrainingCounts", "count_training"]

RANKS = 8  # which the configurations' batch is for
# Images that are trained on: ImageNet-1K's training set, and those of COCO train2017 that have objects.
_IMAGENET, _COCO = 1_281_167, 117_266
_DETECTION_SIZE = (800, 1280)  # the size of the paper's FLOPs; images in training are 800 by at most 1333


@dataclass(frozen=True)
class TrainingCounts:
    """What a training is made of.

    Attributes:
        parameters: trainable values.
        averaged: whether there is a second, averaged copy of them.
        forward: multiply-adds of a forward pass on one image, as training has it.
        kept: bytes that the pass on one image keeps for the backward pass, in float32.
        images: in the whole training, repetitions included.
        batch: images in a step of one of ``RANKS`` ranks.
    """

    parameters: int
    averaged: bool
    forward: int
    kept: int
    images: int
    batch: int


def count_training(path: Path, memory: bool = True) -> TrainingCounts:
    """Count what a configuration of ``image_classification``, ``semantic_segmentation`` or ``object_detection`` trains.

    Args:
        memory: count ``kept``, too, for which a pass is run; without, it is 0, and everything is only traced.

    Raises:
        common.errors.UserError: the configuration is impossible.
    """
    counts = {
        "image_classification": _count_classification,
        "semantic_segmentation": _count_segmentation,
        "object_detection": _count_detection,
    }
    return counts[task_of(path)](*build_configured(path, with_values=memory), memory)


def _count_classification(config: Any, model: nn.Layer, memory: bool) -> TrainingCounts:
    shape = [1, 3, config.DATA.IMAGE_SIZE, config.DATA.IMAGE_SIZE]
    return TrainingCounts(
        parameters=params(model),
        averaged=config.TRAIN.EMA_DECAY > 0,
        forward=count_layer_flops(model, shape),
        kept=count_kept_bytes(model, shape) if memory else 0,
        images=config.TRAIN.EPOCHS * _IMAGENET,
        batch=config.DATA.BATCH_SIZE,
    )


def _count_segmentation(config: Any, model: nn.Layer, memory: bool) -> TrainingCounts:
    (crop,) = [t["crop_size"] for t in config.train_dataset["transforms"] if t["type"] == "RandomPaddingCrop"]
    auxiliary = model.auxiliary_head
    stride = 2 ** (2 + model.aux_in_index)
    auxiliary_shape = [1, model.backbone.out_channels[model.aux_in_index], crop[1] // stride, crop[0] // stride]
    shape = [1, 3, crop[1], crop[0]]
    return TrainingCounts(
        parameters=params(model),
        averaged=config.TRAIN.EMA_DECAY > 0,
        # Counting is done in evaluation, which leaves the auxiliary head out.
        forward=count_layer_flops(model, shape) + count_layer_flops(auxiliary, auxiliary_shape),
        kept=count_kept_bytes(model, shape) if memory else 0,
        images=config.iters * config.batch_size * RANKS,
        batch=config.batch_size,
    )


def _count_detection(config: Any, model: nn.Layer, memory: bool) -> TrainingCounts:
    from object_detection.flops import detector_parts

    assigner = config.BBoxAssigner
    boxes = assigner["batch_size_per_im"]
    parts = detector_parts(model, *_DETECTION_SIZE, boxes, round(boxes * assigner["fg_fraction"]))
    return TrainingCounts(
        parameters=params(model),
        averaged=config.TRAIN.EMA_DECAY > 0,
        forward=sum(part.times * count_layer_flops(part.layer, part.shape) for part in parts),
        kept=_kept_by_detection(*parts) if memory else 0,
        images=config.epoch * _COCO,
        batch=config.TrainReader["batch_size"],
    )


def _kept_by_detection(dense: DetectorPart, *heads: DetectorPart) -> int:
    """What the dense part keeps grows with the area; a whole image would take more memory than small machines have."""
    height, width = (32 * math.ceil(side / 64) for side in _DETECTION_SIZE)  # about half, and a multiple of the strides
    kept = count_kept_bytes(dense.layer, [1, 3, height, width]) * math.prod(_DETECTION_SIZE) / (height * width)
    return round(kept) + sum(part.times * count_kept_bytes(part.layer, part.shape) for part in heads)
