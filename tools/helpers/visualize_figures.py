"""Figures of what a model looks at. Each function draws the pictures of one kind, by the names of their files."""

from __future__ import annotations

import io
import sys
import textwrap
from collections.abc import Sequence

import numpy as np
import paddle
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from common.finite_outputs import require_finite
from common.pictures.fonts import choose_font, printable
from tools.helpers.visualize_attention import (
    attention_rollout,
    describe_group,
    groups_of_token,
    observed_attention,
    token_at,
)
from tools.helpers.visualize_gradients import grad_cam, receptive_fields
from tools.helpers.visualize_model import Subject, class_score

__all__ = ["DRAW", "draw_receptive_fields"]

Pictures = dict[str, Image.Image]
_WIDTH, _DPI = 5.5, 180  # inches, pixels per inch: texts of 8 points can be read on a phone, too
_PANEL = 1.1  # least width in inches for "up to 3.9 %" below a panel
# Okabe and Ito's colors.
_COLORS = {"rows": "#0072b2", "columns": "#e69f00", "window": "#009e73", "whole map": "#cc79a7"}
_TOKEN = "#d55e00"
_HEAT = "magma"


def _new_figure(height: float, rows: int, columns: int, width: float = _WIDTH) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _grid(panels: int, aspect: float, extra: float) -> tuple[Figure, list[Axes]]:
    """Panels of one size, two in a row.

    Args:
        aspect: height / width of a panel.
        extra: height of the title of a row, in inches.
    """
    columns = min(panels, 2)
    rows = -(-panels // columns)
    figure, axes = _new_figure(rows * (_WIDTH / columns * aspect + extra) + 0.6, rows, columns)
    for unused in axes.ravel()[panels:]:
        unused.set_axis_off()
    return figure, list(axes.ravel()[:panels])


def _as_image(figure: Figure) -> Image.Image:
    """The figure without white margins, and with titles that are wider than their panel."""
    file = io.BytesIO()
    figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.06)
    return Image.open(file).convert("RGB")


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, extent=(0, picture.shape[1], picture.shape[0], 0))
    axes.set(xticks=[], yticks=[])


def _extent(tokens: np.ndarray, stride: int) -> tuple[int, int, int, int]:
    """Where a map of tokens ``[H, W, ...]`` lies over the image."""
    return 0, tokens.shape[1] * stride, tokens.shape[0] * stride, 0


def _mark(axes: Axes, token: tuple[int, int], stride: int) -> None:
    """A dot at the center of a token (row, column)."""
    row, column = token
    axes.plot((column + 0.5) * stride, (row + 0.5) * stride, "o", color=_TOKEN, markeredgecolor="white", markersize=7)


def draw_pale(subject: Subject) -> Pictures:
    """The groups of one token: a panel for each chosen stage."""
    strides = [subject.backbone.out_strides[stage - 1] for stage in subject.stages]
    found = []
    for stage, stride in zip(subject.stages, strides, strict=True):
        height, width = (-(-side // stride) for side in subject.picture.shape[:2])
        token = token_at(subject.pixel, stride, height, width)
        found.append((token, groups_of_token(subject.backbone, stage - 1, height, width, token)))
    # The padded sides differ from stage to stage; all panels are as large as the largest.
    bottom, right = np.max([np.multiply(groups[0].shape, s) for s, (_, groups) in zip(strides, found, strict=True)], 0)
    figure, panels = _grid(len(strides), bottom / right, 0.4)
    kinds: set[str] = set()
    for axes, stage, stride, (token, groups) in zip(panels, subject.stages, strides, found, strict=True):
        height, width = groups[0].shape
        axes.add_patch(Rectangle((0, 0), width * stride, height * stride, color="0.85", zorder=-1))  # padding
        _show(axes, subject.picture)
        axes.set(xlim=(0, right), ylim=(bottom, 0), frame_on=False)
        title = []
        for group in groups:
            kind, text = describe_group(group)
            kinds.add(kind)
            title.append(text)
            tint = group[..., None] * np.array(to_rgba(_COLORS[kind], 0.6))
            axes.imshow(tint, extent=_extent(group, stride), interpolation="nearest")
        _mark(axes, token, stride)
        axes.set_title(
            f"stage {stage}: {height}x{width} tokens of {stride}x{stride} pixels\n{'; '.join(title)}", fontsize=8
        )
    handles = [Patch(color=_COLORS[kind], label=f"its {kind}") for kind in _COLORS if kind in kinds]
    handles.append(Line2D([], [], color=_TOKEN, marker="o", markeredgecolor="white", ls="", ms=8, label="the token"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False)
    return {"pale": _as_image(figure)}


def draw_attention(subject: Subject) -> Pictures:
    """The attention weights of one token: a picture for each chosen stage."""
    with paddle.no_grad(), observed_attention(subject.model) as blocks:
        require_finite(subject.backbone.forward_features(subject.images))
    pictures = {}
    for stage in subject.stages:
        of_stage = [block for block in blocks if block.stage == stage - 1]
        stride = subject.backbone.out_strides[stage - 1]
        token = token_at(subject.pixel, stride, of_stage[0].height, of_stage[0].width)
        weights = [block.of_token(token) for block in of_stage]
        pictures[f"attention_stage{stage}"] = _draw_weights(subject.picture, stage, stride, token, weights)
    return pictures


def _draw_weights(
    picture: np.ndarray,
    stage: int,
    stride: int,
    token: tuple[int, int],
    blocks: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Image.Image:
    """A row of panels for each block, a column for each head.

    Args:
        blocks: for each, see :meth:`tools.helpers.visualize_attention.BlockAttention.of_token`.
    """
    heads, rows, columns = blocks[0][0].shape
    width = max(_WIDTH, _PANEL * (heads + 1))
    height = len(blocks) * (width / (heads + 1.2) * picture.shape[0] / picture.shape[1] + 0.14) + 0.9
    figure, panels = _new_figure(height, len(blocks), heads + 1, width)
    gray = np.asarray(Image.fromarray(picture).convert("L").convert("RGB"))
    for block, (line, (weights, _)) in enumerate(zip(panels, blocks, strict=True)):
        _show(line[0], picture)
        _mark(line[0], token, stride)
        line[0].set_ylabel(f"block {block + 1}", fontsize=8)
        for head, axes in enumerate(line[1:]):
            _show(axes, gray)
            axes.imshow(weights[head], _HEAT, vmin=0, extent=_extent(weights[head], stride), interpolation="nearest")
            axes.set_xlabel(f"up to {100 * np.nanmax(weights[head]):.2g} %", fontsize=7, labelpad=1)
            if block == 0:
                axes.set_title(f"head {head + 1}", fontsize=8)
    to_padding = max(float(shares.max()) for _, shares in blocks)
    padding = f"; up to {100 * to_padding:.0f} % goes to padding, which is not shown" if to_padding > 0.005 else ""
    title = f"stage {stage}: attention of one token, of {rows}x{columns}; gray: not in its group{padding}"
    figure.suptitle(textwrap.fill(title, 70), fontsize=9)
    label = "weight / the head's largest weight"
    _scale(figure, ScalarMappable(Normalize(0, 1), _HEAT), panels.ravel().tolist(), label)
    return _as_image(figure)


def _scale(figure: Figure, mappable: ScalarMappable, panels: list[Axes], label: str) -> None:
    """A color bar below the panels."""
    bar = figure.colorbar(mappable, ax=panels, location="bottom", aspect=40, shrink=0.7, pad=0.03)
    bar.set_label(textwrap.fill(label, 80), fontsize=8)
    bar.ax.tick_params(labelsize=8)


def draw_grad_cam(subject: Subject) -> Pictures:
    text, score = class_score(subject)
    strides = subject.backbone.out_strides
    side = max(subject.picture.shape[:2])
    # A map of one token, such as the fourth of a 32x32 digit, does not locate anything.
    stage = next((n for n in reversed(subject.stages) if side > strides[n - 1]), subject.stages[-1])
    heat = grad_cam(subject.model, lambda: score(subject.images), stage - 1)
    if not heat.any():
        advice = f"Grad-CAM of stage {stage} is 0 everywhere; choose other -stages"
        tqdm.write(printable(f"warning: {text}: {advice}"), file=sys.stderr)
        text += f". {advice}"
    return {"grad_cam": _draw_heat(subject.picture, heat, f"Grad-CAM, stage {stage}", text)}


def draw_rollout(subject: Subject) -> Pictures:
    text, score = class_score(subject)
    heat = attention_rollout(subject.model, subject.images, score)
    return {"rollout": _draw_heat(subject.picture, heat, "attention rollout", text)}


def _draw_heat(picture: np.ndarray, heat: np.ndarray, method: str, of: str) -> Image.Image:
    """An image beside a heat map over it.

    Args:
        picture: RGB uint8 ``[h, w, 3]``.
        heat: ``[H, W]``, 0 or more, over the whole picture.
        of: what the heat is of; contains a class name.
    """
    height, width = picture.shape[:2]
    figure, (panels,) = _new_figure(_WIDTH * 0.42 * height / width + 0.6, 1, 2)
    for axes in panels:
        _show(axes, picture)
    shares, extent = heat / (heat.max() or 1), (0, width, height, 0)
    panels[1].imshow(shares, _HEAT, vmin=0, vmax=1, alpha=0.65, extent=extent, interpolation="bilinear")
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _HEAT), ax=panels[1], fraction=0.05)
    bar.set_label("value / maximum", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    of = textwrap.fill(printable(of), 36)
    font = FontProperties(fname=choose_font([of], 12).path, size=9)
    panels[0].set_title("input of the model", fontproperties=font)
    panels[1].set_title(f"{method}\n{of}", fontproperties=font, parse_math=False)  # a class name may have dollars
    return _as_image(figure)


# The pictures of single images.
DRAW = {"pale": draw_pale, "attention": draw_attention, "grad_cam": draw_grad_cam, "rollout": draw_rollout}


def draw_receptive_fields(subjects: Sequence[Subject]) -> Pictures:
    """The effective receptive field of each stage, the mean over all images, on a logarithmic scale.

    Raises:
        UserError: the images have different sizes.
    """
    sizes = sorted({tuple(subject.images.shape[2:]) for subject in subjects})
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"-show receptive_field needs images of one size, not of {shown}; crop them, or give one")
    inputs = [subject.images for subject in subjects]
    fields = receptive_fields(subjects[0].model, tqdm(inputs, disable=None, leave=False))
    height, width = sizes[0]
    figure, panels = _grid(len(fields), height / width, 0.5)
    largest = max(float(field.shares.max()) for field in fields)
    norm = LogNorm(largest * 1e-5, largest, clip=True)
    for stage, (axes, field) in enumerate(zip(panels, fields, strict=True), 1):
        image = axes.imshow(field.shares, _HEAT, norm=norm, extent=(0, width, height, 0))
        radii = [field.radius(share) for share in (0.5, 0.95)]
        for radius, style in zip(radii, ("-", "--"), strict=True):
            axes.add_patch(Circle(field.center, radius, fill=False, color="white", linestyle=style))
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[0, width], yticks=[0, height])
        axes.set_xlabel("x in pixels", fontsize=8, labelpad=-8)
        axes.set_ylabel("y in pixels", fontsize=8, labelpad=-10)
        axes.label_outer()
        axes.tick_params(labelsize=8)
        axes.set_title(f"stage {stage}: 50 % within {radii[0]} pixels,\n95 % within {radii[1]} pixels", fontsize=8)
    mean = f", mean of {len(subjects)} images" if len(subjects) > 1 else ""
    label = f"share of each pixel in the gradient of the center token{mean}; circles: 50 %, 95 %"
    _scale(figure, image, panels, label)
    return {"receptive_field": _as_image(figure)}
