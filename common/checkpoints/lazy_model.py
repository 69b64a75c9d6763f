"""Building a toolkit's model that gets its weights from a file."""

from __future__ import annotations

from collections.abc import Callable

import paddle
from paddle import nn

__all__ = ["build_lazily"]


def build_lazily(build: Callable[[], nn.Layer]) -> nn.Layer:
    """Return ``build()``, whose parameters have no values until
    :func:`common.checkpoints.loading.load_weights` gives them.

    Drawing those takes longer than reading the file. Some models of the toolkits read their parameters while they are
    built (PaddleSeg's GINet does); they are built with values after all.
    """
    try:
        with paddle.LazyGuard():
            return build()
    except Exception:  # of any type, as reading a tensor without memory fails anywhere; another cause comes again
        return build()
