"""Figures of semantic segmentation out of one confusion matrix, counted over all images and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common.data.class_table import class_table
from common.errors import UserError
from common.runtime.distributed import sum_over_ranks
from semantic_segmentation.config import ABSENT_CLASSES
from semantic_segmentation.datasets import check_batch
from semantic_segmentation.inference import InferenceSettings, predict_labels

__all__ = ["class_figures", "confusion_matrix", "evaluate", "mean_figures", "per_class_table"]


def confusion_matrix(label: np.ndarray, prediction: np.ndarray, num_classes: int, ignore_index: int) -> np.ndarray:
    """Count the pixels of each pair of classes.

    Args:
        label: integers of any shape; pixels with ``ignore_index`` do not count.
        prediction: integers of the same shape, 0 to ``num_classes`` - 1.

    Returns:
        int64 [classes, classes]: the labels' class goes down, the predictions' across.

    Raises:
        UserError: the label has another size or a class that there is not.
    """
    if label.shape != prediction.shape:
        sizes = ("x".join(map(str, array.shape)) for array in (label, prediction))
        raise UserError("the label has {} pixels, its image {}; they must have the same size".format(*sizes))
    counted = label != ignore_index
    label, prediction = label[counted].astype(np.int64), prediction[counted].astype(np.int64)
    if label.size and not 0 <= label.min() <= label.max() < num_classes:
        wrong = label[(label < 0) | (label >= num_classes)][0]
        raise UserError(
            f"the label has a pixel of class {wrong}, but there are {num_classes} classes, 0 to {num_classes - 1}, and "
            f"{ignore_index} for unlabelled pixels; mend the label or the number of classes"
        )
    pairs = np.bincount(label * num_classes + prediction, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes)


def class_figures(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of each class in percent, float64 [classes]; NaN where there is nothing to divide by.

    ``IoU`` and ``Dice`` are NaN for a class in neither labels nor predictions, ``Acc`` (the share of a class's pixels
    that are recognised) for one that is not in the labels, ``share`` (of the labelled pixels) for an empty matrix.

    Args:
        matrix: counts [classes, classes] as from :func:`confusion_matrix`.
    """
    correct, labelled, predicted = np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return {
            "IoU": 100.0 * correct / (labelled + predicted - correct),
            "Acc": 100.0 * correct / labelled,
            "Dice": 200.0 * correct / (labelled + predicted),
            "share": 100.0 * labelled / labelled.sum(),
        }


def mean_figures(matrix: np.ndarray, absent_classes: str = "exclude") -> dict[str, float]:
    """``mIoU``, ``aAcc`` (pixels), ``mAcc`` (mean of the classes) and ``mDice`` in percent.

    Args:
        matrix: counts [classes, classes] as from :func:`confusion_matrix`.
        absent_classes: what a class that is NaN in :func:`class_figures` does to a mean: ``"exclude"``, nothing, as in
            mmsegmentation; ``"zero"``, it counts as 0, as in PaddleSeg's ``mean_iou``.

    Raises:
        UserError: the matrix is empty, or ``absent_classes`` something else.
    """
    if absent_classes not in ABSENT_CLASSES:
        raise UserError(f"absent_classes is {absent_classes!r}; it must be {' or '.join(ABSENT_CLASSES)}")
    if not matrix.any():
        raise UserError("no pixel of the validation labels has a class; check the labels and the ignored value")
    classes = class_figures(matrix)
    mean = np.nanmean if absent_classes == "exclude" else lambda values: np.nan_to_num(values).mean()
    return {
        "mIoU": float(mean(classes["IoU"])),
        "aAcc": float(100.0 * np.trace(matrix) / matrix.sum()),
        "mAcc": float(mean(classes["Acc"])),
        "mDice": float(mean(classes["Dice"])),
    }


def per_class_table(names: Sequence[str], matrix: np.ndarray, title: str) -> str:
    """A text table of each class's IoU, accuracy and share of the labelled pixels in percent, ``-`` where undefined.

    Args:
        title: what was evaluated; it begins the first line.
    """
    figures = class_figures(matrix)
    columns = {"IoU": figures["IoU"], "Acc": figures["Acc"], "pixels": figures["share"]}
    return class_table(names, columns, f"{title}, each class, in percent")


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
    """Evaluate on this rank's share and add up over the ranks: the result is the same for any number of them.

    Args:
        model: ``model(images)`` gives a list whose first entry is the logits at the images' size.
        loader: yields each image once over all ranks, one at a time (``datasets.collate_eval``): the tensors ``img``,
            float32 [1, 3, H, W], and ``label``, integers [1, h, w] or [1, 1, h, w]; ``trans_info`` as PaddleSeg's
            transforms note it; ``path``; and ``error``, empty or what kept the image from being read.
        settings: how an image goes through the model.
        amp: ``"float16"``, ``"bfloat16"`` or empty.
        absent_classes: see :func:`mean_figures`.
        on_image: called with the place of the image in this rank's loader, from 0, what the loader gave, its label
            [h, w] and the predicted labels [h, w].

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
        check_batch(batch)
        label = batch["label"].numpy()
        label = label.reshape(label.shape[-2:])
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
