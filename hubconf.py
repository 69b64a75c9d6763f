"""Entry points of ``paddle.hub``: each variant, and the backbone of dense models.

    import paddle
    model = paddle.hub.load(".", "pale_nano", source="local", pretrained="mnist5k")

``"."`` is a checkout of this repository; for one on GitHub write ``"OWNER/REPOSITORY:BRANCH"``, and leave ``source``
out.
"""

from __future__ import annotations

from collections.abc import Callable as _Callable
from pathlib import Path as _Path
from typing import Any as _Any

# paddle.hub takes every callable without an underscore for an entry point.
from common.pale_features import create_features as _create_features
from common.pale_transformer import PaleTransformer as _PaleTransformer
from common.pale_transformer import create_model as _create_model

dependencies = ["paddle", "numpy", "PIL", "yaml", "yacs", "tqdm", "safetensors"]


def _entry_point(name: str) -> _Callable[..., _PaleTransformer]:
    def create(
        pretrained: str | _Path | bool = False, num_classes: int | None = None, **overrides: _Any
    ) -> _PaleTransformer:
        return _create_model(name, num_classes, pretrained, **overrides)

    create.__name__ = name
    create.__doc__ = f"""Build {name}: images ``[B, 3, H, W]`` to logits ``[B, num_classes]``.

    Args:
        pretrained: weights to load: the tag of released ones (``common.checkpoints.released.list_weights``), a file, or
            ``https://...#sha256=...``.
        num_classes: outputs of the head; 0 for none. ``None`` takes the pretrained head's, or 1000.
        overrides: any argument of ``common.pale_transformer.PaleTransformer``.
    """
    return create


pale_nano = _entry_point("pale_nano")
pale_tiny = _entry_point("pale_tiny")
pale_small = _entry_point("pale_small")
pale_base = _entry_point("pale_base")
pale_features = _create_features
