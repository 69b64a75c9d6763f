"""What users of timm expect of a model besides ``forward`` and ``forward_features``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from paddle import Tensor, nn

from .checkpoints.first_convolution import FIRST_CONVOLUTION

__all__ = ["FeatureInfo", "TimmInterface", "places_of"]


class FeatureInfo:
    """The channels and strides of the maps of some stages, with timm's names."""

    def __init__(self, model: TimmInterface, stages: Sequence[int]):
        self._model, self._stages = model, stages

    def channels(self) -> list[int]:
        """Channels of each map."""
        return [self._model.out_channels[stage] for stage in self._stages]

    def reduction(self) -> list[int]:
        """Stride of each map, in pixels."""
        return [self._model.out_strides[stage] for stage in self._stages]

    def module_name(self) -> list[str]:
        """Name of the layer that each map comes from."""
        return [f"stages.{stage}" for stage in self._stages]


class TimmInterface(nn.Layer):
    """Methods of :class:`common.pale_transformer.PaleTransformer` with timm's names and arguments."""

    global_pool: str

    @property
    def default_cfg(self) -> dict[str, Any]:
        """Input size and preprocessing, and the names of the first convolution and of the classifier."""
        settings = asdict(self.preprocessing)
        side = settings.pop("image_size")
        size = (self.in_channels, side, side)
        return {"input_size": size, **settings, "first_conv": FIRST_CONVOLUTION, "classifier": "head"}

    @property
    def feature_info(self) -> FeatureInfo:
        """Of the maps that a backbone returns, or of those of ``forward_features``."""
        return FeatureInfo(self, getattr(self, "out_indices", range(4)))

    @property
    def num_features(self) -> int:
        """Channels of the last map, and so of the pooled features."""
        return self.out_channels[len(self.stages) - 1]

    def get_classifier(self) -> nn.Layer:
        """The linear layer that gives the logits; the identity where there are no classes."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Call ``reset_head``; ``global_pool``, ``avg`` or, for 0 classes, an empty text, changes the pooling.

        Raises:
            ValueError: an argument is out of range. The model is then unchanged.
        """
        before = self.global_pool
        self.global_pool = before if global_pool is None else global_pool
        try:
            self.reset_head(num_classes)
        except ValueError:
            self.global_pool = before
            raise

    def forward_head(self, x: Tensor | Sequence[Tensor], pre_logits: bool = False) -> Tensor:
        """Map the last map of ``forward_features``, ``[B, C, h, w]``, or the list of all, to what ``forward`` returns.

        With ``pre_logits``, it is mapped to what the classifier is given, the pooled features ``[B, num_features]``.
        """
        last = x[-1] if isinstance(x, Sequence) else x
        return self.head_outputs(last.transpose([0, 2, 3, 1]), pre_logits)

    def forward_intermediates(
        self, images: Tensor, indices: Sequence[int] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Map images ``[B, C, H, W]`` to the last map, for :meth:`forward_head`, and to the outputs of blocks.

        Args:
            images: H and W from 32 up.
            indices: numbers of blocks over all stages, rising, negative ones from the end; all by default.

        Returns:
            NCHW maps without the final LayerNorm. That of a stage's last block is one of ``forward_features``.

        Raises:
            ValueError: there is no such block.
        """
        blocks = [block for stage in self.stages for block in stage.blocks]
        chosen = range(len(blocks)) if indices is None else places_of(indices, len(blocks), "indices")
        outputs: list[Tensor] = []

        def keep(layer: nn.Layer, inputs: Any, x: Tensor) -> None:
            outputs.append(x.transpose([0, 3, 1, 2]))

        hooks = [blocks[place].register_forward_post_hook(keep) for place in chosen]
        try:
            *_, last = self.forward_features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return last, outputs


def places_of(indices: Sequence[int], count: int, name: str) -> tuple[int, ...]:
    """Indices as numbers from 0; a negative index counts from the end.

    Args:
        indices: of what there are ``count`` of.
        name: of the argument, for the message.

    Raises:
        ValueError: there is none, one is no integer or out of range, or they do not rise.
    """
    whole = isinstance(indices, Sequence) and all(isinstance(index, int) for index in indices)
    places = tuple(index + count if index < 0 else index for index in indices) if whole else ()
    if not places or list(places) != sorted(set(places) & set(range(count))):
        raise ValueError(
            f"{name} is {indices!r}; give rising numbers from 0 to {count - 1}, or from -{count} to -1 from the end"
        )
    return places
