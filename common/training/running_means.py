"""Means of the loss and the metrics over the batches since the last line of the log."""

from __future__ import annotations

import time

import paddle

from ..runtime.distributed import sum_over_ranks
from .task import BatchResult

__all__ = ["RunningMeans"]


class RunningMeans:
    """Sums since its creation. They stay on the device until :meth:`compute`."""

    def __init__(self):
        self._began = time.perf_counter()
        self._batches = self._samples = self._skipped = 0
        self._data_time = 0.0
        self._loss = self._finite = paddle.zeros([])
        self._sums: dict[str, paddle.Tensor] = {}

    def add(self, result: BatchResult, data_time: float) -> None:
        """Add a batch.

        Args:
            data_time: seconds that this rank waited for the batch.
        """
        loss = result.loss.detach().astype("float32")
        finite = paddle.isfinite(loss)
        self._finite = self._finite + finite.astype("float32")
        self._loss = self._loss + paddle.where(finite, loss, paddle.zeros([]))
        for name, mean in result.metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean.detach().astype("float32") * result.samples
        self._samples += result.samples
        self._skipped += result.skipped
        self._batches += 1
        self._data_time += data_time

    def compute(self) -> dict[str, float]:
        """Means over all ranks; a collective operation.

        Returns:
            ``loss`` (over the batches where it is finite), the metrics, ``images_per_second``, ``data_share``
            (percentage of the time that this rank waited for data), ``seconds_per_batch`` and ``skipped`` (a count).
        """
        seconds = time.perf_counter() - self._began
        loss, finite, samples, skipped, *sums = sum_over_ranks(
            [float(self._loss), float(self._finite), self._samples, self._skipped, *map(float, self._sums.values())]
        )
        return {
            "loss": loss / max(finite, 1.0),
            **{name: total / samples for name, total in zip(self._sums, sums, strict=True)},
            "images_per_second": samples / seconds,
            "data_share": 100.0 * self._data_time / seconds,
            "seconds_per_batch": seconds / self._batches,
            "skipped": int(skipped),
        }
