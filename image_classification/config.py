"""The configuration of image classification: its own keys, flags and checks."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from common.data.preprocessing import Preprocessing
from common.errors import UserError
from common.training.allowed import Kind, integer, list_of, number
from common.training.config import MAX_SIDE, Flag, TaskConfig, require, shared_config
from image_classification.label_map_alignment import TOKEN_STRIDE

__all__ = ["ALLOWED", "CONFIG", "check_token_labels", "default_config", "model_title"]

_CLASS_WEIGHTS = ("", "balanced", "effective")  # choices of DATA.CLASS_WEIGHTS


def default_config() -> CfgNode:
    """All keys with their default values."""
    config = shared_config()

    config.DATA.DATASET = "imagenet2012"  # imagenet2012, folder, idx, mnist, fashion_mnist or mnist5k
    config.DATA.DATA_PATH = ""  # may be empty for mnist5k, which comes with the set-up
    config.DATA.BATCH_SIZE = 128  # images per batch and rank
    config.DATA.BATCH_SIZE_EVAL = 128
    imagenet = Preprocessing()
    config.DATA.IMAGE_SIZE = imagenet.image_size
    config.DATA.CROP_PCT = imagenet.crop_pct  # evaluation: side of the center crop / shorter side of the resized image
    config.DATA.INTERPOLATION = imagenet.interpolation
    config.DATA.MEAN = imagenet.mean
    config.DATA.STD = imagenet.std
    config.DATA.CLASS_WEIGHTS = ""  # in the loss: balanced (1 / images), effective (1 / effective number), or none
    config.DATA.BALANCED_SAMPLING = False  # every class has equally many images in an epoch, some of them repeated
    config.DATA.CLASS_SUBSET = False  # with EVAL: of the model's classes, only those that the data has compete
    config.DATA.LABELS_JSON = ""  # with EVAL: file with the valid labels of each image, such as ReaL's real.json
    config.DATA.SKIP_BROKEN = False  # count and replace unreadable images instead of stopping

    config.AUG = CfgNode()
    config.AUG.CROP_SCALE = [0.08, 1.0]  # random resized crop: fraction of the image's area
    config.AUG.CROP_RATIO = [3 / 4, 4 / 3]
    config.AUG.FLIP = 0.5
    config.AUG.ROTATION = 0.0  # degrees to either side
    config.AUG.RAND_AUGMENT = ""  # such as rand-m9-mstd0.5-inc1
    config.AUG.COLOR_JITTER = 0.0  # used where RAND_AUGMENT is empty
    config.AUG.ERASING = 0.0
    config.AUG.REPEATS = 1  # repeated augmentation: copies of an image in an epoch
    config.AUG.MIXUP = 0.0  # alpha; 0 is off
    config.AUG.CUTMIX = 0.0
    config.AUG.MIX_PROB = 1.0  # fraction of the batches that are mixed
    config.AUG.MIX_SWITCH_PROB = 0.5  # fraction of CutMix if both are on
    config.AUG.LABEL_SMOOTHING = 0.0

    config.TOKEN_LABEL = CfgNode()
    config.TOKEN_LABEL.MAPS = ""  # folder that tools/make_label_maps.py made; empty trains without token labels
    config.TOKEN_LABEL.WEIGHT = 0.5  # weight of the tokens' loss
    config.TOKEN_LABEL.MIX_TOKEN = 1.0  # alpha; 0 is off
    config.TOKEN_LABEL.CLASS_FROM_MAP = False  # the image's class is that of its crop's label map, not the data set's

    config.MODEL.NAME = "pale_tiny"
    config.MODEL.NUM_CLASSES = 0  # 0: as many as the data set has
    config.MODEL.ATTENTION = "pale"  # pale, axial, cross, window or global: which tokens attend to each other
    config.MODEL.PALE_SIZE = []  # rows and columns in a group: one number, or one per stage; [] is the model's default
    config.MODEL.PARALLEL = True  # rows and columns in every block; False: rows in one block, columns in the next
    config.MODEL.POSITION_ENCODING = "cpe"  # cpe, absolute, relative or none
    config.MODEL.NUM_HEADS = []  # of each stage, for rows and columns together; [] is the model's default
    config.MODEL.STAGE_NORMS = True  # LayerNorm after each patch merging and before the pooling
    config.MODEL.DROP_PATH = 0.0
    config.MODEL.RECOMPUTE = False  # less memory, more time

    config.TRAIN.EPOCHS = 300
    config.TRAIN.LAST_EPOCH = -1  # with RESUME: continue after this epoch instead of the checkpoint's own
    config.TRAIN.WARMUP_EPOCHS = 20.0
    config.TRAIN.BASE_LR = 1e-3
    config.TRAIN.WARMUP_LR = 1e-6
    config.TRAIN.END_LR = 1e-5
    config.TRAIN.LINEAR_SCALED_LR = 0  # batch size that the three rates are meant for; 0 does not scale them
    config.TRAIN.WEIGHT_DECAY = 0.05
    config.TRAIN.BETAS = [0.9, 0.999]
    config.TRAIN.GRAD_CLIP = 5.0

    config.CHECKPOINT_EVERY = 10
    return config


_FLAGS = {
    "dataset": Flag(
        ("DATA.DATASET",),
        str,
        "kind of data set: imagenet2012 (or list), folder, idx, mnist, fashion_mnist, mnist5k",
        "data",
        "KIND",
    ),
    "data_path": Flag(("DATA.DATA_PATH",), str, "folder of the data set", "data", "FOLDER"),
    "image_size": Flag(("DATA.IMAGE_SIZE",), int, "side of the square input in pixels", "data"),
    "batch_size": Flag(("DATA.BATCH_SIZE",), int, "training images per batch and rank", "data"),
    "batch_size_eval": Flag(("DATA.BATCH_SIZE_EVAL",), int, "evaluation images per batch and rank", "data"),
    "num_classes": Flag(("MODEL.NUM_CLASSES",), int, "number of classes (default: that of the data)", "data"),
    "epochs": Flag(("TRAIN.EPOCHS",), int, "number of epochs", "training"),
    "lr": Flag(
        ("TRAIN.BASE_LR",),
        float,
        "highest learning rate; scaled with the batch if TRAIN.LINEAR_SCALED_LR is set",
        "training",
        "RATE",
    ),
    "label_maps": Flag(
        ("TOKEN_LABEL.MAPS",), str, "folder of label maps, to train with token labels", "training", "FOLDER"
    ),
    "last_epoch": Flag(
        ("TRAIN.LAST_EPOCH",), int, "with -resume: continue after this epoch, from 1", "weights and output"
    ),
}

_FREE_KEYS = """
    DATA.DATA_PATH DATA.BATCH_SIZE_EVAL MODEL.RECOMPUTE
    TRAIN.EPOCHS DATA.BATCH_SIZE AUG.REPEATS
"""


_INPUT_KEYS = """
    DATA.IMAGE_SIZE DATA.CROP_PCT DATA.INTERPOLATION DATA.MEAN DATA.STD
"""


def _check(config: CfgNode) -> None:
    """Reject impossible values; the model and the transforms check their own."""
    positive = "DATA.BATCH_SIZE DATA.BATCH_SIZE_EVAL TRAIN.EPOCHS TRAIN.BASE_LR AUG.REPEATS"
    require(config, positive, lambda value: value > 0, "must be greater than 0")
    not_negative = (
        "MODEL.NUM_CLASSES TRAIN.WARMUP_EPOCHS TRAIN.WARMUP_LR TRAIN.END_LR TRAIN.LINEAR_SCALED_LR TRAIN.WEIGHT_DECAY "
        "AUG.MIXUP AUG.CUTMIX TOKEN_LABEL.WEIGHT TOKEN_LABEL.MIX_TOKEN"
    )
    require(config, not_negative, lambda value: value >= 0, "must not be negative")
    require(config, "TRAIN.EPOCHS TRAIN.WARMUP_EPOCHS", lambda value: value <= 1e6, "must be at most 1,000,000")
    require(config, "DATA.CROP_PCT", lambda value: 0.1 <= value <= 1, "must be between 0.1 and 1")
    fractions = "AUG.MIX_PROB AUG.MIX_SWITCH_PROB AUG.LABEL_SMOOTHING"
    require(config, fractions, lambda value: 0 <= value <= 1, "must be between 0 and 1")
    require(config, "TRAIN.BETAS", lambda value: all(0 <= beta < 1 for beta in value), "must be two numbers in [0, 1)")
    require(config, "MODEL.PALE_SIZE", lambda sizes: len(sizes) in (0, 1, 4), "must be a list of one number or of four")
    require(config, "MODEL.NUM_HEADS", lambda heads: len(heads) in (0, 4), "must be a list of four numbers")
    require(config, "DATA.CLASS_WEIGHTS", lambda value: value in _CLASS_WEIGHTS, "must be balanced, effective or ''")
    if config.DATA.CLASS_WEIGHTS and config.DATA.BALANCED_SAMPLING:
        raise UserError("DATA.CLASS_WEIGHTS and DATA.BALANCED_SAMPLING would balance the classes twice; choose one")
    sides = f"must be at least 32, the largest stride, and at most {MAX_SIDE}"
    require(config, "DATA.IMAGE_SIZE", lambda value: 32 <= value <= MAX_SIDE, sides)
    require(
        config,
        "TRAIN.LAST_EPOCH",
        lambda value: value >= -1,
        "must be an epoch, or -1 to continue where the checkpoint is",
    )
    for key in ("CLASS_SUBSET", "LABELS_JSON"):
        if config.DATA[key] and not config.EVAL:
            raise UserError(f"DATA.{key} is {config.DATA[key]}; it needs -eval")
    if config.TRAIN.LAST_EPOCH >= 0 and not config.RESUME:
        raise UserError("-last_epoch selects the epoch to continue after; it needs -resume")


# What the configuration inside weights may say, see common/training/allowed.py.
ALLOWED: dict[str, Kind] = {
    "DATA.NUM_WORKERS": integer(0, 64),
    "DATA.BATCH_SIZE_EVAL": integer(1, 1024),
    "DATA.IMAGE_SIZE": integer(32, 1024),
    "DATA.CROP_PCT": number(0.1, 1),
    "DATA.MEAN": list_of(number(-1000, 1000)),
    "DATA.STD": list_of(number(1e-6, 1000)),
    "MODEL.PALE_SIZE": list_of(integer(1, 1024)),
    "MODEL.NUM_HEADS": list_of(integer(1, 1024)),
    "MODEL.DROP_PATH": number(0, 1),
}


CONFIG = TaskConfig(
    default_file=Path(__file__).parent / "configs" / "pale_nano_mnist5k.yaml",
    defaults=default_config,
    flags=_FLAGS,
    check=_check,
    free_keys=frozenset(_FREE_KEYS.split()),
    invocation_keys=frozenset({"TRAIN.LAST_EPOCH", "DATA.CLASS_SUBSET", "DATA.LABELS_JSON"}),
    allowed=ALLOWED,
    machine_keys=frozenset({"DATA.DATA_PATH", "DATA.LABELS_JSON", "TOKEN_LABEL.MAPS"}),
    input_keys=tuple(_INPUT_KEYS.split()),
    kind_keys=("DATA.DATASET",),
    own_data="finetune_folder_cpu.yaml",
)


def check_token_labels(config: CfgNode) -> None:
    """Check the settings for training with token labels; evaluation and prediction do not need this.

    Raises:
        UserError: Mixup, CutMix or class weights are on, or tokens would not divide the image evenly.
    """
    require(config, "AUG.MIXUP AUG.CUTMIX", lambda value: value == 0, "must be 0: MixToken takes its place")
    unweighted = "must be '' with token labels, whose classes are those of the maps; DATA.BALANCED_SAMPLING works"
    require(config, "DATA.CLASS_WEIGHTS", lambda value: not value, unweighted)
    whole = f"must be a multiple of {TOKEN_STRIDE} with token labels, so that tokens divide the image evenly"
    require(config, "DATA.IMAGE_SIZE", lambda value: value % TOKEN_STRIDE == 0, whole)


def model_title(config: CfgNode) -> str:
    """The variant, and the keys that change it: ``pale_tiny`` or ``pale_tiny ATTENTION=axial``."""
    default = default_config().MODEL
    # These do not change the model's function.
    ignored = "NAME", "NUM_CLASSES", "PRETRAINED", "WEIGHTS", "DROP_PATH", "RECOMPUTE"
    changes = [f"{key}={value}" for key, value in config.MODEL.items() if key not in ignored and value != default[key]]
    return " ".join([config.MODEL.NAME, *changes])
