"""Where the content of a transformed image was in the original one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

__all__ = ["Geometry"]


class Geometry:
    """Records how an image was cropped, flipped and warped, so that what lies over it can follow.

    A step only notes its arguments, which costs nothing; :meth:`matrix` does the arithmetic. Sizes are
    ``(width, height)`` in pixels.
    """

    def __init__(self):
        self._steps: list[Callable[[], np.ndarray]] = []

    def crop(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        """Note that ``box``, (left, top, right, bottom) in pixels of an image of that size, became the whole image."""
        self._steps.append(functools.partial(_crop, box, size))

    def flip(self) -> None:
        """Note that left and right were swapped."""
        self._steps.append(_flip)

    def warp(self, matrix: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
        """Note that an image was resampled without a change of its size.

        Args:
            matrix: [2][3]; multiplied by (x, y, 1) of an output pixel, it gives the place in the input, in pixels from
                the centre of the first one, as OpenCV counts.
        """
        self._steps.append(functools.partial(_warp, matrix, size))

    def matrix(self) -> np.ndarray:
        """The way back from the transformed image to the original one.

        Returns:
            float64 [3, 3]; multiplied by (x, y, 1) of a place in the transformed image it gives that place in the
            original. Both are in sides of the image: (0, 0) is the top left corner, (1, 1) the bottom right one.
        """
        return functools.reduce(np.matmul, (step() for step in self._steps), np.eye(3))


def _crop(box: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    (left, top, right, bottom), (width, height) = box, size
    return np.array([[(right - left) / width, 0, left / width], [0, (bottom - top) / height, top / height], [0, 0, 1]])


def _flip() -> np.ndarray:
    return np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]])


def _warp(matrix: Sequence[Sequence[float]], size: tuple[int, int]) -> np.ndarray:
    width, height = size
    to_pixels = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
    return np.linalg.inv(to_pixels) @ np.vstack([matrix, (0, 0, 1)]) @ to_pixels
