"""What the configuration inside the weights of a segmenter may say, see :mod:`common.training.allowed`.

The components are those of PaddleSeg 2.8.0 and ours. They load files named ``pretrained`` only, which
:func:`semantic_segmentation.components.build_model` leaves out.
"""

from common.data.channel_image import MAX_CHANNELS
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

__all__ = ["ALLOWED"]

_BACKBONES = {"PaleTransformer": BACKBONE}
_WIDTH, _SIDE = integer(1, 1024), integer(1, 4096)  # channels, pixels
_INDICES, _SIDES = list_of(integer(-4, 3)), list_of(_SIDE)
_EVERY_MODEL: dict[str, Kind] = {
    "backbone": component(_BACKBONES, "type"),
    "num_classes": integer(1, 10_000),
    "align_corners": flag,
    "pretrained": not_read,  # the weights of the file take its place
}
_MODELS: dict[str, dict[str, Kind]] = {
    "PaleUPerNet": {
        "channels": _WIDTH,
        "aux_channels": _WIDTH,
        "pool_sizes": list_of(integer(1, 64)),
        "dropout": number(0, 1),
        "aux_in_index": integer(0, 3),
    },
    "UPerNet": {
        "backbone_indices": _INDICES,
        "channels": _WIDTH,
        "enable_auxiliary_loss": flag,
        "dropout_prob": number(0, 1),
    },
    "SegFormer": {"embedding_dim": _WIDTH},
    "DeepLabV3": {
        "backbone_indices": _INDICES,
        "aspp_ratios": list_of(integer(1, 64)),
        "aspp_out_channels": _WIDTH,
    },
    "DeepLabV3P": {
        "backbone_indices": _INDICES,
        "aspp_ratios": list_of(integer(1, 64)),
        "aspp_out_channels": _WIDTH,
        "data_format": word("NCHW"),
    },
    "PSPNet": {
        "backbone_indices": _INDICES,
        "pp_out_channels": _WIDTH,
        "bin_sizes": list_of(integer(1, 64)),
        "enable_auxiliary_loss": flag,
    },
    "FCN": {
        "backbone_indices": _INDICES,
        "channels": either(nothing, _WIDTH),
        "bias": flag,
        "data_format": word("NCHW"),
    },
}
_TRANSFORMS: dict[str, dict[str, Kind]] = {
    "Normalize": {
        "mean": list_of(number(-1e6, 1e6), MAX_CHANNELS),
        "std": list_of(number(1e-6, 1e6), MAX_CHANNELS),
    },
    "Padding": {
        "target_size": _SIDES,
        "im_padding_value": number(-1000, 1000),
        "label_padding_value": integer(0, 65535),
    },
    "Resize": {
        "target_size": _SIDES,
        "keep_ratio": flag,
        "size_divisor": either(nothing, integer(1, 1024)),
        "interp": word("NEAREST", "LINEAR", "CUBIC", "AREA", "LANCZOS4"),
    },
    "ResizeByLong": {"long_size": _SIDE},
    "ResizeByShort": {"short_size": _SIDE, "max_size": number(1, 1e10)},
    "LimitLong": {"max_long": either(nothing, _SIDE), "min_long": either(nothing, _SIDE)},
}
_SCALE = number(0.1, 4)
ALLOWED: dict[str, Kind] = {
    "model": component({name: {**_EVERY_MODEL, **arguments} for name, arguments in _MODELS.items()}, "type"),
    "val_dataset": section({"transforms": list_of(component(_TRANSFORMS, "type"))}, others=not_read),
    "test_config": section(
        {
            "is_slide": flag,
            "crop_size": _SIDES,
            "stride": list_of(integer(16, 4096)),
            "aug_eval": flag,
            "scales": either(_SCALE, list_of(_SCALE)),
            "flip_horizontal": flag,
            "flip_vertical": flag,
        }
    ),
    **dict.fromkeys(("train_dataset", "loss", "optimizer", "lr_scheduler"), not_read),
}
