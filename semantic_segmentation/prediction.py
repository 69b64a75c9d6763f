"""The class of every pixel of single images, as pictures."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddleseg.transforms import Compose, Normalize
from PIL import Image
from yacs.config import CfgNode

from common.checkpoints.loading import Checkpoint
from common.data.channel_image import read_channels
from common.errors import UserError, one_line
from common.finite_outputs import NOT_FINITE
from common.inference.exported_model import ExportedModel
from common.inference.predictor import PicturePredictor, PredictOptions
from common.pictures.drawing import color_map, index_png, overlay, palette, present_classes, with_legend
from common.pictures.picture_folder import PictureFolder
from common.training.config import plain
from semantic_segmentation.components import build_component, build_model
from semantic_segmentation.config import image_channels
from semantic_segmentation.data_check import far_warning, farthest
from semantic_segmentation.images import as_picture, for_transforms
from semantic_segmentation.inference import InferenceSettings, Model, predict_labels, predict_large

__all__ = ["Segmenter"]

LARGE = 2048 * 2048  # pixels; the logits of larger images would take gigabytes


class Segmenter(PicturePredictor):
    """The class of every pixel, with the transforms and the inference of the validation data.

    Images of more than ``LARGE`` pixels are labeled in overlapping tiles, in the memory of one tile, if the transforms
    only normalize.
    """

    def __init__(self, model: Model, config: CfgNode, class_names: list[str]):
        super().__init__(model, config, class_names)
        self._warned = False
        self.colors, self.channels = palette(len(class_names)), image_channels(config)
        self.settings = InferenceSettings.from_test_config(plain(config.test_config))
        self.transforms = [
            build_component(item, f"val_dataset.transforms[{number}]")
            for number, item in enumerate(plain(config.val_dataset).get("transforms", []))
        ]

    @staticmethod
    def count_classes(checkpoint: Checkpoint, config: CfgNode) -> int:
        num_classes = len(checkpoint.class_names or ()) or config.model.get("num_classes")
        if not num_classes:
            raise UserError(f"{checkpoint.source} does not name its classes; give a -cfg with model.num_classes")
        return num_classes

    @staticmethod
    def build_model(config: CfgNode, num_classes: int, source: str) -> nn.Layer:
        return build_model(config, num_classes, source=source)

    @classmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Segmenter:
        exported.require("logits")

        def run(images: paddle.Tensor) -> list[paddle.Tensor]:
            outputs = exported(images=images)
            exported.check_shape(outputs, "logits", [len(images), len(exported.class_names), *images.shape[2:]])
            return [outputs["logits"]]

        return cls(run, config, exported.class_names)

    def predict_image(
        self, file: str, image: np.ndarray, pictures: PictureFolder, options: PredictOptions
    ) -> dict[str, Any]:
        """Write ``NAME_overlay.png``, ``NAME_colors.png`` and ``NAME_labels.png`` (class numbers).

        Returns:
            The paths of the three, and ``classes``: ``label``, ``name`` and ``share`` (0 to 1) of those that occur, the
            largest first.

        Raises:
            UserError: see :meth:`label`.
            CannotWrite: a picture cannot be written.
        """
        labels = self.label(image)
        present = present_classes(labels, classes=len(self.class_names))
        legend = [self.class_names[number] for number in present], self.colors[present]
        drawn = {
            "overlay": Image.fromarray(with_legend(overlay(self.picture(image), labels, self.colors), *legend)),
            "colors": Image.fromarray(with_legend(color_map(labels, self.colors), *legend)),
            "labels": index_png(labels, self.colors),
        }
        shares = [float((labels == number).mean()) for number in present]
        classes = [
            {"label": int(number), "name": self.class_names[number], "share": share}
            for number, share in zip(present, shares, strict=True)
        ]
        return {**pictures.save(file, drawn), "classes": classes}

    def label(self, image: np.ndarray) -> np.ndarray:
        """Label an image of :meth:`read`, of any size; the labels are integers [h, w].

        Raises:
            UserError: the transforms cannot take an image of this size, or the logits are not finite.
        """
        self._warn_of_units(image)
        only_normalized = all(isinstance(transform, Normalize) for transform in self.transforms)
        if image.shape[0] * image.shape[1] > LARGE and only_normalized:
            return predict_large(self._finite_logits, image, self.settings, lambda part: self._transform(part)[0])
        pixels, trans_info = self._transform(image)
        return predict_labels(self._finite_logits, pixels, self.settings, trans_info)

    def _warn_of_units(self, image: np.ndarray) -> None:
        """Warn once of floating-point pixels that are far from those of the training."""
        if image.dtype.kind == "f" and not self._warned:
            extremes = np.stack([image.min((0, 1)), image.max((0, 1))])
            for line in far_warning(farthest(self.transforms, extremes), "images"):
                print(f"warning: {line}", file=sys.stderr)
                self._warned = True

    def _finite_logits(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        logits = self.model(images)[0]
        if not logits.isfinite().all():
            raise UserError(NOT_FINITE)
        return [logits]

    def read(self, file: str) -> np.ndarray:
        """See :func:`common.data.channel_image.read_channels`."""
        return read_channels(file, self.channels)

    def picture(self, image: np.ndarray) -> np.ndarray:
        return image if image.dtype == np.uint8 and self.channels == 3 else as_picture(for_transforms(image) / 255)

    def preprocess_pixels(self, file: str, image: np.ndarray) -> tuple[paddle.Tensor, tuple[int, int]]:
        pixels, trans_info = self._transform(image)
        padded = next((sides for kind, sides in trans_info if kind == "padding"), None)
        return pixels, padded or pixels.shape[2:]

    def describe(self, result: Mapping[str, Any]) -> str:
        lines = [f"  {100 * row['share']:6.2f} %  {row['name']}" for row in result["classes"]]
        return "\n".join([f"{result['image']} -> {result['overlay']}", *lines])

    def _transform(self, image: np.ndarray) -> tuple[paddle.Tensor, list]:
        """Return float32 [1, channels, h, w] and PaddleSeg's record of resizing and padding."""
        # A copy, because a transform may change itself: after a long image, ResizeByShort makes all others smaller.
        transforms = copy.deepcopy(self.transforms)
        try:
            compose = Compose(transforms, to_rgb=False, img_channels=self.channels)
            data = compose({"img": for_transforms(image)})
        except Exception as error:
            height, width = image.shape[:2]
            raise UserError(
                f"val_dataset.transforms cannot take {width}x{height} pixels ({one_line(error)}); crop the image or "
                "change them"
            ) from error
        return paddle.to_tensor(data["img"][np.newaxis]), data["trans_info"]
