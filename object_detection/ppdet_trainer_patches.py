"""Patches of PaddleDetection 2.6.0 that only its own Trainer needs, which this project's launcher does not use.

Importing this module applies them; :mod:`object_detection.pale_backbone` does.
"""

from __future__ import annotations

import importlib
from typing import Any

# isort: split
from object_detection.ppdet_patches import SUPPORTED  # before ppdet

# isort: split
import paddle
from paddle import Tensor
from PIL import Image, ImageDraw
from ppdet.modeling.post_process import MaskPostProcess

from common.toolkits.patches import apply, minimize, namespace

_visualizer = importlib.import_module("ppdet.utils.visualizer")
_original_paste = MaskPostProcess.__call__


def _paste_masks(self: Any, mask_out: Tensor, bboxes: Tensor, bbox_num: Tensor, origin_shape: Tensor) -> Tensor:
    """Paste the mask of each box, ``[h, w]``, into its own image: int32 ``[boxes, H, W]``, 0 or 1, -1 outside of it.

    An image without objects has a box of score 0, for which Mask R-CNN has computed no mask; ``origin_shape`` has a row
    for each box. Without the patch, masks of a batch of several images have the size of another image and, after an
    image without objects, are pasted into another box. Paddle 2.6 and 3.
    """
    if mask_out.shape[0] < bboxes.shape[0]:
        masks, found = paddle.zeros([bboxes.shape[0], *mask_out.shape[1:]]), paddle.nonzero(bboxes[:, 1] > 0).flatten()
        mask_out = paddle.scatter(masks, found, mask_out.astype("float32")) if len(found) else masks
    first_boxes = bbox_num.cumsum() - bbox_num.astype("int64")
    return _original_paste(self, mask_out, bboxes, bbox_num, origin_shape.gather(first_boxes))


def _draw(image: Image.Image) -> ImageDraw.ImageDraw:
    """``ImageDraw.Draw`` with ``textsize``, which Pillow 10 removed.

    Without it: AttributeError in ``Trainer.predict``.
    """
    drawing = ImageDraw.Draw(image)
    drawing.textsize = lambda text: drawing.textbbox((0, 0), text)[2:]
    return drawing


if SUPPORTED:
    apply(paddle.amp.GradScaler, "minimize", minimize)
    apply(MaskPostProcess, "__call__", _paste_masks)
    apply(_visualizer, "ImageDraw", namespace(ImageDraw, Draw=_draw))
