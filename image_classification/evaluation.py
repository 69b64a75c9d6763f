"""Top-1 and top-5 accuracy, counted over all ranks and divided once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from common.errors import UserError
from common.runtime.distributed import sum_over_ranks
from image_classification.loaders import IGNORED_LABEL, count_errors

__all__ = ["evaluate"]


@paddle.no_grad()
def evaluate(
    model: nn.Layer,
    loader: Iterable[Mapping[str, Any]],
    amp: str = "",
    on_batch: Callable[[int, Mapping[str, Any], paddle.Tensor], None] | None = None,
    classes: np.ndarray | None = None,
) -> dict[str, float]:
    """Evaluate this rank's share of the images, and sum the counts of all ranks.

    Args:
        model: ``model(images)`` returns the logits.
        loader: of ``build_eval_loader``, which gives every rank an image at least. Skipped images do not count.
        amp: ``"float16"``, ``"bfloat16"`` or empty.
        on_batch: called with the position of the batch in this rank's loader, the batch, and the logits, float32
            ``[B, classes]``.
        classes: the numbers of the classes that compete; the logits of others become -inf. None is all.

    Returns:
        ``top1`` and, with more than 5 classes, ``top5`` in percent, ``loss`` (mean cross-entropy), ``images``, and
        ``skipped`` if images were skipped. Where batches have ``valid_labels``, any of them is right, images without
        one do not count, and there is no loss.

    Raises:
        UserError: an image could not be read, or none could.
    """
    training = model.training
    model.eval()
    correct1 = correct5 = loss = paddle.zeros([], "float64")
    images = skipped = 0
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
    if training:
        model.train()
    sums = sum_over_ranks([float(correct1), float(correct5), float(loss), images, skipped])
    correct1, correct5, loss, images, skipped = sums.tolist()
    if not images:
        raise UserError(f"none of the {int(skipped)} images could be read; check DATA.DATA_PATH")
    figures = {"top1": 100.0 * correct1 / images}
    if (logits.shape[-1] if classes is None else len(classes)) > 5:  # with fewer classes it is always 100
        figures["top5"] = 100.0 * correct5 / images
    if "valid_labels" not in batch:
        figures["loss"] = loss / images
    return figures | {"images": int(images)} | ({"skipped": int(skipped)} if skipped else {})
