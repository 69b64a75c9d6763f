"""Prediction on images of a user: the interface of all tasks."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import Tensor, nn
from PIL import Image
from yacs.config import CfgNode

from ..checkpoints.loading import Checkpoint, load_weights
from ..data.channel_image import ARRAY_SUFFIX
from ..data.image_file import IMAGE_SUFFIXES, list_images, read_image
from ..errors import UserError, missing_hint, one_line
from ..fuse import fuse
from ..pictures.picture_folder import CannotWrite, PictureFolder

if TYPE_CHECKING:
    from .exported_model import ExportedModel

__all__ = ["PicturePredictor", "PredictOptions", "Predictor", "find_images"]

_PADDING = 127  # gray, in pictures of the model's input


def find_images(paths: Sequence[str], out: Path | None = None, others: list[str] | None = None) -> list[str]:
    """Replace each folder by the images in and below it, except those in and below the output folder ``out``.

    If a folder has no images, its ``.npy`` files are taken.

    Args:
        others: is extended by the files of folders that are not taken, because of their suffixes.

    Raises:
        UserError: a path does not exist, or a folder has no images.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            left_out: list[str] = []
            images = list_images(path, others=left_out)
            if not images:
                images, left_out = list_images(path, (ARRAY_SUFFIX,)), []
            if others is not None:
                others += left_out
            written = None if out is None else os.path.realpath(out)  # Path.resolve raises for a link to itself
            found = [file for file in images if not written or not Path(os.path.realpath(file)).is_relative_to(written)]
            if images and not found:
                raise UserError(f"all images of {path} are in the output folder {out}; give another -out")
            if not found:
                raise UserError(f"no image in {path}; supported formats: {', '.join(IMAGE_SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(str(path))
        else:
            raise UserError(f"no such image or folder: {path}{missing_hint(path)}")
    return files


@dataclass(frozen=True)
class PredictOptions:
    """The choices of the user.

    Attributes:
        top: number of classes to show per image, in classification.
        threshold: score, in 0..1, below which a detected object is left out.
        out: folder for pictures.
    """

    top: int = 5
    threshold: float = 0.5
    out: Path = Path("predictions")


class Predictor(ABC):
    """A trained model with its preprocessing and class names.

    Attributes:
        model: the model in evaluation mode, or an exported one that is called in the same way.
        config: the configuration it was trained with.
        class_names: of the model's outputs; their numbers, where the weights do not name them.
    """

    def __init__(self, model: Any, config: CfgNode, class_names: list[str]):
        self.model, self.config, self.class_names = model, config, class_names

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, config: CfgNode, fused: bool = True) -> Predictor:
        """Build the model of a configuration, load weights into it, and fuse it (:func:`common.fuse.fuse`).

        Raises:
            UserError: the weights do not fit the configuration.
        """
        num_classes = cls.count_classes(checkpoint, config)
        model = cls.build_model(config, num_classes, checkpoint.source)
        load_weights(model, checkpoint)
        if fused:
            fuse(model)
        model.eval()
        return cls(model, config, checkpoint.class_names or [str(number) for number in range(num_classes)])

    @staticmethod
    @abstractmethod
    def count_classes(checkpoint: Checkpoint, config: CfgNode) -> int:
        """Number of classes of the model.

        Raises:
            UserError: neither the weights nor the configuration have it.
        """

    @staticmethod
    @abstractmethod
    def build_model(config: CfgNode, num_classes: int, source: str) -> nn.Layer:
        """Build the model without loading weights; ``source`` names them in messages.

        Raises:
            UserError: the configuration is impossible.
        """

    @classmethod
    @abstractmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Predictor:
        """Predict with a model that ``tools/export.py`` wrote, and its exported configuration."""

    @abstractmethod
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Yield a dict of plain values for each file, in order: ``image``, and the results or ``error``."""

    @abstractmethod
    def preprocess(self, file: str) -> tuple[Tensor, np.ndarray]:
        """The model's input for an image, float32 ``[1, C, H, W]``, and the same as a picture, uint8 ``[H, W, 3]``.

        Raises:
            UserError: the file is not an image, or the transforms cannot take its size.
        """

    @abstractmethod
    def describe(self, result: Mapping[str, Any]) -> str:
        """A result of :meth:`predict` without ``error``, as text."""


class PicturePredictor(Predictor):
    """A predictor that writes pictures of each image into ``options.out`` by a :class:`PictureFolder`."""

    @paddle.no_grad()
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
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
                result = {"error": f"image {file} of {size} pixels takes too much memory; cut it into parts"}
            except Exception as error:  # weights may describe a model whose layers do not fit together
                raise UserError(
                    f"the model fails on image {file}: {one_line(error)}; check the weights (-debug shows where)"
                ) from error
            yield {"image": file, **result}

    def preprocess(self, file: str) -> tuple[Tensor, np.ndarray]:
        image = self.read(file)
        images, (height, width) = self.preprocess_pixels(file, image)
        picture = np.full((*images.shape[2:], 3), _PADDING, np.uint8)
        picture[:height, :width] = Image.fromarray(self.picture(image)).resize((width, height))
        return images, picture

    def read(self, file: str) -> np.ndarray:
        """The image of a file, by default RGB uint8 ``[h, w, 3]``; raises ``UserError``."""
        return read_image(file)

    def picture(self, image: np.ndarray) -> np.ndarray:
        """An image of :meth:`read` as RGB uint8 ``[h, w, 3]``."""
        return image

    @abstractmethod
    def preprocess_pixels(self, file: str, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
        """The model's input, float32 ``[1, C, H, W]``, and the height and width of the image in it, without padding.

        Raises:
            UserError: the transforms cannot take its size.
        """

    @abstractmethod
    def predict_image(
        self, file: str, image: np.ndarray, pictures: PictureFolder, options: PredictOptions
    ) -> dict[str, Any]:
        """Predict an image, and draw the result into ``pictures``.

        Returns:
            The result in plain values, with the paths of the pictures.

        Raises:
            UserError: this image cannot be predicted.
            CannotWrite: a picture cannot be written.
        """
