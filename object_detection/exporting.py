"""A detector as ``tools/export.py`` writes it: one image to boxes and small masks, with the suppression inside."""

from __future__ import annotations

import numpy as np
from paddle import Tensor
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
        UserError: the model is of an architecture that cannot be exported.
    """
    layer = SingleImageDetector(detector.model)
    reader = plain(detector.config.EvalReader)
    mean, std = find_normalization(detector.config, "EvalReader")
    boxes = Output("boxes", ["objects", 6], "label, score, x1, y1, x2, y2 in pixels of the original image")
    masks = Output("masks", ["objects", "side", "side"], "probabilities, spread evenly over each box")

    def reference(inputs: dict[str, Tensor]) -> Arrays:
        """What the launcher makes of the image, with the masks as the model gives them."""
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
            "colour_order": "RGB",
            "divide_by": 255,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "layout": "NCHW",
            "dtype": "float32",
            "resize_with": "OpenCV",
            "sides_multiple_of": STRIDE,
            "im_shape": "height and width after resizing, before padding",
            "scale_factor": "by what height and width were multiplied",
            "ppdet_sample_transforms": reader.get("sample_transforms", []),
            "ppdet_batch_transforms": reader.get("batch_transforms", []),
        },
        postprocessing=(
            "non-maximum suppression is in the model; cut the scores where you like, enlarge masks to their boxes, "
            f"bilinearly, and cut them at {detector.mask_threshold}"
            if layer.has_masks
            else "non-maximum suppression is in the model; cut the scores where you like"
        ),
        stride=STRIDE,
        reference=reference,
        same_order=_same_order,
    )


def _same_order(expected: Arrays, found: Arrays) -> Arrays:
    """Objects of almost equal scores may stand in either order: pair each with the most similar."""
    boxes, others = expected[0], found[0]
    if boxes.shape != others.shape or not len(boxes):
        return found
    _, order = linear_sum_assignment(np.abs(boxes[:, None] - others).sum(-1))
    return [array[order] for array in found]
