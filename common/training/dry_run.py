"""A trial of the first step, so that settings that cannot work end a run before it spends time on its data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError, one_line
from ..runtime.distributed import get_statistics, set_statistics
from .trainer import StepResult

__all__ = ["try_loss"]


@paddle.no_grad()
def try_loss(
    model: nn.Layer, loss_function: Callable[[nn.Layer, Any, np.random.Generator], StepResult], batch: Any
) -> None:
    """Compute the loss of a batch; the model stays as it was.

    Toolkits put together what a configuration names without asking whether it fits: model, loss and the size of the
    images meet in the first step.

    Args:
        loss_function: see :class:`common.training.trainer.Trainer`.

    Raises:
        UserError: it cannot be computed.
    """
    statistics = get_statistics(model)
    model.train()
    try:
        loss_function(model, batch, np.random.default_rng(0))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"a first step fails: {one_line(error)}; check the model, the loss and the size of the training images "
            "(-debug shows where it happens)"
        ) from error
    finally:
        set_statistics(model, statistics)
