"""Figures of what a model looks at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, Patch
from PIL import Image

from common.pictures.fonts import choose_font, printable
from tools.helpers.visualize_attention import TokenGroup
from tools.helpers.visualize_gradients import ReceptiveField

__all__ = ["draw_attention", "draw_groups", "draw_heat", "draw_receptive_fields"]

_WIDTH, _DPI = 9.0, 110  # inches, pixels per inch
# Okabe and Ito's colors.
_COLORS = {"rows": "#0072b2", "columns": "#e69f00", "window": "#009e73", "whole map": "#cc79a7"}
_TOKEN = "#d55e00"
_HEAT = "magma"


def _new_figure(height: float, rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _as_image(figure: Figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def _show(axes: Axes, picture: np.ndarray, sides: tuple[int, int] | None = None) -> None:
    """An image, on gray up to ``sides``, height and width with padding."""
    height, width = sides or picture.shape[:2]
    axes.set_facecolor("0.85")
    axes.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")


def _overlay(axes: Axes, values: np.ndarray, stride: int, **options: Any) -> None:
    """A map of tokens over an image; the limits of the axes stay."""
    height, width = (side * stride for side in values.shape[:2])
    limits = axes.get_xlim(), axes.get_ylim()
    axes.imshow(values, extent=(0, width, height, 0), interpolation="nearest", **options)
    axes.set(xlim=limits[0], ylim=limits[1])


def _mark(axes: Axes, token: tuple[int, int], stride: int) -> None:
    """A dot at the center of a token (row, column)."""
    row, column = token
    axes.plot((column + 0.5) * stride, (row + 0.5) * stride, "o", color=_TOKEN, markeredgecolor="white", markersize=7)


def draw_groups(
    picture: np.ndarray,
    stages: Sequence[int],
    strides: Sequence[int],
    tokens: Sequence[tuple[int, int]],
    groups: Sequence[list[TokenGroup]],
) -> Image.Image:
    """The groups of one token in some stages.

    Args:
        picture: the model's input, RGB uint8 ``[h, w, 3]``.
        stages: from 0.
        strides, tokens, groups: for each stage: pixels per token, row and column of the token, its groups.
    """
    aspect = max((g[0].tokens.shape[0] * s) / (g[0].tokens.shape[1] * s) for g, s in zip(groups, strides, strict=True))
    figure, panels = _new_figure(_WIDTH / len(strides) * aspect + 1.05, 1, len(strides))
    for axes, stage, stride, token, found in zip(panels[0], stages, strides, tokens, groups, strict=True):
        height, width = found[0].tokens.shape
        _show(axes, picture, (height * stride, width * stride))
        for group in found:
            tint = np.zeros((height, width, 4))
            tint[group.tokens] = to_rgba(_COLORS[group.kind], 0.6)
            _overlay(axes, tint, stride)
        _mark(axes, token, stride)
        lines = [f"stage {stage + 1}: {height}x{width} tokens of {stride} pixels", *(g.describe() for g in found)]
        axes.set_title("\n".join(lines), fontsize=8)
        axes.set_anchor("N")
    kinds = dict.fromkeys(group.kind for found in groups for group in found)
    handles = [Patch(color=_COLORS[kind], label=f"its {kind}") for kind in kinds]
    handles.append(Patch(facecolor=_TOKEN, label="the token"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return _as_image(figure)


def draw_attention(
    picture: np.ndarray,
    stage: int,
    stride: int,
    token: tuple[int, int],
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Image.Image:
    """The attention weights of one token in one stage: a row for each block, a column for each head.

    Args:
        picture: the model's input, RGB uint8 ``[h, w, 3]``.
        stage: from 0.
        blocks: for each, see :meth:`tools.helpers.visualize_attention.BlockAttention.of_token`.
    """
    heads, rows, columns = blocks[0][0].shape
    side = _WIDTH / (heads + 1.2)
    height = len(blocks) * (side * picture.shape[0] / picture.shape[1] + 0.12) + 0.9
    figure, panels = _new_figure(height, len(blocks), heads + 1)
    gray = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    for block, (line, (weights, _)) in enumerate(zip(panels, blocks, strict=True)):
        _show(line[0], picture)
        _mark(line[0], token, stride)
        line[0].set_ylabel(f"block {block + 1}", fontsize=8)
        for head, axes in enumerate(line[1:]):
            _show(axes, gray)
            _overlay(axes, weights[head], stride, cmap=_HEAT, vmin=0)
            axes.set_xlabel(f"up to {100 * np.nanmax(weights[head]):.2g} %", fontsize=7, labelpad=1)
            if block == 0:
                axes.set_title(f"head {head + 1}", fontsize=8)
    to_padding = max(float(shares.max()) for _, shares in blocks)
    padding = f"; up to {100 * to_padding:.0f} % goes to padding, which is not shown" if to_padding > 0.005 else ""
    title = f"stage {stage + 1}: attention of one token, of {rows}x{columns}; gray: not in its group{padding}"
    figure.suptitle(title, fontsize=9)
    scale = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _HEAT), ax=list(panels.ravel()), location="bottom", aspect=60, shrink=0.5
    )
    scale.set_ticks([0, 1], labels=["0", "the head's largest weight"], fontsize=8)
    return _as_image(figure)


def draw_heat(picture: np.ndarray, heat: np.ndarray, title: str) -> Image.Image:
    """An image beside a heat map over it.

    Args:
        picture: the model's input, RGB uint8 ``[h, w, 3]``.
        heat: ``[H, W]``, 0 or more, over the whole picture.
        title: may contain a class name.
    """
    height, width = picture.shape[:2]
    figure, panels = _new_figure(_WIDTH * 0.42 * height / width + 0.9, 1, 2)
    (left, right) = panels[0]
    _show(left, picture)
    _show(right, picture)
    image = right.imshow(
        heat / (heat.max() or 1), cmap=_HEAT, vmin=0, vmax=1, alpha=0.65, extent=(0, width, height, 0),
        interpolation="bilinear",
    )  # fmt: skip
    figure.colorbar(image, ax=[right], fraction=0.05).set_ticks([0, 1], labels=["0", "largest"], fontsize=8)
    font = choose_font([title], 12)
    left.set_title("input of the model", fontsize=9)
    right.set_title(printable(title), fontproperties=FontProperties(fname=font.path, size=9))
    return _as_image(figure)


def draw_receptive_fields(fields: Sequence[ReceptiveField], images: int) -> Image.Image:
    """The effective receptive field of each stage, on a logarithmic scale.

    Args:
        images: number of images that the fields are the mean of.
    """
    height, width = fields[0].shares.shape
    figure, panels = _new_figure(_WIDTH / len(fields) * height / width + 1.0, 1, len(fields))
    largest = max(float(field.shares.max()) for field in fields)
    norm = LogNorm(largest * 1e-5, largest, clip=True)
    for number, (axes, field) in enumerate(zip(panels[0], fields, strict=True)):
        image = axes.imshow(field.shares, cmap=_HEAT, norm=norm, extent=(0, width, height, 0))
        radii = [field.radius(share) for share in (0.5, 0.95)]
        for radius, style in zip(radii, ("-", "--"), strict=True):
            axes.add_patch(Circle(field.center, radius, fill=False, color="white", linestyle=style))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[0, width], yticks=[0, height])
        axes.tick_params(labelsize=7)
        axes.set_title(f"stage {number + 1}: 50 % within {radii[0]},\n95 % within {radii[1]} pixels", fontsize=8)
    scale = figure.colorbar(image, ax=list(panels[0]), location="bottom", aspect=60, shrink=0.6)
    mean = f", mean of {images} images" if images > 1 else ""
    scale.set_label(f"share of each pixel in the gradient of the center token{mean}; circles: 50 %, 95 %", fontsize=8)
    scale.ax.tick_params(labelsize=7)
    return _as_image(figure)
