"""The plug-in for PaddleDetection: ``import pale_transformer.paddledet`` registers the backbone and applies patches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

# isort: split
from .toolkits import ppdet_patches  # noqa: F401 (before ppdet, which it patches)

# isort: split
from paddle import Tensor
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import global_config, register, serializable
from ppdet.modeling.shape_spec import ShapeSpec

from .checkpoints.loading import load_pretrained, read_checkpoint
from .model_names import variant_settings
from .pale_transformer import PaleFeatures

__all__ = ["PaleTransformer"]


def _register_once(cls: type) -> type:
    """Register a class with ppdet, unless the module was imported under another name before: ppdet would refuse."""
    return cls if isinstance(global_config.get(cls.__name__), SchemaDict) else register(cls)


@_register_once
@serializable
class PaleTransformer(PaleFeatures):
    """The backbone with the interface of PaddleDetection's backbones.

    Args:
        variant, drop_path_rate, pretrained, in_channels, recompute: see
            :func:`common.pale_features.create_features`.
        out_indices: the stages whose maps the neck reads, see :class:`common.pale_transformer.PaleFeatures`.
        num_heads, pale_size, attention, parallel, position_encoding, image_size, stage_norms: see
            :class:`common.pale_transformer.PaleTransformer`; None for the variant's.

    Raises:
        ValueError: unknown variant, or a value out of range.
        common.errors.UserError: the weights do not exist, are unsafe or damaged, or do not fit.
    """

    def __init__(
        self,
        variant: str = "pale_tiny",
        drop_path_rate: float = 0.0,
        pretrained: str | Path | None = None,
        in_channels: int = 3,
        recompute: bool = False,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        num_heads: Sequence[int] | None = None,
        pale_size: int | Sequence[int] | None = None,
        attention: str = "pale",
        parallel: bool = True,
        position_encoding: str = "cpe",
        image_size: int | Sequence[int] | None = None,
        stage_norms: bool = True,
    ):
        settings = variant_settings(
            variant,
            drop_path_rate=drop_path_rate,
            in_channels=in_channels,
            out_indices=out_indices,
            num_heads=num_heads,
            pale_size=pale_size,
            attention=attention,
            parallel=parallel,
            position_encoding=position_encoding,
            image_size=image_size,
            stage_norms=stage_norms,
        )
        super().__init__(**settings)
        self.set_recompute(recompute)
        if pretrained:
            load_pretrained(self, read_checkpoint(pretrained, variant, task="object_detection"))

    def forward(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """Map ``inputs["image"]``, ``[B, C, H, W]``, to the normalized NCHW maps of ``out_indices``."""
        return self.output_maps(inputs["image"])

    @property
    def out_shape(self) -> list[ShapeSpec]:
        """Channels and stride of each map."""
        return [
            ShapeSpec(channels=self.out_channels[stage], stride=self.out_strides[stage]) for stage in self.out_indices
        ]
