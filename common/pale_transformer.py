"""Pale Transformer (arXiv 2112.14000): the backbone, its variants, and ``create_model``.

Maps are channels-last, ``[B, H, W, C]``, inside; images come in and feature maps go out as ``[B, C, H, W]``.
The marks [P], [R], [U], [C], [A] tell how sure a fact of the paper is; ``docs/paper.md`` explains them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from .ablation import vary
from .checkpoints.loading import load_pretrained, read_checkpoint
from .data.preprocessing import Preprocessing
from .fuse import fuse
from .layers.channels_last import Linear
from .layers.drop_path import DropPath
from .layers.dropout import add_dropout
from .layers.freezing import freeze
from .layers.position_encoding import ConditionalPositionEncoding
from .layers.recompute import run_recomputed
from .layers.variants import VARIANTS
from .model_names import list_models, variant_settings
from .pale_attention import PSAttention
from .runtime.cpu_settings import set_cpu_settings_without_gpu
from .timm_interface import TimmInterface, places_of

__all__ = [
    "STRIDE",
    "VARIANTS",
    "PaleBlock",
    "PaleFeatures",
    "PaleTransformer",
    "build_variant",
    "create_model",
    "list_models",
    "variant_settings",
]

set_cpu_settings_without_gpu()

STRIDE = 32  # pixels per token of the last map, along each side


class PatchMerging(nn.Layer):
    """Overlapping convolution that shrinks the map and widens the channels [U, C], then LayerNorm [A: CSWin, CvT]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2D(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C_in]`` to ``[B, H / stride, W / stride, C_out]``, sides rounded up."""
        x = self.conv(x.transpose([0, 3, 1, 2])).transpose([0, 2, 3, 1])
        return self.norm(x)


class Mlp(nn.Layer):
    """Linear, GELU, linear [U, C]."""

    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class PaleBlock(nn.Layer):
    """Position encoding, PS-Attention and MLP, each with a residual connection [R, U].

    Args:
        dim, num_heads, pale_size: see :class:`common.pale_attention.PSAttention`.
        mlp_ratio: hidden width of the MLP over its input width.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pale_size: int | Sequence[int] = 7,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.position_encoding = ConditionalPositionEncoding(dim)
        self.norm1 = nn.LayerNorm(dim)
        self.attention = PSAttention(dim, num_heads, pale_size)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape. ``size`` is (H, W), if it is known."""
        x = self.position_encoding(x)
        x = x + self.drop_path(self.attention(self.norm1(x), size))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x


class PaleStage(nn.Layer):
    """Patch merging, then blocks at one resolution."""

    def __init__(self, merging: PatchMerging, blocks: Sequence[PaleBlock]):
        super().__init__()
        self.merging = merging
        self.blocks = nn.LayerList(blocks)

    def forward(self, x: Tensor, recompute: bool = False) -> Tensor:
        """Map ``[B, H, W, C_in]`` to ``[B, H / stride, W / stride, C_out]``."""
        x = self.merging(x)
        size = x.shape[1:3]  # read once, because each reading is an operation in a traced program with open sizes
        for block in self.blocks:
            x = run_recomputed(block, x) if recompute else block(x, size)
        return x


class PaleTransformer(TimmInterface):
    """A hierarchical backbone of four stages with a classification head.

    Args:
        embed_dim: channels of the first stage; they double from stage to stage [U, C].
        depths: number of blocks in each of the four stages.
        num_heads: number of heads in each stage, rows and columns together.
        pale_size: rows and columns of a pale: one number or a pair for all stages, or four of these, one per stage.
        mlp_ratio: hidden width of the MLP over its input width [U, C].
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 over the blocks.
        num_classes: outputs of the head; 0 for no head, ``forward`` then returns the pooled features.
        in_channels: channels of the images.
        attention: shape of the attention: ``pale``, or one of the ablations (``common.ablation.ATTENTIONS``).
        parallel: whether rows and columns share the channels of each block [R] or alternate from block to block.
        position_encoding: ``cpe`` [U, C], or one of the ablations (``common.ablation.POSITION_ENCODINGS``).
        image_size: side, or height and width, of the training images; only learned position encodings need it.
        stage_norms: LayerNorm after each patch merging and before the pooling [A: CSWin, CvT]; none in [U].
        drop_rate: dropout of the pooled features before the classifier.
        attn_drop_rate, proj_drop_rate: dropout within the blocks, see :func:`common.layers.dropout.add_dropout`.
        global_pool: ``avg``, or, without a head, an empty text: ``forward`` then returns the normalized last map.

    Attributes:
        out_channels, out_strides: of the feature maps of the four stages.
        preprocessing: of images in evaluation (:class:`common.data.preprocessing.Preprocessing`): ImageNet's, or that
            of the weights that :func:`create_model` has loaded.
        attention_settings: settings that cannot be inferred from a state dict; checkpoints store them.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    head_prefixes: tuple[str, ...] = ("head.",)  # parameters that fine-tuning may reinitialize
    training_only_prefixes = ("aux_head.",)  # of token labeling; not used in evaluation

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        pale_size: int | Sequence[int] | Sequence[Sequence[int]] = 7,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        num_classes: int = 1000,
        in_channels: int = 3,
        attention: str = "pale",
        parallel: bool = True,
        position_encoding: str = "cpe",
        image_size: int | tuple[int, int] | None = None,
        stage_norms: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        global_pool: str = "avg",
    ):
        super().__init__()
        _require_positive(embed_dim=embed_dim, mlp_ratio=mlp_ratio, in_channels=in_channels)
        rates = {"drop_path_rate": drop_path_rate, "drop_rate": drop_rate}
        rates |= {"attn_drop_rate": attn_drop_rate, "proj_drop_rate": proj_drop_rate}
        for name, rate in rates.items():
            _require_number(name, rate)
            if not 0.0 <= rate < 1.0:
                raise ValueError(f"{name} is {rate}; it must be in [0, 1)")
        for name, switch in (("parallel", parallel), ("stage_norms", stage_norms)):
            if not isinstance(switch, bool):
                raise ValueError(f"{name} is {switch!r}; it must be true or false")
        for name, values in (("depths", depths), ("num_heads", num_heads)):
            if not isinstance(values, Sequence) or len(values) != 4:
                raise ValueError(f"{name} is {values!r}; give one number for each of the four stages")
            for value in values:
                _require_positive(**{name: value})

        self.out_channels = tuple(embed_dim * 2**stage for stage in range(4))
        self.out_strides = (4, 8, 16, 32)
        self.depths = tuple(depths)
        self.in_channels = in_channels
        self.preprocessing = Preprocessing(image_size) if isinstance(image_size, int) else Preprocessing()
        sizes = _sizes_of_stages(pale_size)
        drop_rates = iter(np.linspace(0.0, drop_path_rate, sum(depths)).tolist())
        self.stages = nn.LayerList()
        for stage, dim in enumerate(self.out_channels):
            if stage == 0:
                merging = PatchMerging(in_channels, dim, kernel_size=7, stride=4, norm=stage_norms)
            else:
                merging = PatchMerging(dim // 2, dim, kernel_size=3, stride=2, norm=stage_norms)
            blocks = [
                PaleBlock(dim, num_heads[stage], sizes[stage], mlp_ratio, next(drop_rates))
                for _ in range(depths[stage])
            ]
            self.stages.append(PaleStage(merging, blocks))
        self.norm = nn.LayerNorm(self.out_channels[-1]) if stage_norms else nn.Identity()
        self.global_pool = global_pool
        self.dropout = nn.Dropout(drop_rate)
        self.head = nn.Identity()  # until reset_head
        self._recompute = False
        if (attention, parallel, position_encoding) != ("pale", True, "cpe"):
            vary(self, attention, sizes, parallel, position_encoding, image_size)
        if attn_drop_rate or proj_drop_rate:
            add_dropout(self, attn_drop_rate, proj_drop_rate)
        self.attention_settings = {
            "attention": attention,
            "pale_size": sizes if attention in ("pale", "cross", "window") else [],
            "parallel": parallel or attention in ("window", "global"),
            "num_heads": list(num_heads),
        }
        self.apply(_init_weights)
        self.reset_head(num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``[B, C, H, W]``, H and W from 32 up, to logits ``[B, num_classes]``.

        For 0 classes, these are the pooled features, ``[B, num_features]``, or, without pooling, the NCHW last map.
        """
        return self.head_outputs(self._stage_outputs(images)[-1])

    def forward_features(self, images: Tensor) -> list[Tensor]:
        """Map images ``[B, C, H, W]``, H and W from 32 up, to the outputs of the four stages.

        timm's ``forward_features`` returns the last map alone, after the final LayerNorm.

        Returns:
            Four NCHW maps, or those of the stages that a :class:`PaleFeatures` has, with ``out_channels`` channels at
            ``out_strides``; a side that a stride does not divide is rounded up. The final LayerNorm belongs to the head
            and is not applied.
        """
        return [x.transpose([0, 3, 1, 2]) for x in self._stage_outputs(images)]

    def head_outputs(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last map, ``[B, h, w, C]``, to logits or, with ``pre_logits``, to what the classifier is given."""
        x = self.norm(x)
        x = self.dropout(x.mean([1, 2])) if self.global_pool else x.transpose([0, 3, 1, 2])
        return x if pre_logits else self.head(x)

    def _stage_outputs(self, images: Tensor) -> list[Tensor]:
        """The ``[B, H, W, C]`` map of each stage."""
        if paddle.in_dynamic_mode():
            if images.ndim != 4 or images.shape[1] != self.in_channels:
                wanted = f"[B, {self.in_channels}, H, W]"
                raise ValueError(f"images have the shape {list(images.shape)}; the model needs {wanted}")
            if min(images.shape[2:]) < STRIDE:
                raise ValueError(f"images are {images.shape[2]}x{images.shape[3]}; the model needs at least 32x32")
        x = images.transpose([0, 2, 3, 1])
        maps = []  # a list: Paddle does not trace code that a generator calls
        for stage in self.stages:
            x = stage(x, self._recompute and self.training)
            maps.append(x)
        return maps

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a newly initialized one for ``num_classes`` classes (0: none)."""
        _require_number("num_classes", num_classes)
        if num_classes < 0:
            raise ValueError(f"num_classes is {num_classes}; it must be 0 (no head) or more")
        if self.global_pool not in ("avg", "") or (num_classes and not self.global_pool):
            raise ValueError(f"global_pool is {self.global_pool!r}; it must be 'avg' or, without a classifier, ''")
        self.num_classes = num_classes
        self.head = self.build_head()

    def build_head(self) -> nn.Layer:
        """A newly initialized linear layer for ``num_classes`` classes, or the identity for none."""
        head = nn.Linear(self.out_channels[-1], self.num_classes) if self.num_classes else nn.Identity()
        _init_weights(head)
        return head

    def set_recompute(self, enabled: bool = True) -> None:
        """Recompute each block in the backward pass instead of storing its activations (gradient checkpointing).

        Raises:
            ValueError: ``enabled`` is not a bool, such as the text ``'false'``.
        """
        if not isinstance(enabled, bool):
            raise ValueError(f"recompute is {enabled!r}; give True or False")
        self._recompute = enabled

    def freeze(self, *patterns: str) -> None:
        """Keep parts as they are in training, such as ``model.freeze("stem", "stages.0")``.

        Args:
            patterns: see :func:`common.layers.freezing.freeze`; call this before an optimizer is built.

        Raises:
            ValueError: a pattern matches nothing, or freezes only one of the weight and the bias of a BatchNorm.
        """
        freeze(self, patterns)

    def fuse(self) -> None:
        """Make the model cheaper for inference, equal to 1e-5; see :func:`common.fuse.fuse`."""
        fuse(self)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters without weight decay: biases, norms and position tables [A: Swin]."""
        return {name for name, value in self.named_parameters() if value.ndim <= 1 or name.endswith(".table")}

    @property
    def num_layers(self) -> int:
        """Number of distinct values of :meth:`layer_id`: the patch embedding, every block, and the head."""
        return sum(self.depths) + 2

    def layer_id(self, parameter_name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay.

        0 is the patch embedding, 1 to ``sum(depths)`` are the blocks, ``sum(depths) + 1`` is the final norm and the
        head. The patch merging between two stages counts with the block after it.

        Raises:
            ValueError: the model has no such parameter.
        """
        parts = parameter_name.split(".")
        parameter: Any = self
        for part in parts:
            parameter = getattr(parameter, part, None)
        if not isinstance(parameter, Tensor):
            raise ValueError(f"{parameter_name!r} is not a parameter of this model")
        if parts[0] != "stages":
            return self.num_layers - 1
        blocks_before = sum(self.depths[: int(parts[1])])
        if parts[2] != "blocks":
            return blocks_before + 1 if blocks_before else 0
        return blocks_before + 1 + int(parts[3])


class PaleFeatures(PaleTransformer):
    """The stages of :class:`PaleTransformer`, under the same names, with normalized maps as outputs.

    It has no classifier and no final norm, but ``out_norms``, a LayerNorm for each output [A: Swin's and CSWin's
    dense-task code]. It has no stages after the last output, so that every parameter is used. ``out_channels`` and
    ``out_strides`` describe the maps of all four stages, ``feature_info`` the outputs.

    Args:
        out_indices: the stages whose maps are outputs, rising, 0 to 3 or, from the end, -4 to -1.
        arguments: those of :class:`PaleTransformer`, by name, but ``num_classes``.

    Raises:
        ValueError: an argument is out of range; the message names it.
    """

    head_prefixes = ("out_norms.",)

    def __init__(self, out_indices: Sequence[int] = (0, 1, 2, 3), **arguments: Any):
        super().__init__(num_classes=0, **arguments)
        self.out_indices = places_of(out_indices, 4, "out_indices")
        built = self.out_indices[-1] + 1
        del self.norm, self.stages[built:]
        self.depths = (*self.depths[:built], *[0] * (4 - built))
        self.left_out_prefixes = tuple(f"stages.{stage}." for stage in range(built, 4))
        # A stage that is no output keeps its place, so that the norm of each stage has one name in every model.
        self.out_norms = nn.LayerList(
            [
                nn.LayerNorm(channels) if stage in self.out_indices else nn.Identity()
                for stage, channels in enumerate(self.out_channels)
            ]
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :meth:`output_maps`."""
        return self.output_maps(images)

    def output_maps(self, images: Tensor) -> list[Tensor]:
        """Map images ``[B, C, H, W]``, H and W from 32 up, to the normalized NCHW maps of ``out_indices``.

        Returns:
            Maps as ``feature_info`` describes them; a side that a stride does not divide is rounded up.
        """
        maps = self._stage_outputs(images)
        return [self.out_norms[stage](maps[stage]).transpose([0, 3, 1, 2]) for stage in self.out_indices]

    def head_outputs(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Refuse: there is no head.

        Raises:
            ValueError: always.
        """
        raise ValueError("a model with features_only has no head; build it without features_only to get logits")

    def reset_head(self, num_classes: int) -> None:
        """Refuse: the head belongs to the model around the backbone.

        Raises:
            ValueError: ``num_classes`` is not 0.
        """
        if num_classes:
            raise ValueError(f"num_classes is {num_classes}; a backbone of dense models has no classifier")
        super().reset_head(num_classes)


_Model = TypeVar("_Model", bound=PaleTransformer)


def build_variant(kind: type[_Model], name: str, **overrides: Any) -> _Model:
    """Build a variant with random weights.

    Args:
        kind: :class:`PaleTransformer` or a class with the same arguments.
        name: one of :func:`list_models`.
        overrides: arguments of ``kind`` that replace the variant's.

    Raises:
        ValueError: unknown name or argument, or a value out of range.
    """
    try:
        return kind(**variant_settings(name, **overrides))
    except TypeError as error:
        raise ValueError(f"impossible override for {name}: {error}") from error


def create_model(
    name: str,
    num_classes: int | None = None,
    pretrained: str | Path | bool = False,
    features_only: bool = False,
    in_chans: int | None = None,
    **overrides: Any,
) -> PaleTransformer:
    """Build a variant.

    Args:
        name: one of :func:`list_models`.
        num_classes: outputs of the head; 0 for no head. ``None`` takes the number of the pretrained head or,
            without ``pretrained``, 1000.
        pretrained: weights to load: the tag of released ones (``common.checkpoints.released.list_weights``), a file, or
            ``https://...#sha256=...``; ``True`` for ImageNet weights. A pretrained head for another number of classes
            is not loaded, and the first convolution is adapted to ``in_channels``; the printed report says so.
        features_only: build a :class:`PaleFeatures`, a backbone that returns the maps of ``out_indices``.
        in_chans: ``in_channels``, as timm calls it.
        overrides: arguments of the class, :class:`PaleTransformer` or :class:`PaleFeatures`, that replace the
            variant's.

    Raises:
        ValueError: unknown name or argument, a value out of range, or no number of classes for weights without a head.
        common.errors.UserError: the weights do not exist, are unsafe or damaged, or do not fit.
    """
    variant_settings(name)  # an unknown name is an error before its weights are looked for
    if in_chans is not None and overrides.setdefault("in_channels", in_chans) != in_chans:
        raise ValueError(f"in_chans is {in_chans} and in_channels {overrides['in_channels']}; give one of them")
    if features_only and num_classes:
        raise ValueError(f"num_classes is {num_classes}; a model with features_only has no classifier")
    checkpoint = read_checkpoint(pretrained, name) if pretrained else None
    if features_only:
        model: PaleTransformer = build_variant(PaleFeatures, name, **overrides)
    else:
        if num_classes is None:
            num_classes = checkpoint.num_classes if checkpoint else 1000
        if num_classes is None:
            raise ValueError(f"{pretrained} has no classifier; give num_classes, the outputs of a new one, or 0")
        model = build_variant(PaleTransformer, name, num_classes=num_classes, **overrides)
    if checkpoint:
        load_pretrained(model, checkpoint)
        if isinstance(chosen := overrides.get("image_size"), int):
            model.preprocessing = replace(model.preprocessing, image_size=chosen)
    return model


def _init_weights(layer: nn.Layer) -> None:
    """Truncated normal 0.02 for linear layers and convolutions, zero biases; norms keep ones and zeros [A: Swin]."""
    if isinstance(layer, (nn.Linear, nn.Conv2D)):
        nn.initializer.TruncatedNormal(std=0.02)(layer.weight)
        if layer.bias is not None:
            nn.initializer.Constant(0.0)(layer.bias)


def _sizes_of_stages(pale_size: int | Sequence[Any]) -> list[int | list[int]]:
    """The pale size of each of the four stages, as plain values; (7, 7) becomes 7."""
    sizes = pale_size if isinstance(pale_size, Sequence) and len(pale_size) == 4 else [pale_size] * 4
    plain: list[int | list[int]] = [list(size) if isinstance(size, Sequence) else size for size in sizes]
    return [size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size for size in plain]


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        _require_number(name, value)
        if value <= 0:
            raise ValueError(f"{name} is {value}; it must be positive")


def _require_number(name: str, value: Any) -> None:
    """Refuse what a yaml file easily has in place of a number, such as ``"3"``."""
    if not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}; it must be a number")
