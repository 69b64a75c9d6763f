"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import paddle
from paddle import nn

__all__ = ["ModelEma"]


class ModelEma:
    """Keeps a second model whose weights are the moving average of the trained model's.

    After update t (from 0) the average is ``d * average + (1 - d) * weights`` with the warmed-up decay
    ``d = min(decay, (1 + t) / (10 + t))``, so that the average soon forgets the initial weights. BatchNorm's
    statistics are averaged in the same way.

    Args:
        model: the model to follow, with its pretrained weights already loaded; float32.
        decay: limit of the decay, in (0, 1).
    """

    def __init__(self, model: nn.Layer, decay: float):
        self.decay, self.updates = decay, 0
        self._model = copy.deepcopy(model)
        self._model.eval()
        for parameter in self._model.parameters():
            parameter.stop_gradient = True
        self._vector: paddle.Tensor | None = None  # the average, where it is newer than the model's

    @property
    def model(self) -> nn.Layer:
        """The averaged model, in evaluation mode."""
        if self._vector is not None:
            start = 0
            for tensor in _floats(self._model.state_dict()):
                tensor.set_value(self._vector[start : start + tensor.size].reshape(tensor.shape))
                start += tensor.size
            self._vector = None
        return self._model

    @paddle.no_grad()
    def update(self, model: nn.Layer) -> None:
        """Update the average; call it after each optimizer step.

        All weights are one vector, which takes a handful of kernels instead of a handful for each of them.
        """
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        current, average = model.state_dict(), self._model.state_dict()
        if self._vector is None:
            self._vector = _as_vector(average)
        # In this form an average of equal weights, such as frozen ones, stays bitwise equal.
        self._vector.add_(_as_vector(current).subtract_(self._vector).scale_(1.0 - decay))
        for name, tensor in average.items():
            if not tensor.is_floating_point():
                tensor.set_value(current[name])


def _floats(state: Mapping[str, paddle.Tensor]) -> list[paddle.Tensor]:
    return [tensor for tensor in state.values() if tensor.is_floating_point()]


def _as_vector(state: Mapping[str, paddle.Tensor]) -> paddle.Tensor:
    return paddle.concat([tensor.flatten() for tensor in _floats(state)])
