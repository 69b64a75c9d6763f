"""The model that a configuration of any task trains."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

__all__ = ["build_configured", "task_of"]

_TASKS = ("image_classification", "semantic_segmentation", "object_detection")


def task_of(path: Path) -> str:
    """The folder of the task's launcher that a configuration lies in."""
    return next(part for part in path.resolve().parts[::-1] if part in _TASKS)


def build_configured(path: Path, with_values: bool = True) -> tuple[Any, nn.Layer]:
    """Read a configuration, and build its model.

    Args:
        path: a file in the folder of a task.
        with_values: draw initial values, which counting does not need.

    Returns:
        The configuration and the model.

    Raises:
        common.errors.UserError: the configuration is impossible.
    """
    task = task_of(path)
    if task == "image_classification":
        from image_classification.config import CONFIG
        from image_classification.pale_backbone import build_model

        key = "MODEL.NUM_CLASSES"
    elif task == "semantic_segmentation":
        from semantic_segmentation.components import build_model
        from semantic_segmentation.config import CONFIG

        key = "model.num_classes"
    else:
        from object_detection.components import build_model
        from object_detection.config import CONFIG

        key = "num_classes"
    config = CONFIG.load(Namespace(cfg=str(path), opts=[]))
    with nullcontext() if with_values else paddle.LazyGuard():
        return config, build_model(config, attrgetter(key)(config))
