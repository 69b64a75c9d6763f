"""Classes of single images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from common.checkpoint import find_weights, head_classes, load_weights, read_checkpoint
from common.errors import UserError
from common.weights import resolve_weights
from image_classification.config import CONFIG
from image_classification.datasets import IMAGE_SUFFIXES, FileDataset
from image_classification.loaders import IGNORED_LABEL, build_eval_loader
from image_classification.pale_backbone import build_model

__all__ = ["Classifier", "find_images"]


def find_images(paths: Sequence[str]) -> list[str]:
    """Replace each folder by the images in and below it, sorted by name.

    Raises:
        UserError: a path is missing, or a folder holds no image.
    """
    files = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(str(file) for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"no image in {path}; known are {', '.join(sorted(IMAGE_SUFFIXES))}")
            files += found
        elif path.is_file():
            files.append(str(path))
        else:
            raise UserError(f"no such image or folder: {path}")
    return files


class Classifier:
    """A trained model with its preprocessing and class names.

    Args:
        weights: a ``.pdparams`` or ``.safetensors`` file, an address with its hash, or the tag of released weights.
        config: the configuration it was trained with; ``None`` takes the one inside the file.

    Raises:
        UserError: the file is unreadable, does not fit, or carries no configuration and none was given.
    """

    def __init__(self, weights: str, config=None):
        state = read_checkpoint(resolve_weights(None, weights))
        arrays = find_weights(state, weights)
        if config is None:
            if not isinstance(state.get("config"), str):
                raise UserError(f"{weights} does not say how it was trained; give its -cfg")
            config = CONFIG.from_text(state["config"], weights)
        num_classes = head_classes(arrays)
        if not num_classes:
            raise UserError(f"{weights} has no classification head; give the weights of a trained classifier")
        self.config = config
        self.model = build_model(config, num_classes)
        self.class_names: list[str] | None = state.get("class_names")
        if self.class_names and len(self.class_names) != self.model.num_classes:
            raise UserError(f"{weights} names {len(self.class_names)} classes and has {self.model.num_classes}")
        load_weights(self.model, arrays, weights)
        self.model.eval()

    @paddle.no_grad()
    def predict(self, files: Sequence[str], top: int = 5) -> Iterator[dict[str, Any]]:
        """Yield for each file, in order, ``image`` and ``predictions`` (most probable first) or ``error``.

        A prediction has ``label`` (index), ``name`` (the label where the classes have no names) and ``score``, the
        softmax probability in 0..1.
        """
        dataset = FileDataset(Path(), list(files), np.zeros(len(files), np.int64), None, 1)
        files = iter(files)
        for batch in build_eval_loader(self.config, dataset):
            errors = iter(batch["errors"].splitlines())
            scores = F.softmax(self.model(batch["images"]), axis=-1)
            scores, labels = scores.topk(min(top, scores.shape[-1]), axis=-1)
            for status, row_scores, row_labels in zip(
                batch["labels"].tolist(), scores.tolist(), labels.tolist(), strict=True
            ):
                file = next(files)
                if status == IGNORED_LABEL:
                    yield {"image": file, "error": next(errors)}
                else:
                    pairs = zip(row_labels, row_scores, strict=True)
                    yield {"image": file, "predictions": [self._describe(*pair) for pair in pairs]}

    def _describe(self, label: int, score: float) -> dict[str, Any]:
        name = self.class_names[label] if self.class_names else str(label)
        return {"label": label, "name": str(name), "score": score}
