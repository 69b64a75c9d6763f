"""Metrics of image classification, counted over all ranks and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.data.class_table import class_table, worst_table
from common.data.confusion import class_figures, count_pairs, list_confusions
from common.errors import UserError
from common.runtime.distributed import sum_over_ranks
from image_classification.calibration import BINS, bin_confidences, calibration_error
from image_classification.loaders import IGNORED_LABEL, count_errors

__all__ = ["MAX_CONFUSED", "class_columns", "evaluate", "per_class_tables"]

MAX_CONFUSED = 4096  # classes of a confusion matrix, which then takes 128 MiB
_MOST_CONFUSIONS = 10  # lines


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    loader: Iterable[Mapping[str, Any]],
    amp: str = "",
    on_batch: Callable[[int, Mapping[str, Any], paddle.Tensor], None] | None = None,
    confusion: bool = False,
    classes: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray | None]:
    """Evaluate this rank's share of the images, and sum the counts of all ranks.

    Args:
        model: ``model(images)`` returns the logits.
        loader: of ``build_eval_loader``, which gives every rank an image at least. Skipped images do not count.
        amp: ``"float16"``, ``"bfloat16"`` or empty.
        on_batch: called with the position of the batch in this rank's loader, the batch, and the logits, float32
            ``[B, classes]``.
        confusion: also count the confusion matrix.
        classes: the numbers of the classes that compete; the logits of others become -inf. None is all.

    Returns:
        ``top1`` and, with more than 5 classes, ``top5`` in percent, ``loss`` (mean cross-entropy), ``ece`` (expected
        calibration error, see :mod:`image_classification.calibration`) in percent, ``images``, and ``skipped`` if
        images were skipped; and the confusion matrix of all images, int64 [classes, classes], or None.
        Where batches have ``valid_labels``, any of them is right, images without one do not count, and there is no
        loss.

    Raises:
        UserError: an image could not be read, or none could.
    """
    training = model.training
    model.eval()
    correct1 = correct5 = loss = paddle.zeros([], "float64")
    images = skipped = 0
    bins = np.zeros([3, BINS])
    pairs: list[np.ndarray] = []
    for place, batch in enumerate(loader):
        skipped += count_errors(batch)
        labels = batch["labels"]
        with paddle.amp.auto_cast(enable=bool(amp), dtype=amp or "float16"):
            logits = model(batch["images"])
        logits = logits.astype("float32")
        if classes is not None:
            competes = paddle.to_tensor(np.isin(np.arange(logits.shape[-1]), classes))
            logits = paddle.where(competes, logits, paddle.full_like(logits, -math.inf))
        if on_batch:
            on_batch(place, batch, logits)
        valid = batch.get("valid_labels", labels.unsqueeze(-1))
        counted = (valid != IGNORED_LABEL).any(-1)
        top5 = logits.topk(min(5, logits.shape[-1]), axis=-1)[1]
        hits = (top5.unsqueeze(-1) == valid.unsqueeze(1)).any(-1)
        losses = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="none")
        correct1 = correct1 + hits[:, 0].astype("float64").sum()
        correct5 = correct5 + hits.any(-1).astype("float64").sum()
        loss = loss + losses.astype("float64").sum()
        images += int(counted.sum())
        confidences = F.softmax(logits, axis=-1).max(-1)
        bins += bin_confidences(confidences[counted].numpy(), hits[:, 0][counted].numpy())
        if confusion:
            pairs.append(paddle.stack([labels, top5[:, 0]])[:, counted].numpy())
    if training:
        model.train()
    sums = sum_over_ranks([float(correct1), float(correct5), float(loss), images, skipped, *bins.ravel()])
    (correct1, correct5, loss, images, skipped), bins = sums[:5].tolist(), sums[5:].reshape(bins.shape)
    if not images:
        raise UserError(f"none of the {int(skipped)} images could be read; check DATA.DATA_PATH")
    figures = {"top1": 100.0 * correct1 / images}
    if (logits.shape[-1] if classes is None else len(classes)) > 5:  # with fewer classes it is always 100
        figures["top5"] = 100.0 * correct5 / images
    if "valid_labels" not in batch:
        figures["loss"] = loss / images
    figures |= {"ece": calibration_error(bins), "images": int(images)}
    figures |= {"skipped": int(skipped)} if skipped else {}
    if not confusion:
        return figures, None
    matrix = count_pairs(*np.concatenate(pairs, axis=1), logits.shape[-1])
    return figures, sum_over_ranks(matrix).astype(np.int64)


def class_columns(matrix: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of a table of the classes: the number of images, int64 [classes]; metrics in percent, float64 [classes].

    Args:
        matrix: from :func:`evaluate`.
    """
    figures = class_figures(matrix)
    return {"images": matrix.sum(axis=1), **{name: figures[name] for name in ("recall", "precision", "F1")}}


def per_class_tables(names: Sequence[str], matrix: np.ndarray, title: str) -> str:
    """Format the metrics of each class in percent, and the ten most frequent confusions, if any.

    Args:
        names: of the classes.
        matrix: from :func:`evaluate`.
        title: what was evaluated; the first line of both tables begins with it.
    """
    tables = [worst_table(names, class_columns(matrix), "F1", f"{title}, each class, in percent")]
    pairs = list_confusions(matrix, correct=False)
    if pairs.count.size:
        lines = [f"{names[i]} -> {names[j]}" for i, j in zip(pairs.label, pairs.prediction, strict=True)]
        columns = {"images": pairs.count[:_MOST_CONFUSIONS], "share": pairs.share[:_MOST_CONFUSIONS]}
        title = f"{title}, largest confusions, share in percent of the true class"
        tables.append(class_table(lines[:_MOST_CONFUSIONS], columns, title, "true -> predicted"))
    return "\n".join(tables)
