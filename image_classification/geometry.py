"""Where the content of a transformed image was in the original one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Geometry"]


class Geometry:
    """Records how an image was cropped, flipped and warped, so that what lies over it can follow.

    Sizes are ``(width, height)`` in pixels.
    """

    def __init__(self):
        # Of each step, the matrix [3, 3] from a place behind it, (x, y, 1) in sides of the image, to the one before it.
        self._steps: list[np.ndarray] = []

    def crop(self, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
        """Note that ``box``, (left, top, right, bottom) in pixels of an image of that size, became the whole image."""
        (left, top, right, bottom), (width, height) = box, size
        scale_x, scale_y = (right - left) / width, (bottom - top) / height
        self._steps.append(np.array([[scale_x, 0, left / width], [0, scale_y, top / height], [0, 0, 1]]))

    def flip(self) -> None:
        """Note that left and right were swapped."""
        self._steps.append(np.array([[-1.0, 0, 1], [0, 1, 0], [0, 0, 1]]))

    def warp(self, matrix: Sequence[Sequence[float]], size: tuple[int, int]) -> None:
        """Note that an image was resampled without a change of its size.

        Args:
            matrix: ``[2][3]``; multiplied by (x, y, 1) of an output pixel, it gives the place in the input, in pixels
                from the centre of the first one, as OpenCV counts.
        """
        width, height = size
        to_pixels = np.array([[width, 0, -0.5], [0, height, -0.5], [0, 0, 1]])
        self._steps.append(np.linalg.inv(to_pixels) @ np.vstack([matrix, (0, 0, 1)]) @ to_pixels)

    def trace(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Follow places of the transformed image back to the original one.

        Args:
            x, y: in sides of the image: (0, 0) is the top left corner, (1, 1) the bottom right one. Of any shape that
                both can be broadcast to.

        Returns:
            x and y, float64, in sides of the original image, and whether something of it is to be seen at the place:
            what a warp brought in from outside its input is not, even if a crop before has only cut it off.
        """
        place = np.stack(np.broadcast_arrays(x, y, 1.0))
        visible = np.ones(place.shape[1:], bool)
        for step in reversed(self._steps):
            place = np.tensordot(step, place, 1)
            visible &= ((place[:2] >= 0) & (place[:2] <= 1)).all(0)
        return place[0], place[1], visible
