"""Pictures of what a model looks at, to be read at the width of a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, Patch, Rectangle
from PIL import Image

from common.pictures.fonts import choose_font, printable
from tools.visualizing.attention_maps import TokenAttention
from tools.visualizing.gradients import ReceptiveField
from tools.visualizing.token_groups import TokenGroup

__all__ = ["draw_attention", "draw_groups", "draw_heat", "draw_receptive_fields"]

_WIDTH, _DPI = 9.0, 110  # inches, pixels an inch
# Okabe and Ito's colours.
_COLOURS = {"rows": "#0072b2", "columns": "#e69f00", "window": "#009e73", "whole map": "#cc79a7"}
_TOKEN = "#d55e00"
_HEAT = "magma"


def _new_figure(height: float, rows: int, columns: int, **options: Any) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _image_of(figure: Figure) -> Image.Image:
    figure.canvas.draw()
    return Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")


def _write(setter, text: str, **options: Any) -> None:
    """Set a text in a font that has its letters, which names of classes may need."""
    font = choose_font([text], 12)
    properties = FontProperties(fname=font.path, size=options.pop("fontsize", 9))
    setter(printable(text) if "\n" not in text else text, fontproperties=properties, **options)


def _show(axes, picture: np.ndarray, sides: tuple[int, int] | None = None) -> None:
    """An image, on grey as far as padding reaches: ``sides`` are height and width with it."""
    height, width = sides or picture.shape[:2]
    axes.set_facecolor("0.85")
    axes.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0), interpolation="nearest")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], aspect="equal")


def _tint(axes, tokens: np.ndarray, stride: int, colour: str, opacity: float = 0.6) -> None:
    """Colour the patches of some tokens, bool ``[H, W]``."""
    layer = np.zeros((*tokens.shape, 4))
    layer[tokens] = (*(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)), opacity)
    height, width = (side * stride for side in tokens.shape)
    axes.imshow(layer, extent=(0, width, height, 0), interpolation="nearest")


def _mark(axes, token: tuple[int, int], stride: int) -> None:
    """Mark a token, by a ring around it as well where it is small."""
    row, column = token
    box = {"edgecolor": "white", "facecolor": _TOKEN, "linewidth": 1.0}
    axes.add_patch(Rectangle((column * stride, row * stride), stride, stride, **box))
    radius = 0.03 * max(abs(axes.get_xlim()[1]), abs(axes.get_ylim()[0]))
    if stride < radius:
        middle = (column + 0.5) * stride, (row + 0.5) * stride
        axes.add_patch(Circle(middle, radius, fill=False, edgecolor="white", linewidth=3.0))
        axes.add_patch(Circle(middle, radius, fill=False, edgecolor=_TOKEN, linewidth=1.5))


def draw_groups(
    picture: np.ndarray,
    stages: Sequence[int],
    strides: Sequence[int],
    tokens: Sequence[tuple[int, int]],
    groups: Sequence[list[TokenGroup]],
) -> Image.Image:
    """The groups of one token, on the image, at some stages.

    Args:
        picture: RGB uint8 ``[h, w, 3]``, as the model sees it.
        stages: from 0.
        strides, tokens, groups: of each stage: pixels a token, row and column of the token, and its groups.
    """
    aspect = max((g[0].tokens.shape[0] * s) / (g[0].tokens.shape[1] * s) for g, s in zip(groups, strides, strict=True))
    figure, panels = _new_figure(_WIDTH / len(strides) * aspect + 1.05, 1, len(strides))
    names: list[str] = []
    for axes, stage, stride, token, found in zip(panels[0], stages, strides, tokens, groups, strict=True):
        height, width = found[0].tokens.shape
        _show(axes, picture, (height * stride, width * stride))
        for group in found:
            _tint(axes, group.tokens, stride, _COLOURS[group.name])
            names.append(group.name)
        _mark(axes, token, stride)
        lines = [
            f"stage {stage + 1}: {height}x{width} tokens of {stride} pixels",
            *dict.fromkeys(map(_describe, found)),
        ]
        axes.set_title("\n".join(lines), fontsize=8)
    handles = [
        Patch(color=colour, label=f"its {name}" if name != "whole map" else "all tokens")
        for name, colour in _COLOURS.items()
        if name in names
    ]
    handles.append(Patch(facecolor=_TOKEN, label="the token"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return _image_of(figure)


def _describe(group: TokenGroup) -> str:
    rows, columns = group.grouping.sides(*group.tokens.shape)
    if group.name == "whole map":
        return "all tokens"
    if group.name == "window":
        return f"a window of {rows}x{columns}"
    count, axis = (rows, 0) if group.name == "rows" else (columns, 1)
    noun = group.name if count > 1 else group.name[:-1]
    apart = f", {group.spacing(axis)} apart" if count > 1 and group.spacing(axis) > 1 else ""
    return f"{count} {noun}{apart}"


def draw_attention(
    picture: np.ndarray, stage: int, stride: int, token: tuple[int, int], blocks: dict[int, TokenAttention]
) -> Image.Image:
    """What one token attends to in one stage: a row for each block, a column for each head.

    Args:
        picture: RGB uint8 ``[h, w, 3]``, as the model sees it.
        stage: from 0.
        blocks: by number in the stage, from 0.
    """
    first = next(iter(blocks.values()))
    heads = len(first.weights)
    aspect = picture.shape[0] / picture.shape[1]
    side = _WIDTH / (heads + 1.2)
    height = len(blocks) * (side * aspect + 0.12) + 0.9
    figure, panels = _new_figure(height, len(blocks), heads + 1)
    grey = np.asarray(Image.fromarray(picture).convert("L"))
    for head, axes in enumerate(panels[0, 1:]):
        axes.set_title(f"head {head + 1}", fontsize=8)
    for line, (block, attention) in zip(panels, blocks.items(), strict=True):
        _show(line[0], picture)
        _mark(line[0], token, stride)
        line[0].set_ylabel(f"block {block + 1}", fontsize=8)
        for head, axes in enumerate(line[1:]):
            weights = attention.weights[head]
            _show(axes, np.repeat(grey[..., None], 3, axis=2))
            rows, columns = weights.shape
            axes.imshow(
                weights, cmap=_HEAT, vmin=0, extent=(0, columns * stride, rows * stride, 0), interpolation="nearest"
            )
            axes.set(xlim=(0, picture.shape[1]), ylim=(picture.shape[0], 0))
            axes.set_xlabel(f"up to {100 * np.nanmax(weights):.2g} %", fontsize=7, labelpad=1)
    lost = max(float(attention.to_padding.max()) for attention in blocks.values())
    padding = f"; up to {100 * lost:.0f} % go to padding, which is not shown" if lost > 0.005 else ""
    figure.suptitle(
        f"stage {stage + 1}: attention of one token, of {rows}x{columns}; grey: not in its group{padding}", fontsize=9
    )
    scale = figure.colorbar(
        ScalarMappable(Normalize(0, 1), _HEAT), ax=list(panels.ravel()), location="bottom", aspect=60, shrink=0.5
    )
    scale.set_ticks([0, 1], labels=["0", "the head's largest weight"], fontsize=8)
    return _image_of(figure)


def draw_heat(picture: np.ndarray, heat: np.ndarray, title: str, top: str) -> Image.Image:
    """An image beside a map over it, whose largest value is bright.

    Args:
        picture: RGB uint8 ``[h, w, 3]``.
        heat: ``[H, W]``, 0 or more, over all of the picture.
        top: what the largest value is called.
    """
    aspect = picture.shape[0] / picture.shape[1]
    figure, panels = _new_figure(_WIDTH * 0.42 * aspect + 0.9, 1, 2)
    (left, right) = panels[0]
    _show(left, picture)
    _show(right, picture)
    largest = float(heat.max())
    image = right.imshow(
        heat / largest if largest else heat,
        cmap=_HEAT,
        vmin=0,
        vmax=1,
        alpha=0.65,
        extent=(0, picture.shape[1], picture.shape[0], 0),
        interpolation="bilinear",
    )
    scale = figure.colorbar(image, ax=[right], fraction=0.05)
    scale.set_ticks([0, 1], labels=["0", top], fontsize=8)
    _write(left.set_title, "what the model sees")
    _write(right.set_title, title)
    return _image_of(figure)


def draw_receptive_fields(fields: Sequence[ReceptiveField], images: int) -> Image.Image:
    """The effective receptive field of a token of each stage, on a logarithmic scale.

    Args:
        images: how many they are the mean of.
    """
    height, width = fields[0].shares.shape
    figure, panels = _new_figure(_WIDTH / len(fields) * height / width + 1.0, 1, len(fields))
    largest = max(float(field.shares.max()) for field in fields)
    norm = LogNorm(largest * 1e-5, largest, clip=True)
    for number, (axes, field) in enumerate(zip(panels[0], fields, strict=True)):
        image = axes.imshow(field.shares, cmap=_HEAT, norm=norm, extent=(0, width, height, 0))
        radii = [field.radius(share) for share in (0.5, 0.95)]
        for radius, style in zip(radii, ("-", "--"), strict=True):
            axes.add_patch(Circle(field.centre, radius, fill=False, color="white", linestyle=style))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[0, width], yticks=[0, height])
        axes.tick_params(labelsize=7)
        axes.set_title(f"stage {number + 1}: 50 % within {radii[0]},\n95 % within {radii[1]} pixels", fontsize=8)
    scale = figure.colorbar(image, ax=list(panels[0]), location="bottom", aspect=60, shrink=0.6)
    mean = f", mean of {images} images" if images > 1 else ""
    scale.set_label(f"share of each pixel in the gradient of the middle token{mean}; circles: 50 %, 95 %", fontsize=8)
    scale.ax.tick_params(labelsize=7)
    return _image_of(figure)
