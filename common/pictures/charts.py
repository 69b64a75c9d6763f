"""Charts of evaluations: confusion matrices and precision-recall curves. They are drawn without a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .fonts import choose_font, printable

if TYPE_CHECKING:
    from matplotlib.font_manager import FontProperties

__all__ = ["draw_confusion", "draw_precision_recall"]

_DPI = 150
_MOST_CLASSES = 30  # of a confusion matrix, so that labels stay readable
_MOST_CURVES = 10  # as many as there are colors
_MOST_CHARACTERS = 25  # of a label


def draw_confusion(file: BinaryIO, matrix: np.ndarray, names: Sequence[str]) -> None:
    """Draw a confusion matrix in percent of each true class; of more than 30 classes, the 30 most often confused.

    Args:
        file: gets a PNG of 150 dpi.
        matrix: int64 [classes, classes], see :mod:`common.data.confusion`.
        names: of the classes.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # takes a second to import

    with np.errstate(invalid="ignore"):
        percent = 100.0 * matrix / matrix.sum(axis=1, keepdims=True)  # a row of NaN for a class without labels
    shown = _most_confused(matrix)
    percent, labels, count = percent[np.ix_(shown, shown)], [_label(names[number]) for number in shown], len(shown)
    font = _font(labels, 8)
    side = max(2.4, 0.3 * count)  # inches
    figure = Figure(figsize=(side, side), dpi=_DPI)
    axes = figure.add_axes((0, 0, 1, 1))  # the matrix fills the figure; saving it makes room for the labels
    axes.set_facecolor("0.93")
    # The root makes errors of a few percent visible.
    image = axes.imshow(percent, "Blues", norm=PowerNorm(0.5, 0.0, 100.0))
    for (row, column), value in np.ndenumerate(percent):
        if value > 0:
            text = f"{value:.0f}" if value >= 0.5 else "<1"
            color = "white" if value > 40 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=6.5, color=color)
    longest = max(map(len, labels))
    axes.set_xticks(range(count), labels, rotation=90 if longest > 3 else 0, fontproperties=font, parse_math=False)
    axes.set_yticks(range(count), labels, fontproperties=font, parse_math=False)
    axes.tick_params(length=2)
    axes.set_xlabel("predicted class", fontsize=9)
    axes.set_ylabel("true class", fontsize=9)
    others = f", the {count} of {len(matrix):,} classes with the most confusions" * (count < len(matrix))
    axes.set_title(f"percent of each true class{others}", fontsize=9)
    bar = figure.colorbar(image, cax=figure.add_axes((1 + 0.12 / side, 0, 0.15 / side, 1)))
    bar.set_ticks([0, 1, 5, 10, 25, 50, 100])
    bar.ax.tick_params(labelsize=7)
    figure.savefig(file, format="png", bbox_inches="tight")


def _most_confused(matrix: np.ndarray) -> np.ndarray:
    """The classes to draw, in ascending order."""
    wrong = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diag(matrix)
    return np.sort(np.argsort(-wrong, kind="stable")[:_MOST_CLASSES])


def draw_precision_recall(
    file: BinaryIO, recall: np.ndarray, precision: Mapping[str, np.ndarray], names: Sequence[str]
) -> None:
    """Draw the precision-recall curves of each class and their mean, a panel for each kind of them.

    Of more than 10 classes, the 10 with the lowest area have colors and names, and the others are gray.

    Args:
        file: gets a PNG of 150 dpi.
        recall: in percent, float64 [points].
        precision: by kind, such as ``box``: in percent, float64 [points, classes], NaN for a class without objects.
        names: of the classes.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # takes a second to import

    labels = [_label(name) for name in names]
    font = _font(labels, 7)
    figure = Figure(figsize=(5.8 * len(precision), 3.8), dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(precision), squeeze=False)[0]
    for axes, (kind, curves) in zip(panels, precision.items(), strict=True):
        area = curves.mean(axis=0)
        present = np.flatnonzero(~np.isnan(area))
        named = present[np.argsort(area[present], kind="stable")][:_MOST_CURVES]
        for number in np.setdiff1d(present, named):
            axes.plot(recall, curves[:, number], color="0.8", linewidth=0.6)
        for place, number in enumerate(np.sort(named)):
            label = f"{labels[number]}: {area[number]:.1f}"
            label = " " * label.startswith("_") + label  # matplotlib leaves those that begin with _ out of the legend
            axes.plot(recall, curves[:, number], color=colormaps["tab10"](place), linewidth=1.2, label=label)
        mean = curves[:, present].mean(axis=1)
        axes.plot(recall, mean, color="black", linewidth=2, label=f"mean: {mean.mean():.1f}")
        axes.set(xlim=(0, 100), ylim=(0, 102), xlabel="recall in %", ylabel="precision in %")
        axes.set_title(f"{kind}, IoU 0.5", fontsize=9)
        axes.grid(alpha=0.3)
        lowest = f", the {len(named)} lowest of {len(present)}" * (len(named) < len(present))
        legend = axes.legend(
            title=f"AP50{lowest}", prop=font, title_fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), frameon=False
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    figure.savefig(file, format="png")


def _label(name: str) -> str:
    name = printable(name)
    half = (_MOST_CHARACTERS - 3) // 2
    return name if len(name) <= _MOST_CHARACTERS else f"{name[:half]}...{name[-half:]}"


def _font(texts: Sequence[str], size: float) -> FontProperties:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=str(choose_font(texts, 12).path), size=size)
