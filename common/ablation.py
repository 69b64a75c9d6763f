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
from .layers.padding import Side, pad_to_groups
from .pale_attention import (
    SeparableProjection,
    as_pair,
    column_groups,
    merge_column_groups,
    merge_row_groups,
    row_groups,
)

__all__ = ["ATTENTIONS", "POSITION_ENCODINGS", "Grouping", "ShapedAttention", "groupings", "vary"]

ATTENTIONS = ("pale", "axial", "cross", "window", "global")
POSITION_ENCODINGS = ("cpe", "absolute", "relative", "none")


def window_groups(x: Tensor, rows: Side, columns: Side, heads: int) -> Tensor:
    """Group rectangles of neighbors: ``[B, H, W, C]`` -> ``[B * N, heads, rows * columns, C / heads]``."""
    _, height, width, channels = x.shape
    x = x.reshape([-1, height // rows, rows, width // columns, columns, heads, channels // heads])
    return x.transpose([0, 1, 3, 5, 2, 4, 6]).reshape([-1, heads, rows * columns, channels // heads])


def merge_window_groups(groups: Tensor, rows: Side, columns: Side, height: Side, width: Side) -> Tensor:
    """The inverse of :func:`window_groups`: ``[B * N, heads, rows * columns, D]`` -> ``[B, H, W, heads * D]``."""
    _, heads, _, dim = groups.shape
    x = groups.reshape([-1, height // rows, width // columns, heads, rows, columns, dim])
    return x.transpose([0, 1, 4, 2, 5, 3, 6]).reshape([-1, height, width, heads * dim])


class Grouping(NamedTuple):
    """Which rows and columns of the map a group covers.

    Attributes:
        rows, columns: how many; ``None`` for all.
        interlaced: the group holds every N-th row (or column), as in a pale; otherwise it holds neighbors.
    """

    rows: Side | None
    columns: Side | None
    interlaced: bool = False

    def fitted(self, rows: Side, columns: Side) -> Grouping:
        """The same with other numbers where they are not "all"."""
        return self._replace(
            rows=None if self.rows is None else rows, columns=None if self.columns is None else columns
        )

    def sides(self, height: Side, width: Side) -> tuple[Side, Side]:
        """Rows and columns of a group on a map of these sides."""
        return height if self.rows is None else self.rows, width if self.columns is None else self.columns

    def group(self, x: Tensor, heads: int) -> Tensor:
        """``[B, H, W, C]`` -> ``[B * N, heads, L, C / heads]``, tokens of a group row by row."""
        if self.interlaced:
            return row_groups(x, self.rows, heads) if self.columns is None else column_groups(x, self.columns, heads)
        return window_groups(x, *self.sides(*x.shape[1:3]), heads)

    def merge(self, groups: Tensor, height: Side, width: Side) -> Tensor:
        """The inverse of :meth:`group`."""
        if not self.interlaced:
            return merge_window_groups(groups, *self.sides(height, width), height, width)
        if self.columns is None:
            return merge_row_groups(groups, self.rows, height, width)
        return merge_column_groups(groups, self.columns, height, width)


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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, H, W, C]`` to the same shape, for any H and W from 1 up."""
        _, height, width, _ = x.shape
        x, rows, columns = pad_to_groups(x, *self.multiples)
        _, padded_height, padded_width, _ = x.shape
        parts, qkv = len(self.groupings), self.qkv(x)
        width_of_part, heads, attended = self.dim // parts, self.num_heads // parts, []
        for part, grouping in enumerate(self.groupings):
            grouping = grouping.fitted(rows, columns)
            channels = slice(part * width_of_part, (part + 1) * width_of_part)
            bias = None
            if self.position_biases is not None:
                bias = self.position_biases[part](*grouping.sides(padded_height, padded_width))
            groups = self.attention(*(grouping.group(t[..., channels], heads) for t in qkv), bias)
            attended.append(grouping.merge(groups, padded_height, padded_width))
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
    """Replace the attention and the position encoding of a newly built model; the arguments are the model's.

    Args:
        sizes: size of the groups in each stage.

    Raises:
        ValueError: an argument is out of range.
    """
    if position_encoding not in POSITION_ENCODINGS:
        raise ValueError(f"position_encoding is {position_encoding!r}; choose one of {', '.join(POSITION_ENCODINGS)}")
    learned = position_encoding in ("absolute", "relative")
    image_sides = (image_size, image_size) if isinstance(image_size, int) else image_size
    if learned and (image_sides is None or min(image_sides) < model.out_strides[-1]):
        raise ValueError(f"image_size is {image_size}; position_encoding {position_encoding!r} needs it, from 32 up")
    number = 0
    for stage, stride, size in zip(model.stages, model.out_strides, sizes, strict=True):
        map_size = tuple(math.ceil(side / stride) for side in image_sides) if learned else None
        for block in stage.blocks:
            kinds = groupings(attention, size)
            own = kinds if parallel else [kinds[number % len(kinds)]]
            block.attention = ShapedAttention(
                block.attention.dim,
                block.attention.num_heads,
                own,
                map_size if position_encoding == "relative" else None,
            )
            if position_encoding == "absolute" and number == 0:
                block.position_encoding = AbsolutePositionEmbedding(block.attention.dim, *map_size)
            elif position_encoding != "cpe":
                block.position_encoding = nn.Identity()
            number += 1
