"""BatchNorm over the batches of all ranks."""

from __future__ import annotations

import functools
from typing import Any

import paddle
import paddle.distributed as dist
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd import PyLayer

from ..runtime.distributed import rank, world_size

__all__ = ["SyncBatchNorm", "synchronize_batch_norm"]


def synchronize_batch_norm(model: nn.Layer) -> None:
    """Let every BatchNorm of a model normalize by the batches of all ranks in training; a collective operation.

    Parameters, statistics and their names stay, so weights fit models with and without it. Nothing changes in a single
    process, nor does a BatchNorm whose statistics are frozen (:func:`common.layers.freezing.freeze`).
    """
    if world_size() == 1:
        return
    _ranks()
    for layer in model.sublayers(include_self=True):
        if isinstance(layer, nn.BatchNorm2D) and not layer._use_global_stats:
            # Not replaced by another object, as paddle.nn.SyncBatchNorm.convert_sync_batchnorm does: toolkits keep
            # further references to layers, in lists.
            layer.__class__ = SyncBatchNorm


class SyncBatchNorm(nn.SyncBatchNorm):
    """``nn.SyncBatchNorm`` that also runs on CPUs, for which Paddle has no kernel.

    The statistics are the means over the ranks of each rank's mean and mean square, as in Paddle's kernel: every rank
    counts equally, whatever the size of its images. The running variance is that of the biased estimate.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, C, H, W]``, or ``[B, H, W, C]`` with ``data_format="NHWC"``, to the same shape."""
        if not self.training:
            return F.batch_norm(
                x,
                self._mean,
                self._variance,
                self.weight,
                self.bias,
                epsilon=self._epsilon,
                data_format=self._data_format,
            )
        if not x.place.is_cpu_place():
            return super().forward(x)
        axes = [0, 1, 2] if self._data_format == "NHWC" else [0, 2, 3]
        own_mean = x.mean(axes, keepdim=True)
        own_variance = (x - own_mean).square().mean(axes, keepdim=True)
        means, variances = _GatherRanks.apply(paddle.stack([own_mean, own_variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        self._update(self._mean, mean)
        self._update(self._variance, variance)
        scale = self.weight.reshape(mean.shape) * paddle.rsqrt(variance + self._epsilon)
        return (x - mean) * scale + self.bias.reshape(mean.shape)

    @paddle.no_grad()
    def _update(self, running: Tensor, value: Tensor) -> None:
        running.set_value(running * self._momentum + value.reshape(running.shape) * (1.0 - self._momentum))


class _GatherRanks(PyLayer):
    """Every rank's tensor, ``[world_size, ...]``; backward sums the gradients that the ranks have for this one's."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        rows = paddle.zeros([world_size(), *own.shape], own.dtype)
        rows[rank()] = own
        dist.all_reduce(rows, group=_ranks())
        return rows

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient, group=_ranks())
        return gradient[rank()]


@functools.cache
def _ranks() -> Any:
    """All ranks, as a group of its own: gloo pairs operations of a group by their order, and DataParallel sends its
    gradients at times that differ between ranks if some parameters are unused."""
    return dist.new_group(list(range(world_size())))
