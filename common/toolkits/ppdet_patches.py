"""Patches of PaddleDetection 2.6.0 and of a clone of its repository, which importing this module applies."""

from __future__ import annotations

import builtins
import importlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import paddle
from paddle import Tensor, nn
from PIL import Image, ImageDraw, ImageFile

from .patches import apply, is_patched_version, minimize, namespace

__all__ = ["LEAST_SIDE", "replace_empty_boxes"]

# The scripts of a clone insert their repository into sys.path, perhaps later than they import this module.
_repository = Path(getattr(sys.modules["__main__"], "__file__", None) or "").resolve().parent.parent
if (_repository / "ppdet").is_dir():
    sys.path.insert(0, str(_repository))

# `import ppdet` prints which packages for tracking are missing, and sets Pillow to read truncated images silently in
# the whole process.
with (
    mock.patch.object(builtins, "print"),
    mock.patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES),
):
    import ppdet

# By `import_module`, because the packages hide some modules behind functions of the same name.
_rpn_head, _target, _roi_extractor, _cascade_head, _retina_head, _post_process, _visualizer = (
    importlib.import_module(f"ppdet.{name}")
    for name in (
        "modeling.proposal_generator.rpn_head",
        "modeling.proposal_generator.target",
        "modeling.heads.roi_extractor",
        "modeling.heads.cascade_head",
        "modeling.heads.retina_head",
        "modeling.post_process",
        "utils.visualizer",
    )
)


def _concat(x: Any, axis: int = 0, name: str | None = None) -> Tensor:
    """``paddle.concat`` for tensors of shape [], too.

    Without it: ValueError in every model with proposals, which concatenate counts. Paddle 2.6 and 3.
    """
    return paddle.concat([part.reshape([1]) if part.ndim == 0 else part for part in x], axis, name)


def _ones(shape: list[int], dtype: str | None = None) -> Tensor:
    """``paddle.ones`` for ``target.py``, but 0 for int64.

    ``generate_mask_target`` uses its only int64 as the index of the proposal that stands in, with the weight 0, for an
    image without foreground. Without it: IndexError if there is no second proposal. Paddle 2.6 and 3.
    """
    return paddle.full(shape, 0 if dtype == "int64" else 1, dtype)


_original_label_box = _target.label_box


def _label_box(
    anchors: Tensor,
    gt_boxes: Tensor,
    positive_overlap: float,
    negative_overlap: float,
    allow_low_quality: bool,
    ignore_thresh: float,
    is_crowd: Tensor | None = None,
    assign_on_cpu: bool = False,
) -> tuple[Tensor, Tensor]:
    """Match anchors to objects.

    ``is_crowd``, int32 ``[objects, 1]``, is multiplied by float32. Without the patch: TypeError when crowds are loaded
    (``load_crowd``). Paddle 3.
    """
    settings = (positive_overlap, negative_overlap, allow_low_quality, ignore_thresh)
    crowd = None if is_crowd is None else is_crowd.astype(gt_boxes.dtype)
    return _original_label_box(anchors, gt_boxes, *settings, crowd, assign_on_cpu)


def _concat_empty(x: list[Tensor], axis: int = 0) -> Tensor:
    """``paddle.concat`` for RetinaNet, also of tensors none of which has an element.

    Without it: ValueError on images without objects. Paddle 2.6.
    """
    return x[0] if paddle.in_dynamic_mode() and not any(part.size for part in x) else paddle.concat(x, axis)


_original_bbox2delta = _retina_head.bbox2delta


def _bbox2delta(src_boxes: Tensor, *args: Any) -> Tensor:
    """Encode boxes as offsets ``[boxes, 4]``, also if there are none.

    Without it: ValueError in RetinaNet on images without objects. Paddle 2.6.
    """
    return _original_bbox2delta(src_boxes, *args) if len(src_boxes) else paddle.zeros([0, 4], src_boxes.dtype)


def _align(self: nn.Layer, feats: list[Tensor], roi: list[Tensor], rois_num: Tensor) -> Tensor:
    """Compute the features of boxes.

    Without it, on CPUs: a box of NaN aborts the process. When ``aligned``: NaN for a box without area, such as the one
    that stands in for a level without proposals, hence NaN gradients. Paddle 2.6 and 3.
    """
    if not paddle.in_dynamic_mode():
        return self.forward_without_patch(feats, roi, rois_num)
    # Unless aligned, the kernel widens boxes to one position of the map.
    boxes, is_used = replace_empty_boxes(paddle.concat(roi), LEAST_SIDE if self.aligned else -float("inf"))
    features = self.forward_without_patch(feats, [boxes], rois_num)
    return features * is_used.astype(features.dtype)


# A box narrower than this many pixels may lose its area by rounding when it is scaled to a map.
LEAST_SIDE = 1e-2


# Without default values, which Paddle cannot find when it converts the function.
def replace_empty_boxes(boxes: Tensor, least_side: float) -> tuple[Tensor, Tensor]:
    """Replace boxes without area before RoIAlign, whose features shall be 0, as Paddle's GPU kernel computes them.

    Args:
        boxes: float32 ``[n, 4]``, x1, y1, x2, y2 in pixels.
        least_side: width and height, in pixels, from which a box counts as one with an area; boxes of NaN never do.

    Returns:
        ``boxes`` with ``(0, 0, 1, 1)`` in the place of those without area, and whether each one has an area, bool
        ``[n, 1, 1, 1]``, which the features have to be multiplied by.
    """
    is_used = (boxes[:, 2:] - boxes[:, :2] >= least_side).all(axis=1, keepdim=True)
    boxes = paddle.where(is_used, boxes, paddle.to_tensor([[0.0, 0.0, 1.0, 1.0]], boxes.dtype))
    return boxes, is_used.reshape([-1, 1, 1, 1])


def _paste_masks(self: Any, mask_out: Tensor, bboxes: Tensor, bbox_num: Tensor, origin_shape: Tensor) -> Tensor:
    """Paste the mask of each box, ``[h, w]``, into its own image: int32 ``[boxes, H, W]``, 0 or 1, -1 outside of it.

    An image without objects has a box of score 0, for which Mask R-CNN has computed no mask; ``origin_shape`` has a row
    for each box. Without the patch, masks of a batch of several images have the size of another image and, after an
    image without objects, are pasted into another box. Paddle 2.6 and 3.
    """
    if paddle.in_dynamic_mode():
        mask_out, origin_shape = _for_each_image(mask_out, bboxes, bbox_num, origin_shape)
    return self.paste_without_patch(mask_out, bboxes, bbox_num, origin_shape)


def _for_each_image(mask_out: Tensor, bboxes: Tensor, bbox_num: Tensor, origin_shape: Tensor) -> tuple[Tensor, Tensor]:
    """A mask for each box, and a row of ``origin_shape`` for each image."""
    if mask_out.shape[0] < bboxes.shape[0]:
        masks, found = paddle.zeros([bboxes.shape[0], *mask_out.shape[1:]]), paddle.nonzero(bboxes[:, 1] > 0).flatten()
        mask_out = paddle.scatter(masks, found, mask_out.astype("float32")) if len(found) else masks
    first_boxes = bbox_num.cumsum() - bbox_num.astype("int64")
    return mask_out, origin_shape.gather(first_boxes)


def _draw(image: Image.Image) -> ImageDraw.ImageDraw:
    """``ImageDraw.Draw`` with ``textsize``, which Pillow 10 removed.

    Without it: AttributeError in ``Trainer.predict``.
    """
    drawing = ImageDraw.Draw(image)
    drawing.textsize = lambda text: drawing.textbbox((0, 0), text)[2:]  # type: ignore[attr-defined]
    return drawing


def _patch_method(owner: type, name: str, unpatched_name: str, replacement: Any) -> None:
    """Replace a method that traced programs contain, for which the replacement has to call the original.

    It does so by ``unpatched_name``, because Paddle converts the loops and branches of methods, but not those of a
    function that is a global of another module. Nothing is patched twice, as by an installed package and a checkout.
    """
    if not hasattr(owner, unpatched_name):
        apply(owner, unpatched_name, getattr(owner, name))
        apply(owner, name, replacement)


_RELEASE, _CLONE = "2.6.0", "0.0.0"
_version = getattr(ppdet, "__version__", _CLONE)  # a clone gets its number when it is installed

if is_patched_version("PaddleDetection", _version, (_RELEASE, _CLONE)):
    if _version == _RELEASE:
        for _module in (_rpn_head, _cascade_head, _post_process):
            apply(_module, "paddle", namespace(paddle, concat=_concat))
        apply(_visualizer, "ImageDraw", namespace(ImageDraw, Draw=_draw))
    apply(_target, "paddle", namespace(paddle, concat=_concat, ones=_ones))
    apply(_target, "label_box", _label_box, ("3.",))
    apply(_retina_head, "paddle", namespace(paddle, concat=_concat_empty), ("2.6",))
    apply(_retina_head, "bbox2delta", _bbox2delta, ("2.6",))
    _patch_method(_roi_extractor.RoIAlign, "forward", "forward_without_patch", _align)
    # The others are for PaddleDetection's own Trainer.
    apply(paddle.amp.GradScaler, "minimize", minimize)
    _patch_method(_post_process.MaskPostProcess, "__call__", "paste_without_patch", _paste_masks)
