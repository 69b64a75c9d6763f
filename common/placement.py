"""Where a tensor is computed with."""

from __future__ import annotations

import paddle
from paddle import Tensor

__all__ = ["is_eager_on_cpu"]


@paddle.jit.not_to_static
def is_eager_on_cpu(x: Tensor) -> bool:
    """Whether operations on a tensor run at once and on a CPU, as against a GPU or a program that is being traced."""
    return paddle.in_dynamic_mode() and x.place.is_cpu_place()
