"""Detection on one image without control flow, so that it can be traced and converted.

PaddleDetection's models branch on the number of boxes, and loop over the images of a batch; Paddle 3 can trace neither.
Here the layers of such a model are called, with the settings of its post-processing, for a single image.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from ppdet.modeling import ops
from ppdet.modeling.bbox_utils import delta2bbox
from ppdet.modeling.necks.fpn import FPN

from common.errors import UserError
from common.toolkits.patches import namespace
from common.toolkits.ppdet_patches import LEAST_SIDE, replace_empty_boxes
from object_detection.masks import original_size

__all__ = ["SingleImageDetector"]

_ARCHITECTURES = ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "RetinaNet")
_ALL = 2**20  # boxes; an argument where a limit is required, larger than any number of boxes
_LEAST = -1e10  # below the score of any proposal (a logit)
_STABLE = {"stable": True} if "stable" in inspect.signature(paddle.argsort).parameters else {}


class SingleImageDetector(nn.Layer):
    """A model of :func:`object_detection.components.build_model` for one image, in evaluation mode.

    Args:
        model: a ``FasterRCNN``, ``MaskRCNN``, ``CascadeRCNN`` or ``RetinaNet`` of PaddleDetection; its layers are
            shared, not copied.

    Raises:
        UserError: the model is another one, or has parts that are not supported here.
    """

    def __init__(self, model: nn.Layer):
        super().__init__()
        name = type(model).__name__
        if name not in _ARCHITECTURES:
            raise UserError(f"{name} cannot be exported; choose from {', '.join(_ARCHITECTURES)}")
        nms = model.head.nms if name == "RetinaNet" else model.bbox_post_process.nms
        _refuse_unknown_parts(model, nms)
        self.model, self.nms = model, nms
        generator = model.head.anchor_generator if name == "RetinaNet" else model.rpn_head.anchor_generator
        # As numbers, because a traced program cannot contain tensors that are no parameters.
        self.cell_anchors = [anchors.tolist() for anchors in generator.cell_anchors]
        self.anchor_strides, self.anchor_offset = generator.strides, generator.offset
        self.has_masks = getattr(model, "mask_head", None) is not None
        self.training = model.training

    def forward(self, image: Tensor, im_shape: Tensor, scale_factor: Tensor) -> list[Tensor]:
        """Detect.

        Args:
            image: float32 ``[1, 3, H, W]``, multiples of 32.
            im_shape: float32 ``[1, 2]``, height and width without padding.
            scale_factor: float32 ``[1, 2]``, the factors by which height and width of the original were multiplied.

        Returns:
            Boxes, float32 ``[n, 6]``: label, score, x1, y1, x2, y2 in pixels of the original image, by falling score.
            From models with masks also ``[n, m, m]``: the probabilities of each mask on a regular grid over its box.
        """
        maps = self._pyramid(self.model.backbone({"image": image}))
        if type(self.model).__name__ == "RetinaNet":
            found = self._detect_in_one_stage(maps)
        else:
            found = self._detect_in_two_stages(maps, im_shape)
        boxes = self._to_original(found, im_shape, scale_factor)
        # Boxes in the padding or outside of the image are empty now.
        kept = paddle.nonzero((boxes[:, 4:] > boxes[:, 2:4]).all(axis=1)).reshape([-1])
        outputs = [boxes.gather(kept)]
        if self.has_masks:
            outputs.append(self._masks(maps, found.gather(kept)))
        return outputs

    def _pyramid(self, maps: Sequence[Tensor]) -> Sequence[Tensor]:
        neck = self.model.neck
        return _fpn(neck, maps) if isinstance(neck, FPN) else neck(maps)

    def _anchors(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Boxes around each position of each map, row by row: [positions * anchors, 4] each."""
        levels = []
        for feature, cell, stride in zip(maps, self.cell_anchors, self.anchor_strides):  # noqa: B905 (tracing knows no strict)
            height, width = paddle.shape(feature)[2], paddle.shape(feature)[3]
            ys, xs = ((paddle.arange(side) + self.anchor_offset) * stride for side in (height, width))
            y, x = (part.reshape([-1]).astype("float32") for part in paddle.meshgrid(ys, xs))
            positions = paddle.stack([x, y, x, y], axis=1).unsqueeze(1)
            levels.append((positions + paddle.to_tensor([cell])).reshape([-1, 4]))
        return levels

    # ---- one stage

    def _detect_in_one_stage(self, maps: Sequence[Tensor]) -> Tensor:
        """Boxes in pixels of the resized image: float32 [n, 6]."""
        head = self.model.head
        logits, deltas = head(maps)
        boxes, scores = [], []
        for anchors, level_logits, level_deltas in zip(self._anchors(logits), logits, deltas):  # noqa: B905 (tracing knows no strict)
            level_logits = level_logits[0].transpose([1, 2, 0]).reshape([-1, head.num_classes])
            level_deltas = level_deltas[0].transpose([1, 2, 0]).reshape([-1, 4])
            if head.nms_pre is not None:
                chosen = _best(level_logits.max(axis=1), head.nms_pre)
                anchors, level_logits, level_deltas = (
                    part.gather(chosen) for part in (anchors, level_logits, level_deltas)
                )
            boxes.append(delta2bbox(level_deltas, anchors, head.weights).reshape([-1, 4]))
            scores.append(F.sigmoid(level_logits))
        boxes, scores = paddle.concat(boxes), paddle.concat(scores)
        return self._suppress(boxes.unsqueeze(1).expand([-1, head.num_classes, 4]), scores)

    # ---- two stages

    def _detect_in_two_stages(self, maps: Sequence[Tensor], im_shape: Tensor) -> Tensor:
        """Boxes in pixels of the resized image: float32 [n, 6]."""
        proposals = self._propose(maps, im_shape)
        head, post_process = self.model.bbox_head, self.model.bbox_post_process
        weights = post_process.decode.prior_box_var
        if type(self.model).__name__ == "CascadeRCNN":
            proposals, scores, deltas = self._refine(maps, proposals, im_shape)
        else:
            features = head.head(_align(head.roi_extractor, maps, proposals))
            scores, deltas = F.softmax(head.bbox_score(features)), head.bbox_delta(features)
        scores = scores[:, :-1]  # the last is the background
        boxes = _clip(delta2bbox(deltas, proposals, weights), im_shape)
        return self._suppress(boxes.expand([-1, scores.shape[1], 4]), scores)

    def _propose(self, maps: Sequence[Tensor], im_shape: Tensor) -> Tensor:
        """Proposals of the region proposal network: float32 [n, 4], by falling score."""
        head = self.model.rpn_head
        settings = head.test_proposal
        features = head.rpn_feat(maps)
        boxes, scores = [], []
        for feature, anchors in zip(features, self._anchors(features)):  # noqa: B905 (tracing knows no strict)
            level_scores = head.rpn_rois_score(feature)[0].transpose([1, 2, 0]).reshape([-1])
            level_deltas = head.rpn_rois_delta(feature)[0].transpose([1, 2, 0]).reshape([-1, 4])
            chosen = _best(level_scores, settings.pre_nms_top_n)
            level_scores = level_scores.gather(chosen)
            level_boxes = delta2bbox(level_deltas.gather(chosen), anchors.gather(chosen)).reshape([-1, 4])
            level_boxes = _clip(level_boxes.unsqueeze(1), im_shape).squeeze(1)
            sides = level_boxes[:, 2:] - level_boxes[:, :2]
            large = (sides >= max(settings.min_size, 1.0)).all(axis=1)  # as in Paddle's kernel
            level_scores = paddle.where(large, level_scores, paddle.full_like(level_scores, 2 * _LEAST))
            kept = settings.pre_nms_top_n if settings.topk_after_collect else settings.post_nms_top_n
            rows = _nms(level_boxes, level_scores, _LEAST, settings.nms_thresh)
            rows = rows.gather(_best(rows[:, 0], kept))
            boxes.append(rows[:, 1:])
            scores.append(rows[:, 0])
        boxes, scores = paddle.concat(boxes), paddle.concat(scores)
        return boxes.gather(_best(scores, settings.post_nms_top_n))

    def _refine(self, maps: Sequence[Tensor], rois: Tensor, im_shape: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The cascade's stages.

        Returns:
            The input boxes of the last stage, the mean scores [n, classes + 1], and the last stage's deltas.
        """
        head = self.model.bbox_head
        scores = []
        for stage in range(head.num_cascade_stages):
            features = head.head(_align(head.roi_extractor, maps, rois), stage)
            scores.append(F.softmax(head.bbox_score_list[stage](features)))
            deltas = head.bbox_delta_list[stage](features)
            if stage < head.num_cascade_stages - 1:
                rois = _clip(delta2bbox(deltas, rois, head.bbox_weight[stage]), im_shape).reshape([-1, 4])
        return rois, paddle.add_n(scores) / head.num_cascade_stages, deltas

    # ---- shared by both

    def _suppress(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Non-maximum suppression within each class.

        Args:
            boxes: [n, classes, 4].
            scores: [n, classes].

        Returns:
            [m, 6], label, score and box, by falling score.
        """
        nms = self.nms
        parts = []
        # One class at a time: for several, paddle2onnx assumes a fixed number of boxes.
        for label in range(scores.shape[1]):
            class_boxes, class_scores = boxes[:, label], scores[:, label]
            if nms.nms_top_k > 0:
                # Before NMS, because the limit of ONNX's operator applies to its result.
                best = _best(class_scores, nms.nms_top_k)
                class_boxes, class_scores = class_boxes.gather(best), class_scores.gather(best)
            kept = _nms(class_boxes, class_scores, nms.score_threshold, nms.nms_threshold, nms.normalized)
            parts.append(paddle.concat([paddle.full_like(kept[:, :1], label), kept], axis=1))
        rows = paddle.concat(parts)
        return rows.gather(_best(rows[:, 1], nms.keep_top_k if nms.keep_top_k > 0 else _ALL))

    def _to_original(self, found: Tensor, im_shape: Tensor, scale_factor: Tensor) -> Tensor:
        """Boxes [n, 6] in pixels of the original image, clipped to it."""
        size = original_size(im_shape, scale_factor)
        scale = scale_factor.flip([1]).tile([1, 2])  # y, x to x, y, x, y
        boxes = _clip((found[:, 2:] / scale).unsqueeze(1), size).squeeze(1)
        return paddle.concat([found[:, :2], boxes], axis=1)

    def _masks(self, maps: Sequence[Tensor], found: Tensor) -> Tensor:
        """Probabilities, [n, m, m]."""
        head = self.model.mask_head
        features = _align(head.roi_extractor, maps, found[:, 2:])
        if head.share_bbox_feat:
            features = self.model.bbox_head.head(features)
        logits = head.mask_fcn_logits(head.head(features))
        classes, side = logits.shape[1], logits.shape[-1]
        labels = found[:, 0].astype("int64")
        rows = paddle.arange(paddle.shape(labels)[0], dtype="int64") * classes + labels
        return F.sigmoid(logits.reshape([-1, side, side]).gather(rows))


def _refuse_unknown_parts(model: nn.Layer, nms: Any) -> None:
    """Refuse settings of PaddleDetection that are not implemented here.

    Raises:
        UserError: the model has such a setting.
    """
    if model.neck is None:
        raise UserError(f"{type(model).__name__} without a neck cannot be exported; set neck: FPN")
    if type(nms).__name__ != "MultiClassNMS":
        raise UserError(f"{type(nms).__name__} cannot be exported; choose MultiClassNMS")
    head, proposals = (
        getattr(model, "bbox_head", None),
        getattr(getattr(model, "rpn_head", None), "test_proposal", None),
    )
    unknown = {
        "MultiClassNMS.trt": nms.trt,
        "MultiClassNMS.nms_eta": nms.nms_eta != 1,
        "MultiClassNMS.normalized": head is None and not nms.normalized,  # its NMS is in pixels of the original
        "RPNHead.test_proposal.eta": proposals and proposals.eta != 1,
        "RPNHead.test_proposal.pre_nms_top_n": proposals and proposals.pre_nms_top_n <= 0,
        **{f"{type(head).__name__}.{name}": getattr(head, name, False) for name in ("with_pool", "use_cot")},
        "CascadeHead.reg_class_agnostic": not getattr(head, "reg_class_agnostic", True),
    }
    for name in unknown:
        if unknown[name]:
            raise UserError(f"{name} cannot be exported with this value; use the default")


def _double(x: Tensor, scale_factor: float, mode: str) -> Tensor:
    """Upsample NCHW maps by 2 with nearest neighbors."""
    if (scale_factor, mode) != (2.0, "nearest"):
        raise UserError(
            f"FPN interpolates by {scale_factor} and {mode}, which cannot be exported; only 2.0 and nearest can"
        )
    return x.unsqueeze([3, 5]).tile([1, 1, 1, 2, 1, 2]).flatten(4, 5).flatten(2, 3)


# paddle2onnx cannot convert an interpolation by a factor.
_fpn = FunctionType(FPN.forward.__code__, {**FPN.forward.__globals__, "F": namespace(F, interpolate=_double)})


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest of scores [n], by falling score.

    By sorting, because ``paddle.topk`` refuses an empty tensor. Equal scores keep their order, as in ONNX, except with
    PaddlePaddle 2.
    """
    return paddle.argsort(scores, descending=True, **_STABLE)[:count]


def _clip(boxes: Tensor, size: Tensor) -> Tensor:
    """Clip boxes [n, classes, 4] to an image of size [1, 2], height and width."""
    sides = size.flip([1]).tile([1, 2]).unsqueeze(0)
    return paddle.maximum(paddle.minimum(boxes, sides), paddle.zeros_like(boxes))


def _nms(boxes: Tensor, scores: Tensor, least: float, overlap: float, normalized: bool = True) -> Tensor:
    """Non-maximum suppression: [m, 5], score and box, in undefined order.

    Args:
        boxes: [n, 4].
        scores: [n].
        least: boxes with lower scores are dropped.
        overlap: intersection over union above which the box with the lower score is dropped.
        normalized: False includes the pixels at both ends in widths and heights.
    """
    settings = {
        "score_threshold": least,
        "nms_top_k": _ALL,
        "keep_top_k": -1,  # with a number, the converted graph fails if one box is left
        "nms_threshold": overlap,
        "normalized": normalized,
        "nms_eta": 1.0,
        "background_label": -1,
    }
    boxes, scores = boxes.unsqueeze(0), scores.reshape([1, 1, -1])
    if paddle.in_dynamic_mode() or paddle.__version__.startswith("2."):
        rows = ops.multiclass_nms(boxes, scores, **settings)[0]
    else:
        # PaddleDetection's function can only build the graphs of Paddle before version 3.
        rows = paddle._C_ops.multiclass_nms3(boxes, scores, None, *settings.values())[0]
    return rows.reshape([-1, 6])[:, 1:]


def _align(extractor: Any, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Features of boxes [n, 4], each from the level of the pyramid for its size (FPN, arXiv 1612.03144, eq. 1)."""
    if extractor.aligned:
        boxes, is_used = replace_empty_boxes(boxes, LEAST_SIDE)
    sides = boxes[:, 2:] - boxes[:, :2]
    size = paddle.sqrt(sides[:, 0] * sides[:, 1]) / extractor.canonical_size + 1e-8
    lowest, highest = extractor.start_level, extractor.end_level
    # Not by a logarithm, which runtimes round differently: one level up for each bound that is reached.
    bounds = [2.0 ** (level + 2 - extractor.canconical_level) for level in range(lowest + 1, highest + 1)]
    levels = sum(((size >= bound).astype("int64") for bound in bounds), paddle.full_like(size, lowest, "int64"))
    # Each level gets an extra first box, because PaddlePaddle 2 cannot gather with empty indices.
    boxes = paddle.concat([paddle.to_tensor([[0.0, 0.0, 1.0, 1.0]]), boxes])
    features, places = [], []
    for level in range(lowest, highest + 1):
        here = paddle.nonzero(paddle.concat([paddle.full([1], level, "int64"), levels]) == level).reshape([-1])
        scale = extractor.spatial_scale[level]
        features.append(_align_in(maps[level], boxes.gather(here), extractor, scale, extractor.sampling_ratio))
        places.append(here)
    order = paddle.argsort(paddle.concat(places))  # the extra boxes come first
    features = paddle.concat(features).gather(order[highest + 1 - lowest :])
    return features * is_used.astype(features.dtype) if extractor.aligned else features


def _align_in(feature: Tensor, boxes: Tensor, extractor: Any, scale: float, sampling_ratio: int) -> Tensor:
    if not extractor.aligned:
        # The same in the aligned form, the only one that paddle2onnx converts: boxes of at least one position of the
        # map, shifted by half a position.
        start = boxes[:, :2]
        boxes = paddle.concat([start, start + paddle.clip(boxes[:, 2:] - start, min=1 / scale)], axis=1) + 0.5 / scale
    count = paddle.shape(boxes)[:1].astype("int32")
    return paddle.vision.ops.roi_align(feature, boxes, count, extractor.resolution, scale, sampling_ratio, True)
