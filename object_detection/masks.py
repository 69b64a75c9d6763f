"""Masks of detected objects: pastes the outputs of a mask head into the image, in COCO's run-length encoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from pycocotools import mask as rle_masks

__all__ = ["RleMasks", "original_size", "with_rle_masks"]


class RleMasks:
    """Pastes masks into images and encodes them, in place of PaddleDetection's ``MaskPostProcess``.

    That one keeps all masks of an image at its size, several times, in 4 bytes or more per pixel: 100 masks of an image
    of 1200x900 pixels take 8 GB. Here only pixels inside a box are computed, which gives the same masks: outside, the
    interpolation with zeros stays below a half. A box without area has an empty mask.

    Args:
        binary_thresh: lowest probability of a pixel of the object, at least 0.5.
    """

    def __init__(self, binary_thresh: float = 0.5):
        self.binary_thresh = binary_thresh

    def __call__(
        self, mask_out: paddle.Tensor, bboxes: paddle.Tensor, bbox_num: paddle.Tensor, origin_shape: paddle.Tensor
    ) -> list[dict[str, Any]]:
        """Paste and encode masks.

        Args:
            mask_out: probabilities, float32 [n, m, m].
            bboxes: float32 [n, 6], label, score, x1, y1, x2, y2 in pixels.
            bbox_num: not used.
            origin_shape: [n, 2], height and width of the image of each.

        Returns:
            n COCO RLE dicts, each of its image's size.
        """
        sizes = origin_shape.numpy().astype(int).tolist()
        boxes = bboxes[:, 2:].numpy()
        masks = mask_out.astype("float32").unsqueeze(1)
        return [self._paste(masks[number : number + 1], boxes[number], *size) for number, size in enumerate(sizes)]

    def _paste(self, mask: paddle.Tensor, box: np.ndarray, height: int, width: int) -> dict[str, Any]:
        pasted = np.zeros((height, width), np.uint8, order="F")
        left, top = np.clip(np.floor(box[:2]), 0, (width, height)).astype(int)
        right, bottom = np.clip(np.ceil(box[2:]), (left, top), (width, height)).astype(int)
        if right > left and bottom > top:
            across = (np.arange(left, right, dtype=np.float32) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
            down = (np.arange(top, bottom, dtype=np.float32) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
            grid = paddle.to_tensor(np.stack(np.meshgrid(across, down), axis=-1)[np.newaxis])
            inside = F.grid_sample(mask, grid, align_corners=False)[0, 0] >= self.binary_thresh
            pasted[top:bottom, left:right] = inside.numpy()
        return rle_masks.encode(pasted)


def original_size(im_shape: paddle.Tensor, scale_factor: paddle.Tensor) -> paddle.Tensor:
    """Height and width of images before they were resized: [B, 2] in integers, float32.

    Args:
        im_shape: [B, 2], height and width after it.
        scale_factor: [B, 2], the factors of height and width.
    """
    return paddle.floor(im_shape / scale_factor + 0.5)


def with_rle_masks(
    outputs: Mapping[str, paddle.Tensor], im_shape: paddle.Tensor, scale_factor: paddle.Tensor, binary_thresh: float
) -> dict[str, Any]:
    """Convert the outputs of an exported model to those of the model in evaluation mode.

    Args:
        outputs: ``boxes`` [n, 6] and, of models with masks, ``masks`` [n, m, m], probabilities.
        im_shape, scale_factor: inputs of the model, [1, 2].
        binary_thresh: see :class:`RleMasks`.

    Returns:
        ``bbox``, the boxes, and ``mask``, n masks in COCO's run-length encoding.
    """
    boxes = outputs["boxes"]
    if "masks" not in outputs:
        return {"bbox": boxes}
    size = original_size(im_shape, scale_factor).expand([boxes.shape[0], 2])
    return {"bbox": boxes, "mask": RleMasks(binary_thresh)(outputs["masks"], boxes, paddle.empty([0]), size)}
