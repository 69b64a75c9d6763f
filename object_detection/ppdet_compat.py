"""What PaddleDetection 2.6.0, of 2023, needs to train, evaluate and predict on the Paddle of today.

:data:`MENDS` is the whole list. Importing this module imports PaddleDetection without its remarks on tracking,
tries each original function, and replaces those, and only those, that do not work here.
"""

from __future__ import annotations

import builtins
import importlib
import types
from collections.abc import Callable
from contextlib import suppress
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import paddle
from paddle import Tensor, nn
from PIL import Image, ImageDraw, ImageFile

from common.toolkits.patches import GRAD_SCALER, Mend, apply_mends

__all__ = ["MENDS", "THINNEST", "Over", "import_ppdet", "seeing"]


def import_ppdet(module: str = "ppdet.engine") -> ModuleType:
    """Import a module of PaddleDetection without what it does besides.

    That is remarks that packages for tracking are missing, and a setting of Pillow's.
    """
    show = builtins.print

    def print_other(*values: Any, **settings: Any) -> None:
        if not str(values[0] if values else "").startswith("Warning: Unable to use "):
            show(*values, **settings)

    # Not `redirect_stdout`: the loggers that ppdet makes meanwhile would write there for ever. And `ppdet.engine` has
    # Pillow read truncated images without a word, in the whole process.
    with (
        mock.patch.object(builtins, "print", print_other),
        mock.patch.object(ImageFile, "LOAD_TRUNCATED_IMAGES", ImageFile.LOAD_TRUNCATED_IMAGES),
    ):
        return importlib.import_module(module)


import_ppdet()
# By `import_module`, because the packages hide modules behind what they import from them by name.
_rpn_head, _target, _target_layer, _roi_extractor, _cascade_head, _retina_head, _post_process = (
    importlib.import_module(f"ppdet.modeling.{name}")
    for name in (
        "proposal_generator.rpn_head",
        "proposal_generator.target",
        "proposal_generator.target_layer",
        "heads.roi_extractor",
        "heads.cascade_head",
        "heads.retina_head",
        "post_process",
    )
)
_optimizer = importlib.import_module("ppdet.optimizer.optimizer")
_visualizer = importlib.import_module("ppdet.utils.visualizer")


class Over:
    """A module with some names replaced."""

    def __init__(self, module: Any, **replacements: Any):
        self._module = module
        self.__dict__.update(replacements)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def seeing(function: Callable, **names: Any) -> Callable:
    """The same code, which finds other things under some names of its module."""
    twin = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__doc__, twin.__module__, twin.__qualname__ = function.__doc__, function.__module__, function.__qualname__
    return twin


# ---- counts that are joined


def _concat(x: Any, axis: int = 0, name: str | None = None) -> Tensor:
    """``paddle.concat`` that takes tensors of shape [] as well, as it did while ``tensor[0]`` had the shape [1]."""
    return paddle.concat([part.reshape([1]) if part.ndim == 0 else part for part in x], axis, name)


_JOINS = Over(paddle, concat=_concat)
_BOX = [[0.0, 0.0, 8.0, 8.0]]


def _generates_proposals(generate: Callable) -> bool:
    head = _rpn_head.RPNHead({"anchor_sizes": [[8]], "aspect_ratios": [1.0], "strides": [8]}, in_channel=1)
    scores, deltas = paddle.zeros([2, 1, 1, 1]), paddle.zeros([2, 4, 1, 1])
    anchors, sizes = paddle.to_tensor(_BOX).reshape([1, 1, 1, 4]), paddle.full([2, 2], 8.0)
    _, counts = generate(head, [scores], [deltas], [anchors], {"im_shape": sizes})
    return counts.tolist() == [1, 1]


def _samples_proposals(generate: Callable) -> bool:
    boxes, classes = paddle.to_tensor(_BOX), paddle.zeros([1, 1], "int32")
    *_, counts = generate([boxes, boxes], [classes, classes], [boxes, boxes], 4, 0.5, 0.5, 0.5, 1)
    return counts.tolist() == [2, 2]


def _refines_boxes(refine: Callable) -> bool:
    boxes = paddle.to_tensor(_BOX)
    _, counts = refine(SimpleNamespace(training=False), [boxes, boxes], paddle.full([2, 2], 8.0))
    return counts.tolist() == [1, 1]


def _rescales_boxes(rescale: Callable) -> bool:
    box = paddle.to_tensor([[0.0, 0.5, 0.0, 0.0, 8.0, 8.0]])
    counts, two = paddle.to_tensor([1, 0], "int32"), paddle.full([2, 2], 2.0)
    _, boxes, counts = rescale(_post_process.BBoxPostProcess(), box, counts, paddle.full([2, 2], 8.0), two)
    return counts.tolist() == [1, 1] and boxes[0].tolist() == [0.0, 0.5, 0.0, 0.0, 4.0, 4.0]


# ---- boxes and their targets


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
    """Match anchors to objects; ``is_crowd``, int32 ``[objects, 1]``, is multiplied by float32."""
    settings = (positive_overlap, negative_overlap, allow_low_quality, ignore_thresh)
    crowd = None if is_crowd is None else is_crowd.astype(gt_boxes.dtype)
    return _original_label_box(anchors, gt_boxes, *settings, crowd, assign_on_cpu)


def _ignores_crowds(label: Callable) -> bool:
    boxes, crowd = paddle.to_tensor([*_BOX, [8.0, 0.0, 16.0, 8.0]]), paddle.to_tensor([[0], [1]], "int32")
    _, labels = label(boxes, boxes, 0.5, 0.5, False, -1.0, crowd)
    return labels.tolist() == [1, 0]


def _bbox2delta(src_boxes: Tensor, *args: Any) -> Tensor:
    """Encode boxes as offsets ``[boxes, 4]``, none as none."""
    return _retina_head.bbox2delta(src_boxes, *args) if len(src_boxes) else paddle.zeros([0, 4], src_boxes.dtype)


def _concat_any(x: list[Tensor], axis: int = 0) -> Tensor:
    """``paddle.concat`` that takes tensors none of which has an element as well."""
    return paddle.concat(x, axis) if any(part.size for part in x) else x[0]


def _learns_without_objects(get_loss: Callable) -> bool:
    none = paddle.zeros([0, 4])
    with suppress(ValueError):  # where Paddle joins them, do not try more, of which it warns
        return paddle.concat([none, paddle.stack([none[:, 0]] * 4, axis=1)]).shape == none.shape
    head = SimpleNamespace(
        num_classes=1,
        weights=[1.0] * 4,
        anchor_generator=lambda maps: [paddle.to_tensor(_BOX)],
        bbox_assigner=lambda anchors, boxes: (paddle.zeros([1], "int64"), paddle.zeros([1], "int32")),
        loss_class=lambda scores, classes, reduction: scores.sum(),
    )
    maps = [paddle.zeros([1, 1, 1, 1])], [paddle.zeros([1, 4, 1, 1])]
    losses = get_loss(head, maps, {"gt_bbox": [none], "gt_class": [paddle.zeros([0, 1], "int32")]})
    return float(losses["loss_reg"]) == 0.0


# ---- masks


def _ones(shape: list[int], dtype: str | None = None) -> Tensor:
    """``paddle.ones``, but 0 where ``generate_mask_target`` asks for an index, its only int64.

    That is the proposal with which an image without foreground takes part, at no weight; a second need not exist.
    """
    return paddle.full(shape, 0 if dtype == "int64" else 1, dtype)


def _makes_masks(generate: Callable) -> bool:
    boxes, background, owners = paddle.to_tensor(_BOX), paddle.ones([1], "int32"), paddle.zeros([1], "int64")
    _, counts, _, masks, _, weights = generate([[], []], [boxes] * 2, [background] * 2, [owners] * 2, 1, 2)
    return counts.tolist() == [1, 1] and masks.shape == [2, 2, 2] and weights.tolist() == [0.0, 0.0]


_original_paste = _post_process.MaskPostProcess.__call__


def _paste_masks(self: Any, mask_out: Tensor, bboxes: Tensor, bbox_num: Tensor, origin_shape: Tensor) -> Tensor:
    """Paste each box's mask ``[h, w]`` into its own image: 0 or 1, int32 ``[boxes, H, W]``, -1 outside the image.

    An image without objects has a box of score 0, for which Mask R-CNN has computed no mask. ``origin_shape`` has a
    height and a width for each box.
    """
    if mask_out.shape[0] < bboxes.shape[0]:
        masks, found = paddle.zeros([bboxes.shape[0], *mask_out.shape[1:]]), paddle.nonzero(bboxes[:, 1] > 0).flatten()
        mask_out = paddle.scatter(masks, found, mask_out.astype("float32")) if len(found) else masks
    first_boxes = bbox_num.cumsum() - bbox_num.astype("int64")
    return _original_paste(self, mask_out, bboxes, bbox_num, origin_shape.gather(first_boxes))


def _pastes_into_own_images(paste: Callable) -> bool:
    """Try an image without objects before one with one, then images of 2x2 and 4x4 pixels."""
    paster, box = _post_process.MaskPostProcess(), [0.0, 0.5, 0.0, 0.0, 2.0, 2.0]
    boxes, counts = paddle.to_tensor([[0.0, 0.0, 0.0, 0.0, 1.0, 1.0], box]), paddle.ones([2], "int32")
    some = paste(paster, paddle.ones([1, 2, 2]), boxes, counts, paddle.full([2, 2], 2.0))
    sizes = paddle.to_tensor([[2.0, 2.0], [2.0, 2.0], [4.0, 4.0]])
    all_of = paste(
        paster, paddle.ones([3, 2, 2]), paddle.to_tensor([box] * 3), paddle.to_tensor([2, 1], "int32"), sizes
    )
    return some[1].tolist() == [[1, 1], [1, 1]] and all_of.min(axis=[1, 2]).tolist() == [-1, -1, 0]


# ---- features of boxes


_original_align = _roi_extractor.RoIAlign.forward
THINNEST = 1e-2  # pixels; a narrower box may lose its area when it is scaled to a map, by rounding


def _align(self: nn.Layer, feats: list[Tensor], roi: list[Tensor], rois_num: Tensor) -> Tensor:
    """Features of boxes, zero for those without area, as Paddle's GPU kernel has them."""
    if not self.aligned:
        return _original_align(self, feats, roi, rois_num)
    boxes = paddle.concat(roi)
    usable = (boxes[:, 2:] - boxes[:, :2] >= THINNEST).all(axis=1, keepdim=True)
    unit = paddle.to_tensor([[0.0, 0.0, 1.0, 1.0]], boxes.dtype, boxes.place)
    features = _original_align(self, feats, [paddle.where(usable, boxes, unit)], rois_num)
    return features * usable.astype(features.dtype).reshape([-1, 1, 1, 1])


def _aligns_boxes_without_area(align: Callable) -> bool:
    """Do not try an inverted box, on which Paddle's kernel ends the process."""
    cpu = paddle.CPUPlace()
    maps, box, count = paddle.ones([1, 1, 8, 8]), paddle.zeros([1, 4]), paddle.ones([1], "int32")
    extractor = _roi_extractor.RoIAlign(2, [0.25], aligned=True)
    features = align(extractor, [maps.to(cpu)], [box.to(cpu)], count.to(cpu))
    return bool(paddle.isfinite(features).all())


# ---- optimizers


def _build_optimizer(name: str) -> Callable:
    def build(parameters: list, **settings: Any) -> paddle.optimizer.Optimizer:
        filled = [group for group in parameters if not isinstance(group, dict) or group["params"]]
        return getattr(paddle.optimizer, name)(parameters=filled, **settings)

    return build


class _Optimizers:
    """``paddle.optimizer``, whose classes leave empty parameter groups out."""

    def __getattr__(self, name: str) -> Callable:
        return _build_optimizer(name)


def _builds_with_empty_groups(build: Callable) -> bool:
    groups = [{"params": ["no such name"]}]
    settings = _optimizer.OptimizerBuilder(optimizer={"type": "AdamW", "param_groups": groups})
    return build(settings, 0.1, nn.Linear(1, 1)) is not None


# ---- pictures


def _draw(image: Image.Image) -> ImageDraw.ImageDraw:
    """A pen that still has ``textsize``, which Pillow 10 removed."""
    pen = ImageDraw.Draw(image)
    pen.textsize = lambda text: pen.textbbox((0, 0), text)[2:]
    return pen


def _draws_boxes(draw: Callable) -> bool:
    found = {"image_id": 0, "category_id": 1, "bbox": [8, 16, 8, 8], "score": 0.9}
    return np.asarray(draw(Image.new("RGB", (32, 32)), 0, {1: "a"}, [found], 0.5)).any()


def _with_joins(owner: Any, attribute: str, reason: str, works: Callable[[Callable], bool], **names: Any) -> Mend:
    original = getattr(owner, attribute)
    reason = f"concatenates tensors of shape []: ValueError in {reason}"
    return Mend(owner, attribute, seeing(original, paddle=_JOINS, **names), reason, ("2.6", "3."), works, original)


MENDS: tuple[Mend, ...] = (
    _with_joins(_rpn_head.RPNHead, "_gen_proposal", "every model with proposals", _generates_proposals),
    _with_joins(
        _target_layer,
        "generate_proposal_target",
        "training with proposals",
        _samples_proposals,
        label_box=_label_box,
    ),
    _with_joins(_cascade_head.CascadeHead, "_get_rois_from_boxes", "every cascade", _refines_boxes),
    _with_joins(_post_process.BBoxPostProcess, "get_pred", "evaluation and prediction with proposals", _rescales_boxes),
    Mend(
        _target,
        "label_box",
        _label_box,
        "multiplies int32 by float32, which Paddle 3 refuses: TypeError when crowds are loaded (`load_crowd`)",
        ("3.",),
        _ignores_crowds,
        _original_label_box,
    ),
    Mend(
        _retina_head.RetinaHead,
        "get_loss",
        seeing(_retina_head.RetinaHead.get_loss, paddle=Over(paddle, concat=_concat_any), bbox2delta=_bbox2delta),
        "joins tensors without elements, which Paddle 2.6 refuses: ValueError on images without objects",
        ("2.6",),
        _learns_without_objects,
        _retina_head.RetinaHead.get_loss,
    ),
    Mend(
        _target_layer,
        "generate_mask_target",
        seeing(_target_layer.generate_mask_target, paddle=Over(_JOINS, ones=_ones)),
        "concatenates tensors of shape [], and takes the second proposal of an image without foreground, which may not "
        "exist: ValueError or IndexError in training with masks",
        ("2.6", "3."),
        _makes_masks,
        _target_layer.generate_mask_target,
    ),
    Mend(
        _post_process.MaskPostProcess,
        "__call__",
        _paste_masks,
        "with several images in a batch, pastes masks in the size of another image and, in Mask R-CNN after an image "
        "without objects, into another box",
        ("2.6", "3."),
        _pastes_into_own_images,
        _original_paste,
    ),
    Mend(
        _roi_extractor.RoIAlign,
        "forward",
        _align,
        "on CPUs, when `aligned`: gives NaN for a box without area, as a level without proposals has one, hence NaN in "
        "the gradients; ends the process on a box of NaN",
        ("2.6", "3."),
        _aligns_boxes_without_area,
        _original_align,
    ),
    GRAD_SCALER,
    Mend(
        _optimizer.OptimizerBuilder,
        "__call__",
        seeing(_optimizer.OptimizerBuilder.__call__, optimizer=_Optimizers()),
        "cannot take `param_groups` of which the first matches nothing that is trained: IndexError",
        ("2.6", "3."),
        _builds_with_empty_groups,
        _optimizer.OptimizerBuilder.__call__,
    ),
    Mend(
        _visualizer,
        "draw_bbox",
        seeing(_visualizer.draw_bbox, ImageDraw=SimpleNamespace(Draw=_draw)),
        "measures text as Pillow 10 no longer does: AttributeError in `Trainer.predict`",
        ("2.6", "3."),
        _draws_boxes,
        _visualizer.draw_bbox,
    ),
)

apply_mends(MENDS)
