"""The backbone of dense prediction: the four stages and a norm for each output, for segmentation and detection."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paddle import Tensor, nn

from .checkpoints.loading import load_pretrained, read_checkpoint
from .pale_transformer import PaleTransformer, build_variant

__all__ = ["PaleFeatures", "create_features"]


class PaleFeatures(PaleTransformer):
    """The stages of :class:`PaleTransformer`, under the same names, with normalized maps as outputs.

    It has no classifier and no final norm, but ``out_norms``, a LayerNorm for each output [A: Swin's and CSWin's
    dense-task code]. ``out_channels`` and ``out_strides`` describe the maps of the four stages.

    Args:
        out_indices: the stages, 0 to 3, whose maps are outputs; the last must be one, so that every parameter is used.
        arguments: those of :class:`PaleTransformer`, by name, but ``num_classes``.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    head_prefixes = ("out_norms.",)

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), **arguments: Any):
        super().__init__(num_classes=0, **arguments)
        chosen = list(out_indices) if isinstance(out_indices, Sequence) else []
        if chosen != sorted(set(chosen) & set(range(4))) or 3 not in chosen:
            raise ValueError(f"out_indices is {out_indices!r}; give rising numbers from 0 to 3, with 3 among them")
        del self.norm, self.head
        self.out_indices = tuple(int(stage) for stage in out_indices)  # 1.0 equals 1, but is no index
        # A stage that is no output keeps its place, so that the norm of each stage has one name in every model.
        self.out_norms = nn.LayerList(
            [
                nn.LayerNorm(channels) if stage in out_indices else nn.Identity()
                for stage, channels in enumerate(self.out_channels)
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :meth:`output_maps`."""
        return self.output_maps(images)

    def output_maps(self, images: Tensor) -> list[Tensor]:
        """Map images ``[B, C, H, W]``, H and W from 32 up, to the normalized NCHW maps of ``out_indices``.

        Returns:
            Maps with ``out_channels`` channels at ``out_strides``; a side that a stride does not divide is rounded up.
        """
        maps = self._stage_outputs(images)
        return [self.out_norms[stage](maps[stage]).transpose([0, 3, 1, 2]) for stage in self.out_indices]

    def reset_head(self, num_classes: int) -> None:
        """Refuse: the head belongs to the model around the backbone.

        Raises:
            ValueError: ``num_classes`` is not 0.
        """
        if num_classes:
            raise ValueError(f"num_classes is {num_classes}; a backbone of dense models has no classifier")
        super().reset_head(num_classes)


def create_features(
    variant: str,
    drop_path_rate: float = 0.0,
    pretrained: str | Path | bool | None = None,
    in_channels: int = 3,
    recompute: bool = False,
    **overrides: Any,
) -> PaleFeatures:
    """Build a variant as a backbone.

    Args:
        variant: one of :func:`common.pale_transformer.list_models`.
        drop_path_rate: stochastic depth of the last block.
        pretrained: weights as for :func:`common.pale_transformer.create_model`, of a classification model (its
            classifier and final norm are not loaded, ``out_norms`` stay as initialized) or of a dense one.
        in_channels: channels of the images.
        recompute: see :meth:`PaleTransformer.set_recompute`.
        overrides: other arguments of :class:`PaleFeatures`, which replace the variant's.

    Raises:
        ValueError: unknown name or argument, or a value out of range.
        common.errors.UserError: the weights do not exist, are unsafe or damaged, or do not fit.
    """
    backbone = build_variant(PaleFeatures, variant, drop_path_rate=drop_path_rate, in_channels=in_channels, **overrides)
    backbone.set_recompute(recompute)
    if pretrained:
        load_pretrained(backbone, read_checkpoint(pretrained, variant))
    return backbone
