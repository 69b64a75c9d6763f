"""What the paper compares with its model: other shapes of attention, the sequential form, learned position encodings.

Attention within groups of tokens differs in nothing but the groups. The marks are those of ``docs/paper.md``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import paddle
from paddle import Tensor, nn

from .layers.attention import ScaledDotProductAttention
from .layers.channels_last import Linear
from .layers.learned_positions import AbsolutePositionEmbedding, RelativePositionBias
from .layers.padding import pad_to_groups
from .layers.variants import ATTENTIONS, POSITION_ENCODINGS
from .pale_attention import (
    SeparableProjection,
    as_pair,
    column_groups,
    merge_column_groups,
    merge_row_groups,
    row_groups,
)

__all__ = ["ATTENTIONS", "POSITION_ENCODINGS", "Grouping", "ShapedAttention", "groupings", "vary"]


def window_groups(x: Tensor, rows: int, columns: int, height: int, width: int, heads: int) -> Tensor:
    """Group rectangles of neighbors: ``[B, H, W, C]`` -> ``[B * N, heads, rows * columns, C / heads]``."""
    channels = x.shape[-1]
    x = x.reshape([-1, height // rows, rows, width // columns, columns, heads, channels // heads])
    return x.transpose([0, 1, 3, 5, 2, 4, 6]).reshape([-1, heads, rows * columns, channels // heads])


def merge_window_groups(groups: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """The inverse of :func:`window_groups`: ``[B * N, heads, rows * columns, D]`` -> ``[B, H, W, heads * D]``."""
    _, heads, _, dim = groups.shape
    x = groups.reshape([-1, height // rows, width // columns, heads, rows, columns, dim])
    return x.transpose([0, 1, 4, 2, 5, 3, 6]).reshape([-1, height, width, heads * dim])


class Grouping(NamedTuple):
    """Which rows and columns of the map a group covers.

    Attributes:
        rows, columns: how many; ``None`` for all.
        interlaced: the group contains every N-th row, or every N-th column, as in a pale; otherwise it holds neighbors.
    """

    rows: int | None
    columns: int | None
    interlaced: bool = False

    def fitted(self, rows: int, columns: int) -> Grouping:
        """The same with other numbers where they are not "all"."""
        return self._replace(
            rows=None if self.rows is None else rows, columns=None if self.columns is None else columns
        )

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a group on a map of these sides."""
        return height if self.rows is None else self.rows, width if self.columns is None else self.columns

    def group(self, x: Tensor, height: int, width: int, heads: int) -> Tensor:
        """``[B, H, W, C]`` -> ``[B * N, heads, L, C / heads]``, tokens of a group row by row."""
        if self.interlaced and self.rows is not None:
            return row_groups(x, self.rows, height, width, heads)
        if self.interlaced and self.columns is not None:
            return column_groups(x, self.columns, height, width, heads)
        return window_groups(x, *self.sides(height, width), height, width, heads)

    def merge(self, groups: Tensor, height: int, width: int) -> Tensor:
        """The inverse of :meth:`group`."""
        if self.interlaced and self.rows is not None:
            return merge_row_groups(groups, self.rows, height, width)
        if self.interlaced and self.columns is not None:
            return merge_column_groups(groups, self.columns, height, width)
        return merge_window_groups(groups, *self.sides(height, width), height, width)


def groupings(attention: str, size: int | Sequence[int]) -> list[Grouping]:
    """The groupings of a kind of attention, one for each equal part of the channels and heads.

    Args:
        attention: ``pale``: interlaced rows for one half, interlaced columns for the other [R, U]; ``axial``: single
            rows and columns, which are pales of size 1; ``cross``: stripes of neighboring rows and of neighboring
            columns (CSWin); ``window``: rectangles (Swin, never shifted) for all channels; ``global``: the whole map.
        size: rows and columns of a group: one number or a pair. ``axial`` and ``global`` do not use it.

    Raises:
        ValueError: an argument is none of these.
    """
    rows, columns = as_pair(size)
    kinds = {
        "pale": [Grouping(rows, None, interlaced=True), Grouping(None, columns, interlaced=True)],
        "axial": [Grouping(1, None, interlaced=True), Grouping(None, 1, interlaced=True)],
        "cross": [Grouping(rows, None), Grouping(None, columns)],
        "window": [Grouping(rows, columns)],
        "global": [Grouping(None, None)],
    }
    if attention not in kinds:
        raise ValueError(f"attention is {attention!r}; choose one of {', '.join(kinds)}")
    return kinds[attention]


class ShapedAttention(nn.Layer):
    """:class:`common.pale_attention.PSAttention` with other groups; each grouping has an equal part of the channels.

    Args:
        dim: channels C of the map.
        num_heads: heads of all groupings together.
        groupings: from :func:`groupings`, or one of them for the sequential form.
        map_size: height and width of the map in training, for a relative position bias; ``None`` for no bias.

    Raises:
        ValueError: the groupings do not share the heads evenly, or ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self, dim: int, num_heads: int, groupings: Sequence[Grouping], map_size: tuple[int, int] | None = None
    ):
        super().__init__()
        if num_heads < len(groupings) or num_heads % len(groupings):
            raise ValueError(f"num_heads is {num_heads}; it must be a positive multiple of {len(groupings)}")
        if dim % num_heads:
            raise ValueError(f"num_heads {num_heads} does not divide dim {dim}; choose a divisor of {dim}")
        self.dim, self.num_heads, self.groupings = dim, num_heads, tuple(groupings)
        # What the map's sides are padded to multiples of.
        self.multiples = (max(g.rows or 1 for g in groupings), max(g.columns or 1 for g in groupings))
        self.qkv = SeparableProjection(dim)
        self.attention = ScaledDotProductAttention()
        self.projection = Linear(dim, dim)
        self.position_biases = None
        if map_size:
            # The padded map of training, and the groups on it.
            fitted = [grouping.fitted(*map(min, self.multiples, map_size)) for grouping in groupings]
            padded = [side + -side % min(size, side) for side, size in zip(map_size, self.multiples, strict=True)]
            self.position_biases = nn.LayerList(
                [RelativePositionBias(num_heads // len(groupings), *grouping.sides(*padded)) for grouping in fitted]
            )

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """See :meth:`common.pale_attention.PSAttention.forward`."""
        height, width = x.shape[1:3] if size is None else size
        x, (rows, columns), padded = pad_to_groups(x, self.multiples, (height, width))
        parts, qkv = len(self.groupings), self.qkv(x)
        width_of_part, heads, attended = self.dim // parts, self.num_heads // parts, []
        for part, grouping in enumerate(self.groupings):
            grouping = grouping.fitted(rows, columns)
            channels = slice(part * width_of_part, (part + 1) * width_of_part)
            bias = None
            if self.position_biases is not None:
                bias = self.position_biases[part](*grouping.sides(*padded))
            groups = self.attention(*(grouping.group(t[..., channels], *padded, heads) for t in qkv), bias)
            attended.append(grouping.merge(groups, *padded))
        x = paddle.concat(attended, axis=-1)
        x = x[:, :height, :width]
        return self.projection(x)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, groupings={self.groupings}"


def vary(
    model: nn.Layer,
    attention: str,
    sizes: Sequence[Any],
    parallel: bool,
    position_encoding: str,
    image_size: int | tuple[int, int] | None,
) -> None:
    """Replace the attention and the position encoding of a newly built ``PaleTransformer``.

    Args:
        model: the model, with attention in pales.
        attention: which tokens attend to each other, see :func:`groupings`.
        sizes: size of the groups in each of the four stages.
        parallel: all groupings share the channels of every block [R]; otherwise all channels of the first block attend
            in rows, those of the second in columns, and so on.
        position_encoding: ``cpe``, a depthwise 3x3 convolution in every block [U, C]; ``absolute``, a learned vector
            for each token of the first map [A: Swin]; ``relative``, a learned bias for each head and offset within a
            group [A: Swin]; or ``none``.
        image_size: side, or height and width, of the training images in pixels, for ``absolute`` and ``relative``,
            which are interpolated for other images.

    Raises:
        ValueError: an argument is out of range.
    """
    if position_encoding not in POSITION_ENCODINGS:
        raise ValueError(f"position_encoding is {position_encoding!r}; choose one of {', '.join(POSITION_ENCODINGS)}")
    map_sizes: list[tuple[int, int]] = []
    if position_encoding in ("absolute", "relative"):
        height, width = (image_size or 0,) * 2 if isinstance(image_size, int | None) else image_size
        if min(height, width) < model.out_strides[-1]:
            raise ValueError(
                f"image_size is {image_size}; position_encoding {position_encoding!r} needs it, from 32 up"
            )
        map_sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in model.out_strides]
    blocks = [(number, block) for number, stage in enumerate(model.stages) for block in stage.blocks]
    for place, (stage, block) in enumerate(blocks):
        kinds = groupings(attention, sizes[stage])
        own = kinds if parallel else [kinds[place % len(kinds)]]
        map_size = map_sizes[stage] if position_encoding == "relative" else None
        block.attention = ShapedAttention(block.attention.dim, block.attention.num_heads, own, map_size)
        if position_encoding != "cpe":
            block.position_encoding = nn.Identity()
    if position_encoding == "absolute":
        first = blocks[0][1]
        first.position_encoding = AbsolutePositionEmbedding(first.attention.dim, *map_sizes[0])
