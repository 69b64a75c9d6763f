"""Description of a segmenter for ``tools/export.py``: a single window, without sliding."""

from __future__ import annotations

import numpy as np
import paddle
from paddle import nn
from paddleseg.transforms import Normalize

from common.data.confusion import class_figures, count_pairs
from common.inference.exportable import Arrays, Exportable, Output
from common.pale_transformer import STRIDE
from common.training.config import plain
from semantic_segmentation.prediction import Segmenter

__all__ = ["exportable"]


class _Logits(nn.Layer):
    """The first of the outputs of a PaddleSeg model."""

    def __init__(self, model: nn.Layer):
        super().__init__()
        self.model = model

    def forward(self, images: paddle.Tensor) -> paddle.Tensor:
        return self.model(images)[0]


def exportable(segmenter: Segmenter) -> Exportable:
    """Images, or windows of images, to logits of the same size."""
    normalize = next((item for item in segmenter.transforms if isinstance(item, Normalize)), None)
    channels = segmenter.channels
    mean, std = (
        (np.ravel(normalize.mean), np.ravel(normalize.std)) if normalize else (np.zeros(channels), np.ones(channels))
    )
    divide_by = 255 if normalize else 1
    section = plain(segmenter.config.model)
    return Exportable(
        name=f"{section['type']} on {section['backbone'].get('variant', section['backbone']['type'])}",
        labels=segmenter.class_names,
        layer=_Logits(segmenter.model),
        inputs={"images": [None, channels, None, None]},
        outputs=[Output("logits", ["batch", len(segmenter.class_names), "height", "width"], "of each class and pixel")],
        inputs_of=lambda file: {"images": segmenter.preprocess(file)[0]},
        preprocessing={
            "color_order": "RGB" if channels == 3 else "as in the file",
            "divide_by": divide_by,
            "divide_16_bits_by": 257 * divide_by,
            "divide_floats_by": divide_by / 255,
            "mean": mean.tolist(),
            "std": std.tolist(),
            "layout": "NCHW",
            "dtype": "float32",
            "least_side": STRIDE,
            "paddleseg_transforms": plain(segmenter.config.val_dataset).get("transforms", []),
        },
        postprocessing=(
            "the class of a pixel is the one with the highest logit; large images are split into overlapping windows, "
            f"whose logits are averaged (test_config: {plain(segmenter.config.test_config) or 'the whole image'})"
        ),
        agreement=_mean_iou,
        agreement_name="mean IoU of the classes",
    )


def _mean_iou(expected: Arrays, found: Arrays) -> float:
    label, prediction = (logits[0].argmax(axis=1) for logits in (expected, found))
    return float(np.nanmean(class_figures(count_pairs(label, prediction, expected[0].shape[1]))["IoU"])) / 100
