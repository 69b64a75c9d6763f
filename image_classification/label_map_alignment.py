"""Alignment of label maps with the tokens of a transformed image.

:class:`Geometry` records how an image was cropped, flipped and warped; :func:`sampling_weights` applies this to the
label map of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["TOKEN_STRIDE", "Geometry", "sampling_weights"]

TOKEN_STRIDE = 32  # stride of the final map: a token stands for 32x32 pixels


class Geometry:
    """Records how an image was cropped, flipped and warped. Sizes are ``(width, height)`` in pixels."""

    def __init__(self):
        # Matrices [3, 3] that map (x, y, 1) after a step to the place before it; sides of the image are 1 long.
        self._steps: list[np.ndarray] = []

    def crop(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        """Record that ``box``, (left, top, right, bottom) in an image of that size, became the whole image."""
        (left, top, right, bottom), (width, height) = box, size
        scale_x, scale_y = (right - left) / width, (bottom - top) / height
        self._steps.append(np.array([[scale_x, 0, left / width], [0, scale_y, top / height], [0, 0, 1]]))

    def flip(self) -> None:
        """Record a horizontal flip."""
        self._steps.append(np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]))

    def warp(self, matrix: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
        """Record an affine warp that keeps the size.

        Args:
            matrix: ``[2][3]``, maps (x, y, 1) of an output pixel to the place in the input. As in OpenCV, the center of
                the first pixel is (0, 0).
            size: of the image.
        """
        width, height = size
        to_pixels = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
        self._steps.append(np.linalg.inv(to_pixels) @ np.vstack([matrix, (0, 0, 1)]) @ to_pixels)

    def trace(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Map points of the transformed image to the original image.

        Args:
            x, y: coordinates from (0, 0), the top left corner, to (1, 1), the bottom right corner; their shapes are
                broadcast.

        Returns:
            x and y in the original image, float64, and whether the point shows the image: points that a warp brought in
            from outside do not, even if a crop had removed that part before.
        """
        place = np.stack(np.broadcast_arrays(x, y, 1.0))
        visible = np.ones(place.shape[1:], bool)
        for step in reversed(self._steps):
            place = np.tensordot(step, place, 1)
            visible &= ((place[:2] >= 0) & (place[:2] <= 1)).all(0)
        return place[0], place[1], visible


def sampling_weights(geometry: Geometry, map_size: tuple[int, int], token_size: tuple[int, int]) -> np.ndarray:
    """Compute the weight of each map cell in each token, as RoIAlign (arXiv 1703.06870) does for a crop.

    The tokens divide the transformed image evenly. Each is sampled at a regular grid of points, with as many points in
    each direction as map cells lie in a token of the untransformed image, rounded up. A point that shows the image
    takes the bilinear interpolation of the cells around it; other points take nothing. A token is the mean over its
    points.

    Args:
        geometry: of the transform.
        map_size: (rows, columns) of the label map, which covers the original image evenly.
        token_size: (rows, columns) of the tokens.

    Returns:
        float32 [tokens, map cells], both in row-major order; a row sums to the share of its points that show the image.
    """
    rows, columns = map_size
    token_rows, token_columns = token_size
    ys, y_points = _points(rows, token_rows)
    xs, x_points = _points(columns, token_columns)
    x, y, visible = geometry.trace(xs, ys[:, None])  # each [points, points]
    token = np.arange(token_rows).repeat(y_points)[:, None] * token_columns + np.arange(token_columns).repeat(x_points)

    weights = np.zeros(token_rows * token_columns * rows * columns)
    for row, row_share in _neighbors(y * rows - 0.5, rows):
        for column, column_share in _neighbors(x * columns - 0.5, columns):
            place = (token * rows + row) * columns + column
            share = row_share * column_share * visible
            weights += np.bincount(place.ravel(), share.ravel(), len(weights))
    weights /= y_points * x_points
    return weights.reshape(token_rows * token_columns, rows * columns).astype(np.float32)


def _points(cells: int, tokens: int) -> tuple[np.ndarray, int]:
    """Sampling points along an axis, from 0 to 1, and their number per token."""
    points = -(-cells // tokens)
    return (np.arange(tokens * points) + 0.5) / (tokens * points), points


def _neighbors(place: np.ndarray, cells: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two cells around each place along an axis, where cell 0 has its center at 0, and their bilinear weights."""
    place = place.clip(0, cells - 1)
    first = np.floor(place).astype(np.int64)
    share = place - first
    return [(first, 1 - share), (np.minimum(first + 1, cells - 1), share)]
