"""Whether the model runs eagerly."""

from __future__ import annotations

import paddle
from paddle.jit.sot.psdb import in_sot

__all__ = ["runs_eagerly"]


@paddle.jit.not_to_static
def runs_eagerly() -> bool:
    """Whether operations run at once, and are not being recorded by either form of ``paddle.jit.to_static``.

    Its default form (SOT) executes Python symbolically, with ``paddle.in_dynamic_mode()`` true. It splits the program
    wherever it meets a custom gradient or reads the place of an intermediate tensor.
    """
    return paddle.in_dynamic_mode() and not in_sot()
