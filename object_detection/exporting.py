"""Description of a detector for ``tools/export.py``: one image to boxes and small masks, NMS included."""

from __future__ import annotations

import numpy as np
from paddle import Tensor
from pycocotools.mask import iou
from scipy.optimize import linear_sum_assignment

from common.inference.exportable import Arrays, Exportable, Output
from common.pale_transformer import STRIDE
from common.training.config import plain
from object_detection.datasets import find_normalization
from object_detection.evaluation import detect
from object_detection.prediction import Detector
from object_detection.single_image import SingleImageDetector

__all__ = ["exportable"]

_INPUTS = ("image", "im_shape", "scale_factor")


def exportable(detector: Detector) -> Exportable:
    """An image to its objects.

    Raises:
        UserError: the architecture cannot be exported.
    """
    layer = SingleImageDetector(detector.model)
    reader = plain(detector.config.EvalReader)
    mean, std = find_normalization(detector.config, "EvalReader")
    boxes = Output("boxes", ["objects", 6], "label, score, x1, y1, x2, y2 in pixels of the original image")
    masks = Output("masks", ["objects", "side", "side"], "probabilities on a regular grid over each box")

    def reference(inputs: dict[str, Tensor]) -> Arrays:
        """The outputs of the task's own model, with masks before they are pasted into the image."""
        post_process = getattr(detector.model, "mask_post_process", None)
        try:
            if post_process is not None:
                detector.model.mask_post_process = lambda masks, *_: masks
            found = detect(detector.model, inputs)
        finally:
            if post_process is not None:
                detector.model.mask_post_process = post_process
        rows = np.concatenate([found.labels[:, None], found.scores[:, None], found.boxes], axis=1).astype(np.float32)
        if not layer.has_masks:
            return [rows]
        return [rows, np.stack([mask.numpy() for mask in found.masks]) if found.masks else np.zeros((0, 0, 0))]

    def inputs_of(file: str) -> dict[str, Tensor]:
        batch = detector.inputs_of(file, detector.read(file))
        return {name: batch[name] for name in _INPUTS}

    backbone = plain(detector.config.get("PaleTransformer", {})).get("variant", "another backbone")
    return Exportable(
        name=f"{detector.config.architecture} on {backbone}",
        labels=detector.class_names,
        layer=layer,
        inputs={"image": [1, 3, None, None], "im_shape": [1, 2], "scale_factor": [1, 2]},
        outputs=[boxes, masks] if layer.has_masks else [boxes],
        inputs_of=inputs_of,
        preprocessing={
            "color_order": "RGB",
            "divide_by": 255,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "layout": "NCHW",
            "dtype": "float32",
            "resize_with": "OpenCV",
            "sides_multiple_of": STRIDE,
            "im_shape": "height and width after resizing, before padding",
            "scale_factor": "factors by which height and width were multiplied",
            "ppdet_sample_transforms": reader.get("sample_transforms", []),
            "ppdet_batch_transforms": reader.get("batch_transforms", []),
        },
        postprocessing=(
            "NMS is included; apply a threshold to the scores, resize each mask bilinearly to its box, "
            f"and apply the threshold {detector.mask_threshold}"
            if layer.has_masks
            else "NMS is included; apply a threshold to the scores"
        ),
        stride=STRIDE,
        reference=reference,
        same_order=_same_order,
        agreement=_share_found_again,
        agreement_name="share of the objects with scores from 0.5 that are found again, in a box of IoU from 0.5",
    )


def _same_order(expected: Arrays, found: Arrays) -> Arrays:
    """Pair each expected box with the most similar one, since the order of almost equal scores is undefined."""
    boxes, others = expected[0], found[0]
    if boxes.shape != others.shape or not len(boxes):
        return found
    _, order = linear_sum_assignment(np.abs(boxes[:, None] - others).sum(-1))
    return [array[order] for array in found]


def _share_found_again(expected: Arrays, found: Arrays) -> float | None:
    """The share of the objects with scores from 0.5 that have one of the same label and an IoU from 0.5."""
    sure, others = (arrays[0][arrays[0][:, 1] >= 0.5].astype(np.float64) for arrays in (expected, found))
    if not len(sure):
        return None
    if not len(others):
        return 0.0
    boxes = (np.concatenate([rows[:, 2:4], rows[:, 4:] - rows[:, 2:4]], axis=1) for rows in (sure, others))
    return float(((iou(*boxes, [0] * len(others)) >= 0.5) & (sure[:, :1] == others[:, 0])).any(axis=1).mean())
