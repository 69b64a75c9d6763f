"""Which tokens of a map attend to each other: the map is cut into groups, and attention runs inside each.

The shapes of attention that the paper compares differ in nothing else. The marks are those of ``docs/paper.md``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from numbers import Integral
from typing import NamedTuple

import paddle
from paddle import Tensor

__all__ = ["ATTENTIONS", "Along", "Grouping", "attention_groupings", "map_sides", "merge", "partition", "smaller"]


class Along(NamedTuple):
    """Which tokens along one axis of the map lie in a group.

    Attributes:
        size: how many; ``None`` for all. It must divide the map's side, N times.
        interlaced: group i of N holds the positions i, i + N, i + 2N, ...; otherwise it holds neighbours.
    """

    size: int | Tensor | None
    interlaced: bool = False

    def at_most(self, side: int | Tensor) -> Along:
        """The same on a map of this side, which may be smaller than a group [A]."""
        return self if self.size is None else self._replace(size=smaller(self.size, side))


class Grouping(NamedTuple):
    """Which rows and which columns of the map a group covers; its tokens are where they cross."""

    rows: Along
    columns: Along

    def at_most(self, height: int | Tensor, width: int | Tensor) -> Grouping:
        """The same on a map of these sides, which may be smaller than a group [A]."""
        return Grouping(self.rows.at_most(height), self.columns.at_most(width))

    def sides(self, height: int | Tensor, width: int | Tensor) -> tuple[int | Tensor, int | Tensor]:
        """Rows and columns of a group on a map of these sides."""
        rows, columns = self.rows.size, self.columns.size
        return height if rows is None else rows, width if columns is None else columns


_ALL = Along(None)
ATTENTIONS = ("pale", "axial", "cross", "window", "global")


def attention_groupings(attention: str = "pale", size: int | Sequence[int] = 7) -> tuple[Grouping, ...]:
    """The groupings of an attention, one for each equal part of the channels and heads.

    Args:
        attention: ``pale``, interlaced rows for one half and interlaced columns for the other [R, U]; ``axial``, single
            rows and columns: pales of size 1; ``cross``, stripes of neighbouring rows and of neighbouring columns
            (CSWin); ``window``, rectangles (Swin, but never shifted), for all channels; ``global``, the whole map.
        size: rows and columns in a group, one number or a pair: s_r and s_c of a pale, the widths of the stripes, the
            sides of a window. ``axial`` and ``global`` have no size and leave it alone.

    Raises:
        ValueError: an argument is none of these.
    """
    sizes = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sizes) != 2 or not all(isinstance(side, Integral) and side > 0 for side in sizes):
        raise ValueError(f"pale_size is {size!r}; give one positive integer or a pair (rows, columns)")
    rows, columns = map(int, sizes)
    one = Along(1, interlaced=True)
    groupings = {
        "pale": (Grouping(Along(rows, interlaced=True), _ALL), Grouping(_ALL, Along(columns, interlaced=True))),
        "axial": (Grouping(one, _ALL), Grouping(_ALL, one)),
        "cross": (Grouping(Along(rows), _ALL), Grouping(_ALL, Along(columns))),
        "window": (Grouping(Along(rows), Along(columns)),),
        "global": (Grouping(_ALL, _ALL),),
    }
    if attention not in groupings:
        raise ValueError(f"attention is {attention!r}; choose one of {', '.join(groupings)}")
    return groupings[attention]


def partition(x: Tensor, grouping: Grouping, heads: int = 1) -> Tensor:
    """Gather the tokens of each group.

    Args:
        x: ``[B, H, W, C]`` with sides that the grouping's sizes divide.
        heads: parts of the channels, each with attention of its own.

    Returns:
        ``[B * N, heads, L, C / heads]``: the N groups of one image follow each other, row by row, and so do the L
        tokens of a group.
    """
    height, width = map_sides(x)
    rows, columns = grouping.sides(height, width)
    dim = x.shape[-1] // heads
    lengths, order, _ = _axes(grouping, height, width, heads, dim)
    return x.reshape(lengths).transpose(order).reshape([-1, heads, rows * columns, dim])


def merge(groups: Tensor, grouping: Grouping, height: int | Tensor, width: int | Tensor) -> Tensor:
    """Put the tokens back: the inverse of :func:`partition`.

    Args:
        groups: ``[B * N, heads, L, D]``.

    Returns:
        ``[B, height, width, heads * D]``.
    """
    heads, dim = groups.shape[1], groups.shape[-1]
    lengths, order, back = _axes(grouping, height, width, heads, dim)
    return groups.reshape([lengths[axis] for axis in order]).transpose(back).reshape([-1, height, width, heads * dim])


def map_sides(x: Tensor) -> list[int | Tensor]:
    """Height and width of ``[B, H, W, C]``: numbers, or scalar tensors where a traced graph leaves them open."""
    return [paddle.shape(x)[axis] if x.shape[axis] < 0 else x.shape[axis] for axis in (1, 2)]


def smaller(size: int, side: int | Tensor) -> int | Tensor:
    """The smaller of a size and a map's side, which is at least 1."""
    if isinstance(side, int):
        return min(size, side)
    return 1 if size == 1 else paddle.minimum(paddle.full([], size, side.dtype), side)


def _axes(
    grouping: Grouping, height: int | Tensor, width: int | Tensor, heads: int, dim: int
) -> tuple[list[int | Tensor], list[int], list[int]]:
    """The axes that a map is split into, the order of these that gathers groups, and the order that undoes it.

    Axes of length 1 are left out, and those that stay side by side are one: Paddle permutes few long axes quickest.
    """
    known = isinstance(height, int) and isinstance(width, int)
    return (_known_axes if known else _find_axes)(grouping, height, width, heads, dim)


def _find_axes(grouping: Grouping, height: int | Tensor, width: int | Tensor, heads: int, dim: int):
    # Each axis' place among [batch, row of groups, column of groups, heads, row, column, channel], and its length.
    split = [(0, -1)]
    for axis, (along, side) in enumerate(zip(grouping, (height, width), strict=True)):
        group = (1 + axis, 1 if along.size is None else side // along.size)
        token = (4 + axis, side if along.size is None else along.size)
        split += (token, group) if along.interlaced else (group, token)
    split += [(3, heads), (6, dim)]
    split = [(place, length) for place, length in split if not (isinstance(length, int) and length == 1)]

    places = sorted(place for place, _ in split)
    lengths, starts, previous = [], [], None
    for place, length in split:
        rank = places.index(place)
        if previous is not None and rank == previous + 1:
            if len(lengths) > 1:  # the batch stays open, whatever it takes in
                lengths[-1] = lengths[-1] * length
        else:
            lengths.append(length)
            starts.append(rank)
        previous = rank
    order = sorted(range(len(starts)), key=starts.__getitem__)
    return lengths, order, [order.index(axis) for axis in range(len(order))]


_known_axes = lru_cache(maxsize=256)(_find_axes)  # finding them takes longer than a reshape; a model has a few dozen
