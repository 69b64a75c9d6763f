"""Draw ``docs/pale.svg``: what one token attends to in three shapes of attention of equal cost.

``python -m docs.draw_pale`` writes the file. The groups are those that the layers compute with.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle

from common.ablation import groupings

SIDE = 28  # tokens of stage 2 at 224x224
TOKEN = (9, 17)  # row and column
CELL, PANEL, TOP = 12, 400, 150  # pixels
FIRST, SECOND, BOTH, NONE, SELF = "#1f77b4", "#f0a020", "#5d4e8c", "#eceff1", "#d62728"
SHAPES = (
    ("window", 14, "window", "14 x 14 neighbors"),
    ("cross", 7, "cross", "two stripes, 7 wide"),
    ("pale", 7, "pale", "7 rows and 7 columns"),
)
LEGEND = (  # left side, color, text
    (40, FIRST, "half of the heads"),
    (378, SECOND, "the other half"),
    (662, BOTH, "all heads"),
    (884, SELF, "the token"),
)


def attended(attention: str, size: int) -> list[np.ndarray]:
    """For each part of the heads, the bool mask ``[SIDE, SIDE]`` of the tokens that ``TOKEN`` attends to."""
    index = paddle.arange(SIDE * SIDE).reshape([1, SIDE, SIDE, 1])
    masks = []
    for grouping in groupings(attention, size):
        groups = grouping.group(index, heads=1)[:, 0, :, 0].numpy()
        own = groups[(groups == np.ravel_multi_index(TOKEN, (SIDE, SIDE))).any(axis=1)]
        masks.append(np.isin(np.arange(SIDE * SIDE), own).reshape(SIDE, SIDE))
        assert masks[-1].sum() == 196  # the same cost
    return masks


def main() -> None:
    width, height = 3 * PANEL, TOP + SIDE * CELL + 140
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" rx="16" fill="white"/>',
    ]
    for number, (attention, size, title, text) in enumerate(SHAPES):
        left, middle = number * PANEL + (PANEL - SIDE * CELL) // 2, number * PANEL + PANEL // 2
        weight = "bold" if attention == "pale" else "normal"
        parts += [
            f'<text x="{middle}" y="66" font-size="48" font-weight="{weight}" text-anchor="middle">{title}</text>',
            f'<text x="{middle}" y="120" font-size="33" fill="#333" text-anchor="middle">{text}</text>',
        ]
        masks = attended(attention, size)
        first, second = masks[0], masks[-1]
        for color, tokens in (
            (NONE, ~first & ~second),
            (FIRST, first & ~second),
            (SECOND, second & ~first),
            (BOTH, first & second),
        ):
            squares = (f"M{left + CELL * x} {TOP + CELL * y}h11v11h-11z" for y, x in np.argwhere(tokens))
            parts.append(f'<path fill="{color}" d="{"".join(squares)}"/>')
        x, y = left + CELL * TOKEN[1] + CELL // 2, TOP + CELL * TOKEN[0] + CELL // 2
        parts.append(f'<circle cx="{x}" cy="{y}" r="12" fill="{SELF}" stroke="white" stroke-width="3"/>')
    for x, color, text in LEGEND:
        y = TOP + SIDE * CELL + 32
        parts += [
            f'<rect x="{x}" y="{y}" width="26" height="26" fill="{color}"/>',
            f'<text x="{x + 36}" y="{y + 24}" font-size="29">{text}</text>',
        ]
    text = "Every head attends to 196 of the 784 tokens."
    parts.append(f'<text x="{width // 2}" y="{height - 24}" font-size="33" text-anchor="middle">{text}</text></svg>')
    Path(__file__).with_name("pale.svg").write_text("\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
