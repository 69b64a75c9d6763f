"""The group of tokens that one token attends to, in each stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from common.layers.attention_shapes import Along, Grouping, partition
from common.pale_attention import PSAttention
from common.pale_transformer import PaleTransformer

__all__ = ["TokenGroup", "group_indices", "groups_of_stage", "token_at"]


@dataclass(frozen=True)
class TokenGroup:
    """A group as it lies on the map.

    Attributes:
        grouping: rows and columns that the group takes, on this map.
        tokens: bool ``[H, W]``, of the padded map.
    """

    grouping: Grouping
    tokens: np.ndarray

    @property
    def name(self) -> str:
        """What it is made of: ``rows``, ``columns``, ``window`` or ``whole map``."""
        height, width = self.tokens.shape
        rows, columns = self.grouping.sides(height, width)
        if rows == height and columns == width:
            return "whole map"
        if columns == width:
            return "rows"
        return "columns" if rows == height else "window"

    def spacing(self, axis: int) -> int:
        """From one row (axis 0) or column (axis 1) of the group to the next, in tokens; 1 for neighbours."""
        along: Along = self.grouping[axis]
        side = self.tokens.shape[axis]
        return side // along.size if along.interlaced and along.size is not None else 1

    def describe(self) -> dict[str, Any]:
        """In plain values: ``name``, ``rows`` and ``columns`` of the group, and their spacings in tokens."""
        rows, columns = self.grouping.sides(*self.tokens.shape)
        return {
            "name": self.name,
            "rows": rows,
            "columns": columns,
            "row_spacing": self.spacing(0),
            "column_spacing": self.spacing(1),
        }


def token_at(pixel: tuple[float, float], stride: int, height: int, width: int) -> tuple[int, int]:
    """Row and column of the token of a map whose patch holds a pixel (x, y) of the image."""
    x, y = pixel
    return min(int(y) // stride, height - 1), min(int(x) // stride, width - 1)


def group_indices(attention: PSAttention, part: int, height: int, width: int) -> np.ndarray:
    """Which tokens the groups of one part of the channels hold, on a map of these sides.

    Returns:
        int64 ``[N, L]``: N groups of L tokens, each token as its index in the padded map, row by row.
    """
    pad_bottom, pad_right = attention.padding(height, width)
    padded = height + pad_bottom, width + pad_right
    index = paddle.arange(padded[0] * padded[1]).reshape([1, *padded, 1])
    groups = partition(index, attention.groupings[part].at_most(height, width))
    return groups[:, 0, :, 0].numpy()


def groups_of_stage(
    backbone: PaleTransformer, stage: int, height: int, width: int, row: int, column: int
) -> list[TokenGroup]:
    """The groups of a token, each once, of all parts of the channels; in the sequential form, of all blocks.

    Args:
        stage: from 0.
        height, width: of the stage's map, without padding.
        row, column: of the token.
    """
    groups: dict[Grouping, TokenGroup] = {}
    for block in backbone.stages[stage].blocks:
        attention = block.attention
        pad_bottom, pad_right = attention.padding(height, width)
        padded_width = width + pad_right
        for part, grouping in enumerate(attention.groupings):
            grouping = grouping.at_most(height, width)
            if grouping in groups:
                continue
            indices = group_indices(attention, part, height, width)
            (own,) = np.flatnonzero((indices == row * padded_width + column).any(axis=1))
            tokens = np.zeros((height + pad_bottom, padded_width), bool)
            tokens.flat[indices[own]] = True
            groups[grouping] = TokenGroup(grouping, tokens)
    return list(groups.values())
