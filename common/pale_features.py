"""The backbone of segmentation and detection, with the arguments that the toolkits give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .pale_transformer import PaleFeatures, create_model

__all__ = ["PaleFeatures", "create_features"]


def create_features(
    variant: str,
    drop_path_rate: float = 0.0,
    pretrained: str | Path | bool | None = None,
    in_channels: int = 3,
    recompute: bool = False,
    **overrides: Any,
) -> PaleFeatures:
    """Build a variant as a backbone: ``create_model(features_only=True)``, and ``set_recompute``.

    Args:
        variant: one of :func:`common.pale_transformer.list_models`.
        drop_path_rate: stochastic depth of the last block.
        pretrained: weights as for :func:`common.pale_transformer.create_model`, of a classification model (its
            classifier and final norm are not loaded, ``out_norms`` stay as initialized) or of a dense one.
        in_channels: channels of the images.
        recompute: see :meth:`common.pale_transformer.PaleTransformer.set_recompute`.
        overrides: other arguments of :class:`common.pale_transformer.PaleFeatures`, which replace the variant's.

    Raises:
        ValueError: unknown name or argument, or a value out of range.
        common.errors.UserError: the weights do not exist, are unsafe or damaged, or do not fit.
    """
    backbone = create_model(
        variant,
        pretrained=pretrained or False,
        features_only=True,
        drop_path_rate=drop_path_rate,
        in_channels=in_channels,
        **overrides,
    )
    assert isinstance(backbone, PaleFeatures)
    backbone.set_recompute(recompute)
    return backbone
