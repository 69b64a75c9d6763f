"""The text of the log: plain ASCII in columns that stay aligned over a run, equal in all tasks."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

__all__ = ["counted", "duration", "labeled", "metric_columns", "near_path", "number", "progress_line", "title"]

_NUMBER = 6  # columns of a number that may have any size
_WORDS = 5  # columns of "train", the longest word in place of a step


def labeled(label: str, text: str) -> str:
    """``label: text``, with further lines below the text."""
    return f"{label}: " + text.replace("\n", "\n" + " " * (len(label) + 2))


def counted(count: int, one: str, many: str = "") -> str:
    """``1 class`` or ``3 classes``; ``many`` appends an s by default."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def number(value: float) -> str:
    """A number of any size in at most six columns: ``0.850``, ``123.4``, ``1.9e-3``, ``2e-10``."""
    size = abs(value)
    if value == 0 or 0.01 <= size < 10_000 or value != value:
        return f"{value:.3f}" if size < 99.9995 else f"{value:.1f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    short = f"e{int(exponent)}"
    return (mantissa if len(mantissa + short) <= _NUMBER else f"{float(mantissa):.0f}") + short


def duration(seconds: float) -> str:
    """``1:07`` or, from an hour, ``12:01:07``."""
    text = str(timedelta(seconds=round(seconds))).removeprefix("0:")
    return text.removeprefix("0") if len(text) == 5 else text


def title(metric: str) -> str:
    """What to call a metric of the log file on the terminal: ``top-1``, ``box AP50``."""
    return metric.replace("top1", "top-1").replace("top5", "top-5").replace("_", " ")


def metric_columns(metrics: Mapping[str, float], decimals: int) -> str:
    """Name and value of each metric: losses of any size, counts, and percentages with so many decimals."""
    texts = []
    for name, value in metrics.items():
        text = f"{value:{4 + decimals}.{decimals}f}"
        if name.startswith("loss"):
            text = f"{number(value):>{_NUMBER}}"
        elif isinstance(value, int):
            text = str(value)
        texts.append(f"{title(name)} {text}")
    return "  ".join(texts)


def progress_line(unit: str, reached: int, total: int, part: int | str, steps: int, text: str) -> str:
    """``[12:31:05] epoch  3/16  31/62  text``.

    Args:
        unit: of the length of the run.
        reached: the present one, from 1.
        total: the length.
        part: the step within the present unit, or a word, such as ``val``.
        steps: of a unit.
        text: the other columns.
    """
    shown = f"{part:>{len(str(steps))}}/{steps}" if isinstance(part, int) else part
    room = max(_WORDS, len(f"{steps}/{steps}"))
    return f"[{time.strftime('%H:%M:%S')}] {unit} {reached:>{len(str(total))}}/{total}  {shown:<{room}}  {text}"


def near_path(path: str | Path) -> str:
    """A path as the present folder reaches it: relative if it is below, otherwise absolute."""
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else os.path.abspath(path)  # noqa: PTH100 (keeps links)
