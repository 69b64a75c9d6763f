"""The variants of the model, smallest first, and the names of its ablations; without Paddle, for the command line.

``docs/paper.md`` explains the marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["ATTENTIONS", "POSITION_ENCODINGS", "VARIANTS", "register_model"]

ATTENTIONS = ("pale", "axial", "cross", "window", "global")
POSITION_ENCODINGS = ("cpe", "absolute", "relative", "none")

# A row is what distinguishes a variant. Depths and pale size: [U] for Pale-B, [C] for all three.
VARIANTS: dict[str, dict[str, Any]] = {
    # Not in the paper: ours, for CPUs, tests and small images. The pale of 4 divides the 8x8 map of a 32x32 image.
    "pale_nano": {"embed_dim": 20, "depths": (1, 1, 3, 1), "num_heads": (2, 2, 4, 8), "pale_size": 4},
    # 21.8M parameters, 4.20G multiply-adds at 224x224. Channels [C], heads [A: CSWin].
    "pale_tiny": {"embed_dim": 64, "depths": (2, 2, 16, 2), "num_heads": (2, 4, 8, 16), "pale_size": 7},
    # 48.3M, 8.98G. Channels [C], heads [A: ours, as pale_tiny; the weakest assumption, see docs/paper.md].
    "pale_small": {"embed_dim": 96, "depths": (2, 2, 16, 2), "num_heads": (2, 4, 8, 16), "pale_size": 7},
    # 85.3M, 15.53G. Channels [C], heads [U].
    "pale_base": {"embed_dim": 128, "depths": (2, 2, 16, 2), "num_heads": (4, 8, 16, 32), "pale_size": 7},
}


def register_model(name: str, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], **settings: Any) -> None:
    """Add a variant of your own, for ``create_model``, ``list_models`` and, in this process, ``MODEL.NAME``.

    Args:
        name: for :func:`common.pale_transformer.create_model`.
        embed_dim, depths, num_heads, settings: arguments of :class:`common.pale_transformer.PaleTransformer`.

    Raises:
        ValueError: there is another variant of this name.
    """
    row = {"embed_dim": embed_dim, "depths": tuple(depths), "num_heads": tuple(num_heads), **settings}
    if VARIANTS.setdefault(name, row) != row:
        raise ValueError(f"there is a variant {name!r} with other settings; give another name")
