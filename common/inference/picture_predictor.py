"""Predictions that are drawn: what those tasks share whose result is more than a class."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import paddle
from PIL import Image

from ..data.image_file import read_image
from ..errors import UserError
from ..pictures.picture_folder import CannotWrite, PictureFolder
from .predictor import PredictOptions, Predictor

__all__ = ["PicturePredictor"]

_PADDING = 127  # grey, in pictures of what a model sees


class PicturePredictor(Predictor):
    """A predictor that writes pictures of each image into ``options.out``.

    Existing files of the same names are replaced; input images never are, see :class:`PictureFolder`.
    """

    @paddle.no_grad()
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Yield for each file, in order, ``image``, and what :meth:`predict_image` returns or ``error``.

        Raises:
            UserError: the pictures cannot be written.
        """
        pictures = PictureFolder(options.out, files)
        for file in files:
            try:
                image = self.read(file)
            except UserError as error:
                yield {"image": file, "error": str(error)}
                continue
            try:
                result = self.predict_image(file, image, pictures, options)
            except CannotWrite:
                raise
            except UserError as error:
                result = {"error": f"image {file}: {error}"}
            except MemoryError:
                size = f"{image.shape[1]}x{image.shape[0]}"
                result = {"error": f"image {file} of {size} pixels takes too much memory; cut it in parts"}
            yield {"image": file, **result}

    def preprocess(self, file: str) -> tuple[paddle.Tensor, np.ndarray]:
        image = self.read(file)
        images, (height, width) = self.preprocess_pixels(file, image)
        picture = np.full((*images.shape[2:], 3), _PADDING, np.uint8)
        picture[:height, :width] = Image.fromarray(image).resize((width, height))
        return images, picture

    @staticmethod
    def read(file: str) -> np.ndarray:
        """The image of a file, RGB uint8 [h, w, 3].

        Raises:
            UserError: it cannot be read.
        """
        image = read_image(file)
        if image is None:
            raise UserError(f"cannot read image {file}; replace or remove it")
        return image

    @abstractmethod
    def preprocess_pixels(self, file: str, image: np.ndarray) -> tuple[paddle.Tensor, tuple[int, int]]:
        """The model's input, float32 ``[1, 3, H, W]``, and the height and width that the image takes of it.

        Args:
            file: where it comes from.
            image: RGB uint8 [h, w, 3].

        Raises:
            UserError: the transforms cannot take its size.
        """

    @abstractmethod
    def predict_image(
        self, file: str, image: np.ndarray, pictures: PictureFolder, options: PredictOptions
    ) -> dict[str, Any]:
        """Predict an image, and draw it.

        Args:
            file: where it comes from.
            image: RGB uint8 [h, w, 3].
            pictures: where the pictures go.

        Returns:
            What there is to say, in plain values, with the paths of the pictures.

        Raises:
            UserError: this image cannot be predicted.
            CannotWrite: a picture cannot be written.
        """
