"""Detection on images of a user, as pictures and as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn
from PIL import Image
from yacs.config import CfgNode

from common.checkpoints.loading import Checkpoint
from common.errors import UserError, one_line
from common.finite_outputs import NOT_FINITE, require_finite_outputs
from common.inference.exported_model import ExportedModel
from common.inference.predictor import PicturePredictor, PredictOptions
from common.pictures.picture_folder import PictureFolder
from common.training.config import plain
from object_detection.components import build_model, silence_loggers
from object_detection.datasets import build_transforms, collate
from object_detection.evaluation import Detections, detect
from object_detection.masks import with_rle_masks
from object_detection.pictures import draw_detections

__all__ = ["Detector"]


class Detector(PicturePredictor):
    """Finds objects with class, score, box and, if the model has them, mask; images are transformed by ``EvalReader``.

    Images are read as in PaddleDetection: gray images get three equal channels, transparency is dropped, channels of
    more than 8 bits are reduced to the upper 8, and the EXIF orientation is applied.
    """

    model: Callable[[dict[str, Any]], dict[str, Any]]

    def __init__(self, model: Any, config: CfgNode, class_names: list[str]):
        super().__init__(model, config, class_names)
        self.transforms, self.batch_transforms = build_transforms(config, "EvalReader", len(class_names))

    @staticmethod
    def count_classes(checkpoint: Checkpoint, config: CfgNode) -> int:
        num_classes = len(checkpoint.class_names or ()) or config.num_classes
        if not num_classes:
            raise UserError(f"{checkpoint.source} does not name its classes; give a -cfg with num_classes")
        return num_classes

    @staticmethod
    def build_model(config: CfgNode, num_classes: int, source: str) -> nn.Layer:
        silence_loggers()
        return build_model(config, num_classes)

    @classmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Detector:
        silence_loggers()
        exported.require("boxes")

        def run(inputs: dict[str, Any]) -> dict[str, Any]:
            outputs = exported(**inputs)
            exported.check_shape(outputs, "boxes", [None, 6])
            if "masks" in outputs:
                exported.check_shape(outputs, "masks", [len(outputs["boxes"]), None, None])
            if (outputs["boxes"][:, 0] >= len(exported.class_names)).any():
                raise UserError(f"{exported.file} detects other classes than its labels name; export the model again")
            return with_rle_masks(outputs, inputs["im_shape"], inputs["scale_factor"], detector.mask_threshold)

        detector = cls(run, config, exported.class_names)
        return detector

    @property
    def mask_threshold(self) -> float:
        """The probability above which a pixel belongs to an object."""
        return plain(self.config.get("MaskPostProcess", {})).get("binary_thresh", 0.5)

    def predict_image(
        self, file: str, image: np.ndarray, pictures: PictureFolder, options: PredictOptions
    ) -> dict[str, Any]:
        """Write ``NAME_detections.png``.

        Returns:
            ``picture`` (its path) and ``detections`` with a score of at least ``options.threshold``, highest first:
            ``label``, ``name``, ``score`` (0 to 1), ``box`` (x1, y1, x2, y2 in pixels) and, if the model has masks,
            ``segmentation`` (COCO's RLE); and ``best_score``, also if it is lower, or None without any object.

        Raises:
            UserError: the transforms cannot take an image of this size, or the outputs are not finite.
            CannotWrite: the picture cannot be written.
        """
        found = self._detect(self.inputs_of(file, image))
        shown = int((found.scores >= options.threshold).sum())  # they are sorted
        objects = found.boxes[:shown], found.labels[:shown], found.scores[:shown], found.masks and found.masks[:shown]
        picture = Image.fromarray(draw_detections(image, *objects, self.class_names))
        (path,) = pictures.save(file, {"detections": picture}).values()
        best = round(float(found.scores[0]), 6) if len(found.scores) else None
        return {"picture": path, "detections": list(self._rows(*objects)), "best_score": best}

    def _detect(self, batch: dict[str, paddle.Tensor]) -> Detections:
        with require_finite_outputs(self.model):
            found = detect(self.model, batch)
        if not np.isfinite(found.boxes).all() or not np.isfinite(found.scores).all():
            raise UserError(NOT_FINITE)
        return found

    def preprocess_pixels(self, file: str, image: np.ndarray) -> tuple[paddle.Tensor, tuple[int, int]]:
        batch = self.inputs_of(file, image)
        height, width = batch["im_shape"][0].astype("int64").tolist()
        return batch["image"], (height, width)

    def describe(self, result: Mapping[str, Any]) -> str:
        counts: dict[str, list[float]] = {}
        for row in result["detections"]:
            counts.setdefault(row["name"], []).append(row["score"])
        lines = [
            f"  {len(scores):4d}  {name}  (score {min(scores):.2f} to {max(scores):.2f})"
            for name, scores in sorted(counts.items(), key=lambda item: -len(item[1]))
        ]
        if not lines:
            best = result["best_score"]
            lines = ["     0  objects" + (f" (the best score, {best:.4f}, is below -threshold)" if best else "")]
        return "\n".join([f"{result['image']} -> {result['picture']}", *lines])

    def inputs_of(self, file: str, image: np.ndarray) -> dict[str, paddle.Tensor]:
        """The batch of an image; see :func:`object_detection.evaluation.detect`.

        Args:
            image: content of the file, [h, w, 3], for the message.

        Raises:
            UserError: the transforms cannot take an image of this size.
        """
        try:
            sample = self.transforms({"im_file": file, "im_id": np.array([0])})
        except Exception as error:
            height, width = image.shape[:2]
            raise UserError(
                f"EvalReader cannot take {width}x{height} pixels ({one_line(error)}); crop the image or change it"
            ) from error
        batch = collate([sample], self.batch_transforms)
        return {key: paddle.to_tensor(value) for key, value in batch.items() if isinstance(value, np.ndarray)}

    def _rows(
        self, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray, masks: Sequence[dict[str, Any]] | None
    ) -> Iterator[dict[str, Any]]:
        for number, label in enumerate(labels.tolist()):
            row = {
                "label": label,
                "name": self.class_names[label],
                "score": float(scores[number]),
                "box": boxes[number].tolist(),
            }
            if masks is not None:
                row["segmentation"] = {"size": list(masks[number]["size"]), "counts": masks[number]["counts"].decode()}
            yield row
