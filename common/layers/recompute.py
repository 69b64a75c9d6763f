"""Recomputation: trade time in the backward pass for memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

__all__ = ["run_recomputed"]


def run_recomputed(layer: nn.Layer, x: Tensor) -> Tensor:
    """Return ``layer(x)``, of which the backward pass keeps ``x`` alone and computes the rest again.

    BatchNorm's running statistics are updated once, by the first run.
    """
    runs = itertools.count()
    # Paddle 2.6 refuses to restore the state of random numbers on CPUs, so it is done here.
    random_state = paddle.get_rng_state() if paddle.__version__ < "3" and x.place.is_cpu_place() else None

    def run(x: Tensor) -> Tensor:
        if not next(runs):
            return layer(x)
        with _frozen_statistics(layer), _random_numbers_from(random_state) if random_state else nullcontext():
            return layer(x)

    # The reentrant form would report each gradient twice to DataParallel when gradients are accumulated.
    return recompute(run, x, use_reentrant=False, preserve_rng_state=random_state is None)


@contextmanager
def _random_numbers_from(state: list[Any]) -> Iterator[None]:
    """Draw the random numbers that follow a state of Paddle's generators, and restore the present state after it."""
    present = paddle.get_rng_state()
    paddle.set_rng_state(state)
    try:
        yield
    finally:
        paddle.set_rng_state(present)


@contextmanager
def _frozen_statistics(layer: nn.Layer) -> Iterator[None]:
    """Normalize by the batch without updating the running statistics."""
    kinds = (nn.BatchNorm2D, nn.SyncBatchNorm)
    norms = [sublayer for sublayer in layer.sublayers() if isinstance(sublayer, kinds)]
    momenta = [norm._momentum for norm in norms]
    for norm in norms:
        norm._momentum = 1.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm._momentum = momentum
