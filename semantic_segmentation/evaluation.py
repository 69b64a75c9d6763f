"""Metrics of semantic segmentation from one confusion matrix, counted over all images and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common.data.class_table import class_table
from common.data.confusion import class_figures, count_pairs
from common.errors import UserError
from common.runtime.distributed import sum_over_ranks
from semantic_segmentation.inference import InferenceSettings, predict_labels

__all__ = ["class_columns", "confusion_matrix", "evaluate", "mean_figures", "per_class_table"]


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    """Count the pixels of each pair of classes.

    Args:
        label: integers of any shape.
        prediction: integers of the same shape, 0 to ``num_classes`` - 1.
        num_classes: number of classes.
        ignore_index: label of pixels that are not counted.

    Returns:
        int64 [classes, classes]; rows are the labels, columns the predictions.

    Raises:
        UserError: the label has another size, or a value that is not a class.
    """
    if label.shape != prediction.shape:
        raise UserError(
            f"the label has size {label.shape}, but its image has size {prediction.shape}; they must be equal"
        )
    counted = label != ignore_index
    label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    wrong = label[(label < 0) | (label >= num_classes)]
    if wrong.size:
        raise UserError(
            f"the label has a pixel of class {wrong[0]}, but there are {num_classes} classes, and {ignore_index} is "
            "ignored; correct the label or the number of classes"
        )
    return count_pairs(label, prediction, num_classes)


def mean_figures(matrix: np.ndarray, absent_classes: str = "exclude") -> dict[str, float]:
    """Compute ``mIoU``, ``aAcc`` (of all pixels), ``mAcc`` (mean of the classes) and ``mDice`` in percent.

    Args:
        matrix: from :func:`confusion_matrix`.
        absent_classes: classes that are NaN in :func:`common.data.confusion.class_figures` are left out of a mean
            (``"exclude"``), as in mmsegmentation, or count as 0 (``"zero"``), as in PaddleSeg's ``mean_iou``.

    Raises:
        UserError: the matrix is empty.
    """
    if not matrix.any():
        raise UserError("no pixel of the validation labels has a class; check the labels and the ignored value")
    classes = class_figures(matrix)
    mean = np.nanmean if absent_classes == "exclude" else lambda values: np.nan_to_num(values).mean()
    return {
        "mIoU": float(mean(classes["IoU"])),
        "aAcc": float(100.0 * np.trace(matrix) / matrix.sum()),
        "mAcc": float(mean(classes["recall"])),
        "mDice": float(mean(classes["F1"])),
    }


def class_columns(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table of the classes: metrics and the share of the labeled pixels in percent, float64 [classes].

    Args:
        matrix: from :func:`confusion_matrix`.
    """
    figures = class_figures(matrix)
    return {
        "IoU": figures["IoU"],
        "Acc": figures["recall"],
        "precision": figures["precision"],
        "Dice": figures["F1"],
        "pixels": figures["share"],
    }


def per_class_table(names: Sequence[str], matrix: np.ndarray, title: str) -> str:
    """Format :func:`class_columns`, with ``-`` for NaN.

    Args:
        names: of the classes.
        matrix: from :func:`confusion_matrix`.
        title: what was evaluated; the first line begins with it.
    """
    return class_table(names, class_columns(matrix), f"{title}, each class, in percent")


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    loader: Iterable[Mapping[str, Any]],
    num_classes: int,
    ignore_index: int,
    settings: InferenceSettings,
    amp: str = "",
    absent_classes: str = "exclude",
    on_image: Callable[[int, Mapping[str, Any], np.ndarray, np.ndarray], None] | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """Evaluate this rank's share of the images, and sum the confusion matrices of all ranks.

    Args:
        model: ``model(images)`` returns a list whose first entry is the logits at the images' size.
        loader: batches of :func:`semantic_segmentation.datasets.collate_eval`, each image once over all ranks.
        num_classes, ignore_index: of the data.
        settings: of the inference.
        amp: ``"float16"``, ``"bfloat16"`` or empty.
        absent_classes: see :func:`mean_figures`.
        on_image: called with the position of the image in this rank's loader, the batch, the label [h, w] and the
            predicted labels [h, w].

    Returns:
        ``mIoU``, ``aAcc``, ``mAcc`` and ``mDice`` in percent and ``images``; and the confusion matrix of all images,
        int64 [classes, classes].

    Raises:
        UserError: an image could not be read, its label does not fit, or no pixel has a class.
    """

    def run(images: paddle.Tensor) -> Sequence[paddle.Tensor]:
        with paddle.amp.auto_cast(enable=bool(amp), dtype=amp or "float16"):
            return model(images)

    training = model.training
    model.eval()
    matrix, images = np.zeros((num_classes, num_classes), np.int64), 0
    for place, batch in enumerate(loader):
        label = batch["label"][0].numpy()
        prediction = predict_labels(run, batch["img"], settings, batch["trans_info"])
        try:
            matrix += confusion_matrix(label, prediction, num_classes, ignore_index)
        except UserError as error:
            raise UserError(f"{batch['path']}: {error}") from error
        images += 1
        if on_image:
            on_image(place, batch, label, prediction)
    if training:
        model.train()
    counts = sum_over_ranks(np.append(matrix, images)).astype(np.int64)
    matrix, images = counts[:-1].reshape(matrix.shape), int(counts[-1])
    return mean_figures(matrix, absent_classes) | {"images": images}, matrix
