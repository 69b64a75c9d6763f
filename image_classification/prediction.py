"""Classification of images of a user."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from yacs.config import CfgNode

from common.checkpoints.loading import Checkpoint
from common.errors import UserError
from common.finite_outputs import NOT_FINITE
from common.inference.exported_model import ExportedModel
from common.inference.predictor import PredictOptions, Predictor
from common.pictures.drawing import denormalize
from image_classification.dataset_types import FileDataset
from image_classification.loaders import IGNORED_LABEL, build_eval_loader
from image_classification.pale_backbone import build_model
from image_classification.transforms import EvalTransform

__all__ = ["Classifier"]


class Classifier(Predictor):
    """Finds the most probable classes of each image."""

    model: Callable[[paddle.Tensor], paddle.Tensor]

    @staticmethod
    def count_classes(checkpoint: Checkpoint, config: CfgNode) -> int:
        num_classes = checkpoint.num_classes
        if not num_classes:
            raise UserError(f"{checkpoint.source} has no classification head; give the weights of a trained classifier")
        if checkpoint.class_names and len(checkpoint.class_names) != num_classes:
            raise UserError(f"{checkpoint.source} names {len(checkpoint.class_names)} classes and has {num_classes}")
        if config.MODEL.NUM_CLASSES not in (0, num_classes):
            raise UserError(
                f"MODEL.NUM_CLASSES is {config.MODEL.NUM_CLASSES}, but {checkpoint.source} has {num_classes} classes; "
                f"set it to {num_classes}, or leave it out"
            )
        return num_classes

    @staticmethod
    def build_model(config: CfgNode, num_classes: int, source: str) -> nn.Layer:
        return build_model(config, num_classes)

    @classmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Classifier:
        exported.require("logits")

        def run(images: paddle.Tensor) -> paddle.Tensor:
            outputs = exported(images=images)
            exported.check_shape(outputs, "logits", [len(images), len(exported.class_names)])
            return outputs["logits"]

        return cls(run, config, exported.class_names)

    @paddle.no_grad()
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Yield for each file, in order, ``image`` and ``predictions`` (most probable first) or ``error``.

        A prediction has ``label`` (index), ``name`` (the index if the classes have no names) and ``score``, the softmax
        probability in 0..1.
        """
        dataset = FileDataset(Path(), list(files), np.zeros(len(files), np.int64), None, 1)
        workers = 0 if len(files) <= self.config.DATA.BATCH_SIZE_EVAL else None  # a single batch is faster without
        files = iter(files)
        for batch in build_eval_loader(self.config, dataset, workers, skip_broken=True):
            errors = iter(batch["errors"].splitlines())
            scores = F.softmax(self.model(batch["images"]), axis=-1)
            finite = scores.isfinite().all(axis=-1)
            scores, labels = scores.topk(min(options.top, scores.shape[-1]), axis=-1)
            for status, is_finite, row_scores, row_labels in zip(
                batch["labels"].tolist(), finite.tolist(), scores.tolist(), labels.tolist(), strict=True
            ):
                file = next(files)
                if status == IGNORED_LABEL:
                    yield {"image": file, "error": next(errors)}
                elif not is_finite:
                    yield {"image": file, "error": f"image {file}: {NOT_FINITE}"}
                else:
                    pairs = zip(row_labels, row_scores, strict=True)
                    yield {"image": file, "predictions": [self._prediction(*pair) for pair in pairs]}

    def preprocess(self, file: str) -> tuple[paddle.Tensor, np.ndarray]:
        image = FileDataset(Path(), [file], np.zeros(1, np.int64), None, 1).load(0)
        array = EvalTransform(self.config)(image)
        return paddle.to_tensor(array[None]), denormalize(array, self.config.DATA.MEAN, self.config.DATA.STD)

    def describe(self, result: Mapping[str, Any]) -> str:
        lines = [f"  {100 * row['score']:6.2f} %  {row['name']}" for row in result["predictions"]]
        return "\n".join([result["image"], *lines])

    def _prediction(self, label: int, score: float) -> dict[str, Any]:
        return {"label": label, "name": self.class_names[label], "score": score}
