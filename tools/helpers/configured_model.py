"""The model of a configuration file of any task."""

from __future__ import annotations

from argparse import Namespace
from operator import attrgetter
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from common.tasks import TASKS

__all__ = ["build_configured", "task_of"]


def task_of(path: Path) -> str:
    """The task in whose folder a configuration file is."""
    return next(part for part in path.resolve().parts[::-1] if part in TASKS)


def build_configured(path: Path) -> tuple[Any, nn.Layer]:
    """Read a configuration, and build its model without values, to count its parameters and operations.

    Args:
        path: a file in the folder of a task.

    Returns:
        The configuration and the model.

    Raises:
        common.errors.UserError: the configuration is impossible.
    """
    task = TASKS[task_of(path)]
    config = task.config().load(Namespace(cfg=str(path), opts=[]))
    with paddle.LazyGuard():
        return config, task.build_model()(config, attrgetter(task.num_classes_key)(config))
