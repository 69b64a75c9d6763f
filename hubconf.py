"""Entry points of ``paddle.hub``: the variants of the model, and the backbone for dense tasks.

    import paddle
    model = paddle.hub.load(".", "pale_nano", source="local", pretrained="mnist5k")

``"."`` is a checkout of this repository. For a repository on GitHub, give ``"OWNER/REPOSITORY:BRANCH"`` and omit
``source``.
"""

from __future__ import annotations

from collections.abc import Callable as _Callable
from pathlib import Path as _Path
from typing import Any as _Any

# paddle.hub lists every callable whose name has no leading underscore as an entry point.
from common.pale_features import create_features as _create_features
from common.pale_transformer import PaleTransformer as _PaleTransformer
from common.pale_transformer import create_model as _create_model

dependencies = ["paddle", "numpy", "PIL", "yaml", "tqdm", "safetensors"]


def _entry_point(name: str) -> _Callable[..., _PaleTransformer]:
    def create(
        pretrained: str | _Path | bool = False, num_classes: int | None = None, **overrides: _Any
    ) -> _PaleTransformer:
        return _create_model(name, num_classes, pretrained, **overrides)

    create.__name__ = name
    create.__doc__ = f"""Build {name}: images ``[B, 3, H, W]`` to logits ``[B, num_classes]``.

    Args:
        pretrained: weights to load: the tag of released weights (``common.checkpoints.released.list_weights``), a path,
            or ``https://...#sha256=...``.
        num_classes: outputs of the head; 0 builds no head. ``None`` uses the number of the pretrained head, or 1000.
        overrides: any argument of ``common.pale_transformer.PaleTransformer``.
    """
    return create


pale_nano = _entry_point("pale_nano")
pale_tiny = _entry_point("pale_tiny")
pale_small = _entry_point("pale_small")
pale_base = _entry_point("pale_base")
pale_features = _create_features
