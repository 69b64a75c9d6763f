"""A dry run of the first step: settings that cannot work end the run before the data is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError, one_line
from ..runtime.distributed import wait_for_all_ranks
from .batch_norm import get_statistics, set_statistics
from .task import BatchResult

__all__ = ["dry_run_loss"]


@paddle.no_grad()
def dry_run_loss(
    model: nn.Layer, compute_loss: Callable[[nn.Layer, Any, np.random.Generator], BatchResult], batch: Any
) -> None:
    """Compute the loss of a batch and leave the model as it was.

    The toolkits build what a configuration names without checking whether the parts fit: the model, the loss and the
    image size meet in the first step.

    Args:
        compute_loss: see :class:`common.training.task.Training`.

    Raises:
        UserError: the loss cannot be computed.
    """
    statistics = get_statistics(model)
    wait_for_all_ranks()  # one may have taken long to read the batch
    model.train()
    try:
        compute_loss(model, batch, np.random.default_rng(0))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"the first training step fails: {one_line(error)}; check the model, the loss and the size of the training "
            "images (-debug shows where it happens)"
        ) from error
    finally:
        set_statistics(model, statistics)
