"""What predictions of all tasks have in common: which images, with which options, and what comes out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from paddle import Tensor
from yacs.config import CfgNode

from ..data.image_file import IMAGE_SUFFIXES, list_images
from ..errors import UserError

if TYPE_CHECKING:
    from .exported_model import ExportedModel

__all__ = ["PredictOptions", "Predictor", "find_images"]


def find_images(paths: Sequence[str], out: Path | None = None) -> list[str]:
    """Replace each folder by the images in and below it (:func:`common.data.image_file.list_images`).

    Args:
        paths: files and folders.
        out: folder of the output; images in and below it are left out where a folder is listed.

    Raises:
        UserError: a path does not exist, or a folder has no images.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            images = list_images(path)
            found = [file for file in images if out is None or not Path(file).resolve().is_relative_to(out.resolve())]
            if images and not found:
                raise UserError(f"all images of {path} are in the output folder {out}; give another -out")
            if not found:
                raise UserError(f"no image in {path}; known are {', '.join(IMAGE_SUFFIXES)}")
            files += found
        elif path.is_file():
            files.append(str(path))
        else:
            raise UserError(f"no such image or folder: {path}")
    return files


@dataclass(frozen=True)
class PredictOptions:
    """What a user may choose.

    Attributes:
        top: classes to show of each image, where an image has one class.
        threshold: score, in 0..1, below which a detected object is left out.
        out: folder for pictures, where the result is one.
    """

    top: int = 5
    threshold: float = 0.5
    out: Path = Path("predictions")


class Predictor(ABC):
    """A trained model with its preprocessing and class names.

    Attributes:
        model: what the task's launcher evaluates, in evaluation mode, or an exported one that is called likewise.
        config: the configuration it was trained with.
        class_names: of the model's outputs; None where they have none.
    """

    model: Any
    config: CfgNode
    class_names: list[str] | None

    @classmethod
    @abstractmethod
    def from_weights(cls, state: Mapping[str, Any], source: str, config: CfgNode, fused: bool = True) -> Predictor:
        """Build the model of a configuration, and load weights into it.

        Args:
            state: what :func:`common.checkpoints.loading.read_checkpoint` gives.
            source: where it comes from, for messages.
            fused: make its attention cheaper, see :func:`common.pale_attention.fuse`.

        Raises:
            UserError: the weights do not fit the configuration.
        """

    @classmethod
    @abstractmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Predictor:
        """Predict with a model that ``tools/export.py`` wrote.

        Args:
            config: the one that came with it.
        """

    @abstractmethod
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Yield for each file, in order, what there is to say in plain values: ``image``, and results or ``error``."""

    @abstractmethod
    def preprocess(self, file: str) -> tuple[Tensor, np.ndarray]:
        """What the model sees of an image.

        Returns:
            Its input, float32 ``[1, 3, H, W]``, and that as a picture, RGB uint8 ``[H, W, 3]``.

        Raises:
            UserError: the file is no image, or the transforms cannot take its size.
        """

    @abstractmethod
    def describe(self, result: Mapping[str, Any]) -> str:
        """A result of :meth:`predict` that is no error, as text."""
