"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import paddle
from paddle import nn

__all__ = ["ModelEma"]


class ModelEma:
    """Keeps a second model whose weights are the moving average of the trained model's.

    After update t (from 0) the average is ``d * average + (1 - d) * weights`` with the warmed-up decay
    ``d = min(decay, (1 + t) / (10 + t))``, so that the average soon forgets the initial weights. BatchNorm's
    statistics are averaged in the same way.

    Args:
        model: the model to follow, with its pretrained weights already loaded.
        decay: limit of the decay, in (0, 1).
    """

    def __init__(self, model: nn.Layer, decay: float):
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model)
        self.model.eval()
        for parameter in self.model.parameters():
            parameter.stop_gradient = True

    @paddle.no_grad()
    def update(self, model: nn.Layer) -> None:
        """Update the average; call it after each optimizer step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            if average.is_floating_point():
                # In this form an average of equal weights, such as frozen ones, stays bitwise equal.
                average.set_value(average + (current[name] - average) * (1.0 - decay))
            else:
                average.set_value(current[name])
