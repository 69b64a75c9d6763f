"""What the configuration inside the weights of a detector may say, see :mod:`common.training.allowed`.

The components are those of PaddleDetection 2.6.0 and ours. They load files named ``pretrained`` only, which
:func:`object_detection.components.build_model` leaves out.
"""

from common.training.allowed import (
    BACKBONE,
    Kind,
    component,
    either,
    flag,
    integer,
    list_of,
    not_read,
    nothing,
    number,
    section,
    word,
)

__all__ = ["ALLOWED", "NOT_THE_MODEL"]

# Sections that no model refers to.
NOT_THE_MODEL = (
    *("TrainDataset", "EvalDataset", "TestDataset", "TrainReader", "EvalReader", "TestReader"),
    *("LearningRate", "OptimizerBuilder"),
)

_COUNT, _SAMPLES = integer(-1, 20_000), integer(1, 20_000)  # of boxes
_WIDTH, _RESOLUTION, _LAYERS = integer(1, 512), integer(1, 28), integer(0, 8)
_SHARE, _FACTOR = number(0, 1), number(0, 1000)
_FACTORS = list_of(_FACTOR, 8)
_NORM = either(nothing, word("bn", "sync_bn", "gn"))

_ANCHORS: dict[str, Kind] = {
    "aspect_ratios": list_of(number(0.01, 100), 4),
    "strides": list_of(number(1, 1024), 8),
    "variance": _FACTORS,
    "offset": _SHARE,
}
_PROPOSALS: dict[str, Kind] = {
    "pre_nms_top_n": _SAMPLES,
    "post_nms_top_n": _SAMPLES,
    "nms_thresh": _SHARE,
    "min_size": _FACTOR,
    "eta": _SHARE,
    "topk_after_collect": flag,
}
_ROI_ALIGN: dict[str, Kind] = {
    "resolution": _RESOLUTION,
    "spatial_scale": _SHARE,
    "sampling_ratio": integer(0, 8),
    "canconical_level": integer(2, 6),
    "canonical_size": integer(1, 4096),
    "start_level": integer(0, 6),
    "end_level": integer(0, 6),
    "aligned": flag,
}
_TOWER: dict[str, Kind] = {
    "feat_in": _WIDTH,
    "feat_out": _WIDTH,
    "num_convs": _LAYERS,
    "norm_type": _NORM,
    "use_dcn": flag,
}
_BOX_HEAD: dict[str, Kind] = {"in_channel": _WIDTH, "out_channel": integer(1, 2048), "resolution": integer(1, 14)}
# Components that name no others; they are sections, or stand in the place where they are used.
_PARTS: dict[str, dict[str, Kind]] = {
    "BBoxAssigner": {
        "batch_size_per_im": _SAMPLES,
        "fg_fraction": _SHARE,
        "fg_thresh": _SHARE,
        "bg_thresh": _SHARE,
        "ignore_thresh": number(-1, 1),
        "use_random": flag,
        "cascade_iou": list_of(_SHARE, 8),
    },
    "FCOSFeat": _TOWER,
    "FCOSLoss": {
        "loss_alpha": _FACTOR,
        "loss_gamma": _FACTOR,
        "iou_loss_type": word("linear_iou", "giou", "iou"),
        "reg_weights": _FACTOR,
        "quality": word("centerness", "iou"),
    },
    "FocalLoss": {"use_sigmoid": flag, "alpha": _FACTOR, "gamma": _FACTOR, "loss_weight": _FACTOR},
    "MaskAssigner": {"mask_resolution": integer(1, 112)},
    "MaxIoUAssigner": {"positive_overlap": _SHARE, "negative_overlap": _SHARE, "allow_low_quality": flag},
    "MultiClassNMS": {
        "score_threshold": _SHARE,
        "nms_top_k": _COUNT,
        "keep_top_k": _COUNT,
        "nms_threshold": _SHARE,
        "normalized": flag,
        "nms_eta": _SHARE,
    },
    "RCNNBox": {
        "prior_box_var": _FACTORS,
        "code_type": word("decode_center_size", "encode_center_size"),
        "box_normalized": flag,
    },
    "RetinaAnchorGenerator": {**_ANCHORS, "octave_base_scale": _FACTOR, "scales_per_octave": integer(1, 4)},
    "RetinaFeat": _TOWER,
    "SmoothL1Loss": {"beta": _FACTOR, "loss_weight": _FACTOR},
}


def _part(name: str) -> Kind:
    """A component of ``_PARTS``, by its name or with arguments."""
    return either(word(name), component({name: _PARTS[name]}, "name"))


_RPN: dict[str, Kind] = {
    "backbone": word("PaleTransformer"),
    "neck": either(nothing, word("FPN")),
    "rpn_head": word("RPNHead"),
    "bbox_post_process": word("BBoxPostProcess"),
}
_MASKS: dict[str, Kind] = {
    "mask_head": either(nothing, word("MaskHead")),
    "mask_post_process": either(nothing, word("MaskPostProcess")),
}
_ARCHITECTURES: dict[str, dict[str, Kind]] = {
    "FasterRCNN": {**_RPN, "bbox_head": word("BBoxHead")},
    "MaskRCNN": {**_RPN, **_MASKS, "bbox_head": word("BBoxHead")},
    "CascadeRCNN": {**_RPN, **_MASKS, "bbox_head": word("CascadeHead")},
    "RetinaNet": {"backbone": word("PaleTransformer"), "neck": word("FPN"), "head": word("RetinaHead")},
    "FCOS": {"backbone": word("PaleTransformer"), "neck": word("FPN"), "fcos_head": word("FCOSHead")},
}
_COMPONENTS: dict[str, dict[str, Kind]] = {
    **_ARCHITECTURES,
    **_PARTS,
    "PaleTransformer": {**BACKBONE, "out_indices": list_of(integer(-4, 3), 4)},
    "FPN": {
        "out_channel": _WIDTH,
        "spatial_scales": list_of(_SHARE, 8),
        "has_extra_convs": flag,
        "extra_stage": integer(0, 4),
        "use_c5": flag,
        "norm_type": _NORM,
        "norm_decay": _SHARE,
        "freeze_norm": flag,
        "relu_before_extra_convs": flag,
    },
    "RPNHead": {
        "anchor_generator": section(
            {**_ANCHORS, "anchor_sizes": list_of(either(number(1, 4096), list_of(number(1, 4096), 4)), 8)}
        ),
        "rpn_target_assign": section(
            {
                "batch_size_per_im": _SAMPLES,
                "fg_fraction": _SHARE,
                "positive_overlap": _SHARE,
                "negative_overlap": _SHARE,
                "ignore_thresh": number(-1, 1),
                "use_random": flag,
            }
        ),
        "train_proposal": section(_PROPOSALS),
        "test_proposal": section(_PROPOSALS),
    },
    "BBoxHead": {
        "head": word("TwoFCHead"),
        "roi_extractor": section(_ROI_ALIGN),
        "bbox_assigner": _part("BBoxAssigner"),
        "with_pool": flag,
        "bbox_weight": _FACTORS,
        "loss_normalize_pos": flag,
    },
    "TwoFCHead": _BOX_HEAD,
    "CascadeHead": {
        "head": word("CascadeTwoFCHead"),
        "roi_extractor": section(_ROI_ALIGN),
        "bbox_assigner": _part("BBoxAssigner"),
        "bbox_weight": list_of(_FACTORS, 4),
        "num_cascade_stages": integer(1, 4),
        "reg_class_agnostic": flag,
        "stage_loss_weights": list_of(_FACTOR, 4),
        "loss_normalize_pos": flag,
        "add_gt_as_proposals": list_of(flag, 4),
    },
    "CascadeTwoFCHead": {**_BOX_HEAD, "num_cascade_stage": integer(1, 4)},
    "BBoxPostProcess": {"decode": _part("RCNNBox"), "nms": _part("MultiClassNMS")},
    "MaskHead": {
        "head": word("MaskFeat"),
        "roi_extractor": section(_ROI_ALIGN),
        "mask_assigner": _part("MaskAssigner"),
        "share_bbox_feat": flag,
    },
    "MaskFeat": {"in_channel": _WIDTH, "out_channel": _WIDTH, "num_convs": _LAYERS, "norm_type": _NORM},
    "MaskPostProcess": {"binary_thresh": _SHARE},
    "RetinaHead": {
        "conv_feat": _part("RetinaFeat"),
        "anchor_generator": _part("RetinaAnchorGenerator"),
        "bbox_assigner": _part("MaxIoUAssigner"),
        "loss_class": _part("FocalLoss"),
        "loss_bbox": _part("SmoothL1Loss"),
        "nms": _part("MultiClassNMS"),
        "prior_prob": number(0.001, 0.999),
        "nms_pre": either(nothing, _SAMPLES),
        "weights": _FACTORS,
    },
    "FCOSHead": {
        "fcos_feat": _part("FCOSFeat"),
        "fpn_stride": list_of(integer(1, 1024), 8),
        "prior_prob": number(0.001, 0.999),
        "multiply_strides_reg_targets": flag,
        "norm_reg_targets": flag,
        "centerness_on_reg": flag,
        "num_shift": _SHARE,
        "sqrt_score": flag,
        "fcos_loss": _part("FCOSLoss"),
        "nms": _part("MultiClassNMS"),
    },
}
_MEAN, _STD = list_of(number(-1000, 1000), 3), list_of(number(1e-6, 1000), 3)
_SIDE = integer(1, 4096)  # pixels
_SAMPLE_TRANSFORMS: dict[str, Kind] = {
    "Decode": section({}),
    "NormalizeImage": section({"mean": _MEAN, "std": _STD, "is_scale": flag, "norm_type": word("mean_std", "none")}),
    "Permute": section({}),
    "Resize": section({"target_size": either(_SIDE, list_of(_SIDE, 2)), "keep_ratio": flag, "interp": integer(0, 4)}),
}

ALLOWED: dict[str, Kind] = {
    "architecture": word("", *_ARCHITECTURES),
    "num_classes": integer(0, 10_000),
    **{name: section(arguments) for name, arguments in _COMPONENTS.items()},
    **dict.fromkeys(NOT_THE_MODEL, not_read),
    "EvalReader": section(
        {
            "sample_transforms": list_of(section(_SAMPLE_TRANSFORMS)),
            "batch_transforms": list_of(section({"PadBatch": section({"pad_to_stride": integer(0, 1024)})})),
        },
        others=not_read,
    ),
}
