"""Classes of single images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from yacs.config import CfgNode

from common.checkpoints.loading import find_weights, head_classes, load_weights, refuse_other_attention
from common.errors import UserError
from common.inference.exported_model import ExportedModel
from common.inference.predictor import PredictOptions, Predictor
from common.pale_attention import fuse
from common.pictures.drawing import denormalize
from image_classification.datasets import FileDataset
from image_classification.loaders import IGNORED_LABEL, build_eval_loader, build_transform
from image_classification.pale_backbone import build_model

__all__ = ["Classifier"]


class Classifier(Predictor):
    """The most probable classes of each image."""

    def __init__(self, model: Callable[[paddle.Tensor], paddle.Tensor], config: CfgNode, class_names: list[str] | None):
        self.model, self.config, self.class_names = model, config, class_names

    @classmethod
    def from_weights(cls, state: Mapping[str, Any], source: str, config: CfgNode, fused: bool = True) -> Classifier:
        arrays = find_weights(state, source)
        num_classes = head_classes(arrays)
        if not num_classes:
            raise UserError(f"{source} has no classification head; give the weights of a trained classifier")
        with paddle.LazyGuard():
            model = build_model(config, num_classes)
        class_names: list[str] | None = state.get("class_names")
        if class_names and len(class_names) != num_classes:
            raise UserError(f"{source} names {len(class_names)} classes and has {num_classes}")
        load_weights(model, arrays, source)
        refuse_other_attention(model, state, source)
        fuse(model) if fused else model.eval()
        return cls(model, config, class_names)

    @classmethod
    def from_exported(cls, exported: ExportedModel, config: CfgNode) -> Classifier:
        return cls(lambda images: exported(images=images)["logits"], config, exported.class_names)

    @paddle.no_grad()
    def predict(self, files: Sequence[str], options: PredictOptions) -> Iterator[dict[str, Any]]:
        """Yield for each file, in order, ``image`` and ``predictions`` (most probable first) or ``error``.

        A prediction has ``label`` (index), ``name`` (the label where the classes have no names) and ``score``, the
        softmax probability in 0..1.
        """
        dataset = FileDataset(Path(), list(files), np.zeros(len(files), np.int64), None, 1)
        workers = 0 if len(files) <= self.config.DATA.BATCH_SIZE_EVAL else None  # one batch comes sooner without
        files = iter(files)
        for batch in build_eval_loader(self.config, dataset, workers):
            errors = iter(batch["errors"].splitlines())
            scores = F.softmax(self.model(batch["images"]), axis=-1)
            scores, labels = scores.topk(min(options.top, scores.shape[-1]), axis=-1)
            for status, row_scores, row_labels in zip(
                batch["labels"].tolist(), scores.tolist(), labels.tolist(), strict=True
            ):
                file = next(files)
                if status == IGNORED_LABEL:
                    yield {"image": file, "error": next(errors)}
                else:
                    pairs = zip(row_labels, row_scores, strict=True)
                    yield {"image": file, "predictions": [self._prediction(*pair) for pair in pairs]}

    def preprocess(self, file: str) -> tuple[paddle.Tensor, np.ndarray]:
        image = FileDataset(Path(), [file], np.zeros(1, np.int64), None, 1).load(0)
        array = build_transform(self.config, training=False)(image)
        return paddle.to_tensor(array[None]), denormalize(array, self.config.DATA.MEAN, self.config.DATA.STD)

    def describe(self, result: Mapping[str, Any]) -> str:
        lines = [f"  {100 * row['score']:6.2f} %  {row['name']}" for row in result["predictions"]]
        return "\n".join([result["image"], *lines])

    def _prediction(self, label: int, score: float) -> dict[str, Any]:
        name = self.class_names[label] if self.class_names else str(label)
        return {"label": label, "name": str(name), "score": score}
