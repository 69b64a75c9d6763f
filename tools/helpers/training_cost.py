"""What training a configuration would cost, computed; nothing is measured on a GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from paddle import nn

from common.flops import count_layer_flops, params
from tools.helpers.paper_figures import build_configured

__all__ = ["TrainingCost", "training_cost"]

GPU_FLOPS = 312e12  # per second, of an A100 in half precision: NVIDIA's data sheet
# The share of GPU_FLOPS that training reaches [A]: that of Swin-B on V100, from the times that an author of Swin states
# (github.com/microsoft/Swin-Transformer, issue 68: 15.4G multiply-adds, 16 V100, 12 minutes an epoch).
UTILIZATION = 0.08
RANKS = 8  # GPUs that the batch sizes of the configurations are for
IMAGENET_IMAGES, COCO_IMAGES = 1_281_167, 117_266  # in the training sets; of COCO, those with objects


class TrainingCost(NamedTuple):
    """Cost of the training that a configuration describes.

    Attributes:
        forward: multiply-adds of a forward pass on one image in training.
        images: images trained on, over all epochs.
        flops: two per multiply-add; a backward pass takes twice as many as a forward pass.
        state_bytes: weights, gradients, the two moments of AdamW and, if there are any, averaged weights, in float32.
        gpu_hours: of A100 GPUs.
    """

    forward: int
    images: int
    flops: float
    state_bytes: int
    gpu_hours: float


@cache
def training_cost(task: str, file: Path) -> TrainingCost:
    """Compute the cost of a configuration.

    Raises:
        common.errors.UserError: the configuration is invalid.
    """
    config, model = build_configured(task, file)
    forward, images = _COUNT[task](config, model)
    flops = 2.0 * 3.0 * forward * images
    state_bytes = 4 * params(model) * (5 if config.TRAIN.EMA_DECAY > 0 else 4)
    return TrainingCost(forward, images, flops, state_bytes, flops / (GPU_FLOPS * UTILIZATION) / 3600)


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

    boxes = config.BBoxAssigner["batch_size_per_im"]
    masks = round(boxes * config.BBoxAssigner["fg_fraction"])
    return count_detector_flops(model, 800, 1280, boxes, masks), config.epoch * COCO_IMAGES


# Multiply-adds of a forward pass, and images.
_COUNT = {
    "image_classification": _classification,
    "semantic_segmentation": _segmentation,
    "object_detection": _detection,
}
