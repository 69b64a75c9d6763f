"""The plug-in for PaddleSeg: ``import pale_transformer.paddleseg`` registers the models and applies patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddleseg.cvlibs import manager

from .pale_features import PaleFeatures, create_features
from .toolkits import paddleseg_patches  # noqa: F401 (applies the patches)
from .toolkits.upernet import PaleUPerNet

__all__ = ["PaleTransformer", "PaleUPerNet"]


@manager.BACKBONES.add_component
def PaleTransformer(
    variant: str = "pale_tiny",
    drop_path_rate: float = 0.0,
    pretrained: str | Path | None = None,
    in_channels: int = 3,
    recompute: bool = False,
    num_heads: Sequence[int] | None = None,
    pale_size: int | Sequence[int] | None = None,
    attention: str = "pale",
    parallel: bool = True,
    position_encoding: str = "cpe",
    image_size: int | Sequence[int] | None = None,
    stage_norms: bool = True,
) -> PaleFeatures:
    """Build the backbone with the interface of PaddleSeg's backbones, ``feat_channels`` included.

    Args:
        variant, drop_path_rate, pretrained, in_channels, recompute: see
            :func:`common.pale_features.create_features`.
        num_heads, pale_size, attention, parallel, position_encoding, image_size, stage_norms: see
            :class:`common.pale_transformer.PaleTransformer`; None for the variant's.

    Raises:
        ValueError: unknown variant, or a value out of range.
        common.errors.UserError: the weights do not exist, are unsafe or damaged, or do not fit.
    """
    backbone = create_features(
        variant,
        drop_path_rate,
        pretrained,
        in_channels,
        recompute,
        num_heads=num_heads,
        pale_size=pale_size,
        attention=attention,
        parallel=parallel,
        position_encoding=position_encoding,
        image_size=image_size,
        stage_norms=stage_norms,
    )
    backbone.feat_channels = list(backbone.out_channels)
    return backbone
