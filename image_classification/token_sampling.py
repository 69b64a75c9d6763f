"""Which cells of an image's label map each token of its transformed image lies on."""

from __future__ import annotations

import numpy as np

from image_classification.geometry import Geometry

__all__ = ["TOKEN_STRIDE", "sampling_weights"]

TOKEN_STRIDE = 32  # pixels of the image a token of the final map stands for, each way


def sampling_weights(geometry: Geometry, map_size: tuple[int, int], token_size: tuple[int, int]) -> np.ndarray:
    """The share of each map cell in each token, as RoIAlign (arXiv 1703.06870) takes it from a crop.

    A token is a cell of the grid that divides the transformed image evenly. It is sampled at n x m points of a regular
    grid within it, as many as it has map cells each way in the uncropped image, rounded up. A point that shows some of
    the original image takes the bilinear mixture of the four cells around it (the outer half of a border cell is all
    its own); any other takes nothing. The token's weights are the mean over its points.

    Args:
        geometry: how the image was transformed.
        map_size: (rows, columns) of the label map, which covers the original image evenly.
        token_size: (rows, columns) of the tokens.

    Returns:
        float32 [tokens, map cells], both row by row; a row sums to 1, or to the share of its points that show some of
        the image.
    """
    rows, columns = map_size
    token_rows, token_columns = token_size
    ys, y_points = _points(rows, token_rows)
    xs, x_points = _points(columns, token_columns)
    x, y, visible = geometry.trace(xs, ys[:, None])  # each [points, points]
    token = np.arange(token_rows).repeat(y_points)[:, None] * token_columns + np.arange(token_columns).repeat(x_points)

    weights = np.zeros(token_rows * token_columns * rows * columns)
    for row, row_share in _neighbours(y * rows - 0.5, rows):
        for column, column_share in _neighbours(x * columns - 0.5, columns):
            place = (token * rows + row) * columns + column
            share = row_share * column_share * visible
            weights += np.bincount(place.ravel(), share.ravel(), len(weights))
    weights /= y_points * x_points
    return weights.reshape(token_rows * token_columns, rows * columns).astype(np.float32)


def _points(cells: int, tokens: int) -> tuple[np.ndarray, int]:
    """Sampling points along one side of the image, as shares of it, and how many each token has."""
    points = -(-cells // tokens)
    return (np.arange(tokens * points) + 0.5) / (tokens * points), points


def _neighbours(place: np.ndarray, cells: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two cells around each place along one side, places counted from the first cell's centre, and their shares."""
    place = place.clip(0, cells - 1)
    first = np.floor(place).astype(np.int64)
    share = place - first
    return [(first, 1 - share), (np.minimum(first + 1, cells - 1), share)]
