"""COCO's average precision of boxes and masks, equal for any number of ranks."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.data.class_table import class_table
from common.errors import UserError
from common.runtime.distributed import gather_objects, is_main_process, sum_over_ranks

__all__ = [
    "CocoMetrics",
    "Curves",
    "Detections",
    "annotated_objects",
    "class_columns",
    "curve_columns",
    "detect",
    "evaluate",
    "per_class_table",
]

_KINDS = {"bbox": "box", "segm": "mask"}  # pycocotools' name: ours
_STATISTICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # the first six of COCOeval's


@dataclass
class Detections:
    """The objects that were detected in one image, the highest score first.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the original image, float32 [n, 4].
        labels: classes, int64 [n], from 0.
        scores: 0 to 1, float32 [n].
        masks: in COCO's run-length encoding, of the original image's size; None from a model without masks.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    masks: list[dict[str, Any]] | None


@paddle.no_grad()
def detect(model: nn.Layer, batch: Mapping[str, Any], amp: str = "") -> Detections:
    """Detect the objects of one image.

    Args:
        model: from :func:`object_detection.components.build_model`, in evaluation mode.
        batch: a batch of one: ``image`` [1, 3, h, w], ``im_shape`` and ``scale_factor`` [1, 2], as tensors.
        amp: ``"float16"``, ``"bfloat16"`` or empty.
    """
    inputs = {key: batch[key] for key in ("image", "im_shape", "scale_factor")}
    with paddle.amp.auto_cast(enable=bool(amp), dtype=amp or "float16"):
        outputs = model(inputs)
    rows = outputs["bbox"].astype("float32").numpy().reshape(-1, 6)
    height, width = np.floor(batch["im_shape"].numpy()[0] / batch["scale_factor"].numpy()[0] + 0.5)
    boxes = np.clip(rows[:, 2:], 0, np.array([width, height, width, height], np.float32))
    # PaddleDetection gives boxes without area the label -1, and an image without boxes one of score 0.
    real = (rows[:, 0] >= 0) & (rows[:, 1] > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    order = np.flatnonzero(real)[np.argsort(-rows[real, 1], kind="stable")]
    masks = [outputs["mask"][number] for number in order] if "mask" in outputs else None
    return Detections(boxes[order], rows[order, 0].astype(np.int64), rows[order, 1], masks)


def annotated_objects(coco: COCO, image_id: int, with_masks: bool) -> Detections:
    """The ground truth of an image, without crowds, as detections of score 1."""
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id], iscrowd=False))
    category_ids = coco.getCatIds()
    boxes = np.array([annotation["bbox"] for annotation in annotations], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([category_ids.index(annotation["category_id"]) for annotation in annotations], np.int64)
    masks = [coco.annToRLE(annotation) for annotation in annotations] if with_masks else None
    return Detections(boxes, labels, np.ones(len(labels), np.float32), masks)


def coco_results(detections: Detections, image_id: int, category_ids: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """Detections in the format of COCO's result files: ``bbox``, and ``segm`` if there are masks.

    Args:
        category_ids: the id of each class in the annotation file; detections of further classes are left out.
    """
    results: dict[str, list[dict[str, Any]]] = {"bbox": [], "segm": []}
    corners = detections.boxes.astype(float)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1).round(2).tolist()
    for number, label in enumerate(detections.labels.tolist()):
        if label < len(category_ids):
            score = round(float(detections.scores[number]), 5)
            row = {"image_id": image_id, "category_id": category_ids[label], "score": score}
            results["bbox"].append({**row, "bbox": boxes[number]})
            if detections.masks is not None:
                mask = detections.masks[number]
                encoded = {"size": mask["size"], "counts": mask["counts"].decode()}
                results["segm"].append({**row, "segmentation": encoded})
    return results if detections.masks is not None else {"bbox": results["bbox"]}


@dataclass
class Curves:
    """Precision-recall curves at IoU 0.5, of objects of all sizes.

    Attributes:
        recall: 0 to 100 percent, float64 [101].
        precision: the largest at this recall or a higher one, in percent, float64 [101, classes]; 0 beyond the highest
            recall of the class, NaN for a class without objects. Its mean over the recalls is AP50.
        score: the lowest score of the detections that reach the recall, float64 [101, classes]; NaN where none do.
    """

    recall: np.ndarray
    precision: np.ndarray
    score: np.ndarray


@dataclass
class CocoMetrics:
    """The outcome of an evaluation.

    Attributes:
        metrics: ``box_AP``, ``box_AP50``, ``box_AP75``, and those of small, medium and large objects (``box_APs``,
            ...), the same for ``mask_``, in percent, without those of sizes that no object has; and ``images``.
        per_class: for ``box`` and ``mask``, AP of each class in percent, float64 [classes], NaN for a class without
            objects; on rank 0 only.
        curves: for ``box`` and ``mask``; on rank 0 only.
        results: of all images in the format of COCO's result files, ``bbox`` and ``segm``; on rank 0 only.
    """

    metrics: dict[str, float]
    per_class: dict[str, np.ndarray]
    curves: dict[str, Curves]
    results: dict[str, list[dict[str, Any]]]


def evaluate(
    model: nn.Layer,
    loader: Iterable[Mapping[str, Any]],
    coco: COCO,
    with_masks: bool,
    amp: str = "",
    on_image: Callable[[int, int, Detections], None] | None = None,
) -> CocoMetrics:
    """Detect objects in this rank's images, and evaluate the detections of all ranks; a collective operation.

    Args:
        model: from :func:`object_detection.components.build_model`.
        loader: yields batches of one image, each image on one rank.
        coco: the ground truth.
        with_masks: evaluate masks as well.
        amp: see :func:`detect`.
        on_image: called with the number of the image in this rank's loader, from 0, its id, and the detections.

    Raises:
        UserError: an image could not be read, or there is no object.
    """
    category_ids, training = coco.getCatIds(), model.training
    model.eval()
    results: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS if with_masks or kind == "bbox"}
    image_ids = []
    for place, batch in enumerate(loader):
        image_id = int(batch["im_id"].numpy().ravel()[0])
        detections = detect(model, batch, amp)
        for kind, rows in coco_results(detections, image_id, category_ids).items():
            results[kind] += rows
        image_ids.append(image_id)
        if on_image:
            on_image(place, image_id, detections)
    if training:
        model.train()
    parts = gather_objects([image_ids, results])
    image_ids = sorted(image_id for ids, _ in parts for image_id in ids)
    statistics, per_class, curves = np.zeros(len(results) * len(_STATISTICS)), {}, {}
    if is_main_process():
        for number, kind in enumerate(results):
            results[kind] = sorted((row for _, rows in parts for row in rows[kind]), key=lambda row: row["image_id"])
            evaluator = _run_cocoeval(coco, results[kind], kind, image_ids)
            values = evaluator.stats[: len(_STATISTICS)]
            per_class[_KINDS[kind]], curves[_KINDS[kind]] = _class_precision(evaluator, coco.getCatIds())
            statistics[number * len(_STATISTICS) :][: len(_STATISTICS)] = values
    statistics = sum_over_ranks(statistics)  # broadcasts rank 0's
    if statistics[0] < 0:
        raise UserError("the validation data has no object; check EvalDataset")
    names = [f"{_KINDS[kind]}_{statistic}" for kind in results for statistic in _STATISTICS]
    metrics = {name: 100.0 * value for name, value in zip(names, statistics.tolist(), strict=True) if value >= 0}
    return CocoMetrics(metrics | {"images": len(image_ids)}, per_class, curves, results)


def _run_cocoeval(coco: COCO, results: list[dict[str, Any]], kind: str, image_ids: list[int]) -> COCOeval:
    """Its ``stats`` are 0 to 1, or -1 if there is no object."""
    with contextlib.redirect_stdout(io.StringIO()):
        found = coco.loadRes([dict(row) for row in results]) if results else COCO()  # loadRes changes its rows
        evaluator = COCOeval(coco, found, kind)
        evaluator.params.imgIds = image_ids
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _class_precision(evaluator: COCOeval, category_ids: Sequence[int]) -> tuple[np.ndarray, Curves]:
    """The AP of each class in percent, and the curves."""
    classes = np.searchsorted(evaluator.params.catIds, category_ids)  # COCOeval sorts the ids
    # [IoUs, recalls, classes] of all sizes, with up to 100 objects of an image.
    precision, scores = (evaluator.eval[name][:, :, classes, 0, -1] for name in ("precision", "scores"))
    precision = np.where(precision > -1, 100.0 * precision, np.nan)  # all values of a class without objects are -1
    at_half = int(np.flatnonzero(np.isclose(evaluator.params.iouThrs, 0.5))[0])
    reached = np.where(precision[at_half] > 0, scores[at_half], np.nan)
    return precision.mean(axis=(0, 1)), Curves(100.0 * evaluator.params.recThrs, precision[at_half], reached)


def curve_columns(curves: Mapping[str, Curves], names: Sequence[str]) -> dict[str, list[Any]]:
    """Columns of a table of precision-recall curves: of each class with objects, then their mean, without a class.

    Args:
        curves: of boxes and of masks, see :class:`CocoMetrics`.
        names: of the classes.
    """
    rows: list[tuple[str, str, float, float, float]] = []
    for kind, curve in curves.items():
        present = np.flatnonzero(~np.isnan(curve.precision[0]))
        for number in present:
            points = zip(curve.recall, curve.precision[:, number], curve.score[:, number], strict=True)
            rows += [(kind, names[number], *point) for point in points]
        mean = curve.precision[:, present].mean(axis=1)
        rows += [(kind, "", *point, np.nan) for point in zip(curve.recall, mean, strict=True)]
    return dict(zip(("kind", "class", "recall", "precision", "score"), map(list, zip(*rows, strict=True)), strict=True))


def class_columns(coco: COCO, per_class: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Columns of a table of the classes: the number of objects, and AP in percent.

    Args:
        coco: the ground truth.
        per_class: AP of boxes and of masks, see :class:`CocoMetrics`.
    """
    objects = [len(coco.getAnnIds(catIds=[category], iscrowd=False)) for category in coco.getCatIds()]
    return {"objects": objects, **{f"{kind} AP": values for kind, values in per_class.items()}}


def per_class_table(coco: COCO, per_class: Mapping[str, np.ndarray], title: str) -> str:
    """A text table of :func:`class_columns`, with ``-`` for a class without objects.

    Args:
        coco, per_class: see :func:`class_columns`.
        title: name of the evaluation; the first line begins with it.
    """
    names = [category["name"] for category in coco.dataset["categories"]]
    return class_table(names, class_columns(coco, per_class), f"{title}, each class, AP in percent")
