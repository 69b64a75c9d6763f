"""The configuration: defaults here, then a yaml file and its ``BASE``, then flags, then ``-opts``."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from common.entry_point import ArgumentParser
from common.errors import UserError

__all__ = ["DEFAULT_CONFIG", "add_config_flags", "config_from_text", "default_config", "differences", "load_config"]

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "pale_nano_mnist5k.yaml"


def default_config() -> CfgNode:
    """Every key there is, with the value that holds where a file does not say otherwise."""
    config = CfgNode()
    config.BASE = ""  # another yaml file, relative to this one, whose values this one overrides

    config.DATA = CfgNode()
    config.DATA.DATASET = "imagenet2012"  # imagenet2012, folder, idx, mnist, fashion_mnist or mnist5k
    config.DATA.DATA_PATH = ""  # empty only for mnist5k, which comes with the set-up
    config.DATA.BATCH_SIZE = 128  # images in a batch on each rank
    config.DATA.BATCH_SIZE_EVAL = 128
    config.DATA.IMAGE_SIZE = 224
    config.DATA.CROP_PCT = 0.875  # evaluation: the centre crop's side over the resized image's shorter side
    config.DATA.INTERPOLATION = "bicubic"
    config.DATA.MEAN = [0.485, 0.456, 0.406]
    config.DATA.STD = [0.229, 0.224, 0.225]
    config.DATA.NUM_WORKERS = 4  # processes that read images, on each rank; 0 reads in the training process
    config.DATA.SKIP_BROKEN = False  # count and replace unreadable images instead of stopping

    config.AUG = CfgNode()
    config.AUG.CROP_SCALE = [0.08, 1.0]  # random resized crop: share of the image's area
    config.AUG.CROP_RATIO = [3 / 4, 4 / 3]
    config.AUG.FLIP = 0.5
    config.AUG.ROTATION = 0.0  # degrees to either side
    config.AUG.RAND_AUGMENT = ""  # such as rand-m9-mstd0.5-inc1
    config.AUG.COLOR_JITTER = 0.0  # used where RAND_AUGMENT is empty
    config.AUG.ERASING = 0.0
    config.AUG.REPEATS = 1  # repeated augmentation: times an image stands in an epoch
    config.AUG.MIXUP = 0.0  # alpha; 0 is off
    config.AUG.CUTMIX = 0.0
    config.AUG.MIX_PROB = 1.0  # share of the batches that are mixed
    config.AUG.MIX_SWITCH_PROB = 0.5  # share of CutMix where both are on
    config.AUG.LABEL_SMOOTHING = 0.0

    config.MODEL = CfgNode()
    config.MODEL.NAME = "pale_tiny"
    config.MODEL.NUM_CLASSES = 0  # 0 takes the data set's
    config.MODEL.DROP_PATH = 0.0
    config.MODEL.PRETRAINED = ""  # weights to start from, or to evaluate
    config.MODEL.RECOMPUTE = False  # less memory, more time

    config.TRAIN = CfgNode()
    config.TRAIN.EPOCHS = 300
    config.TRAIN.LAST_EPOCH = -1  # with RESUME: continue after this epoch instead of the checkpoint's own
    config.TRAIN.WARMUP_EPOCHS = 20.0
    config.TRAIN.BASE_LR = 1e-3
    config.TRAIN.WARMUP_LR = 1e-6
    config.TRAIN.END_LR = 1e-5
    config.TRAIN.LINEAR_SCALED_LR = 0  # batch that the three rates are meant for; 0 takes them as they are
    config.TRAIN.WEIGHT_DECAY = 0.05
    config.TRAIN.BETAS = [0.9, 0.999]
    config.TRAIN.LAYER_DECAY = 1.0
    config.TRAIN.GRAD_CLIP = 5.0  # limit of the global norm; 0 is off
    config.TRAIN.ACCUM_ITER = 1  # batches that make one optimizer step
    config.TRAIN.AMP = ""  # float16, bfloat16 or empty for float32
    config.TRAIN.EMA_DECAY = 0.0  # 0 is off
    config.TRAIN.SKIP_NONFINITE = 0  # steps in a row whose loss may be NaN or infinite before training stops

    config.VALIDATE_EPOCHS = 1  # epochs between two evaluations
    config.SAVE_EPOCHS = 10  # epochs between two checkpoints that are kept
    config.SAVE_STEPS = 0  # optimizer steps between two writes of latest.pdparams inside an epoch; 0: after epochs only
    config.KEEP_CHECKPOINTS = 3
    config.LOG_INTERVAL = 50  # optimizer steps between two lines
    config.OUTPUT = "output/classification"
    config.RESUME = ""  # a training state (latest.pdparams of an earlier run), or auto for OUTPUT's own if there is one
    config.EVAL = False  # only evaluate
    config.SEED = 0
    config.DEVICE = ""  # cpu, gpu, gpu:N, or empty for what there is
    return config


# flag -> (key, type, help); the switches stand in add_config_flags
_FLAGS = {
    "dataset": (
        "DATA.DATASET",
        str,
        "kind of data set: imagenet2012 (or list), folder, idx, mnist, fashion_mnist, mnist5k",
    ),
    "data_path": ("DATA.DATA_PATH", str, "folder of the data set"),
    "batch_size": ("DATA.BATCH_SIZE", int, "images in a training batch on each rank"),
    "batch_size_eval": ("DATA.BATCH_SIZE_EVAL", int, "images in an evaluation batch on each rank"),
    "image_size": ("DATA.IMAGE_SIZE", int, "side of the square input in pixels"),
    "accum_iter": ("TRAIN.ACCUM_ITER", int, "batches whose gradients make one optimizer step"),
    "pretrained": (
        "MODEL.PRETRAINED",
        str,
        "weights to start from, or to evaluate: a file, https://...#sha256=..., or a released tag",
    ),
    "resume": ("RESUME", str, "training state to continue from, or auto: that of -output if there is one"),
    "last_epoch": ("TRAIN.LAST_EPOCH", int, "with -resume: continue after this epoch, from 1"),
    "output": ("OUTPUT", str, "folder for checkpoints and logs"),
    "device": ("DEVICE", str, "cpu, gpu or gpu:N (default: what Paddle was compiled for and finds)"),
    "seed": ("SEED", int, "seed of every random number"),
}


def add_config_flags(parser: ArgumentParser) -> None:
    """Add PaddleViT's flags, which override the configuration, and ``-cfg``, ``-opts``, ``-debug``."""
    parser.add_flag("cfg", default=str(DEFAULT_CONFIG), metavar="YAML", help="configuration (default: %(default)s)")
    for flag, (key, kind, text) in _FLAGS.items():
        parser.add_flag(flag, type=kind, help=f"{text} [{key}]")
    parser.add_flag("eval", action="store_true", help="only evaluate -pretrained (or -resume) [EVAL]")
    parser.add_flag(
        "amp",
        nargs="?",
        const="float16",
        choices=("float16", "bfloat16"),
        help="mixed precision, float16 unless bfloat16 is said [TRAIN.AMP]",
    )
    parser.add_flag("opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...: any other key; comes last")
    parser.add_flag("debug", action="store_true", help="show the traceback of an error")


def load_config(arguments: argparse.Namespace) -> CfgNode:
    """Merge defaults, files, flags and ``-opts``, check the values, and freeze the result.

    Raises:
        UserError: a file is missing or no yaml, a key is unknown, a value has a wrong type or is impossible.
    """
    config = default_config()
    _merge_file(config, Path(arguments.cfg).expanduser(), ())
    for flag, (key, _, _) in _FLAGS.items():
        value = getattr(arguments, flag, None)
        if value is not None:
            _set(config, key, value, f"-{flag}")
    if getattr(arguments, "amp", None):
        config.TRAIN.AMP = arguments.amp
    if getattr(arguments, "eval", False):
        config.EVAL = True
    options = [option for option in arguments.opts if option not in ("-debug", "--debug")]
    if len(options) % 2:
        raise UserError(f"-opts takes pairs of KEY VALUE; {options[-1]!r} stands alone")
    for key, text in zip(options[::2], options[1::2], strict=True):
        _set(config, key, _parse(text), "-opts")
    _check(config)
    config.freeze()
    return config


def config_from_text(text: str, source: str) -> CfgNode:
    """Read back the configuration that a checkpoint carries.

    Raises:
        UserError: it is not one of this version's.
    """
    try:
        values = yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError) as error:
        raise UserError(f"{source} carries a damaged configuration: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source} carries a {type(values).__name__} in place of a configuration")
    config = default_config()
    _merge_mapping(config, values, source, "")
    _check(config)
    config.freeze()
    return config


# What may differ between a run and its continuation without changing a single weight; the last line is what the trainer
# compares itself.
_FREE_KEYS = """
    BASE OUTPUT RESUME EVAL DEVICE LOG_INTERVAL KEEP_CHECKPOINTS SAVE_EPOCHS SAVE_STEPS VALIDATE_EPOCHS DATA.DATA_PATH
    DATA.NUM_WORKERS DATA.BATCH_SIZE_EVAL MODEL.PRETRAINED MODEL.RECOMPUTE TRAIN.LAST_EPOCH
    TRAIN.EPOCHS DATA.BATCH_SIZE TRAIN.ACCUM_ITER SEED AUG.REPEATS
"""


def differences(then: CfgNode, now: CfgNode) -> list[str]:
    """``KEY: value then, value now`` for each key that differs and has a part in the weights."""
    return [
        f"{key}: {_find(then, key)} then, {_find(now, key)} now"
        for key in _keys(now)
        if key not in _FREE_KEYS.split() and _find(then, key) != _find(now, key)
    ]


def _merge_file(config: CfgNode, path: Path, including: tuple[Path, ...]) -> None:
    """Merge a yaml file, its BASE first."""
    path = path.resolve()
    if path in including:
        raise UserError(f"{path} is its own BASE, by way of {including[-1]}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing -cfg") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no yaml file: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not keys and values")
    base = values.pop("BASE", "")
    if base:
        _merge_file(config, path.parent / str(base), (*including, path))
    _merge_mapping(config, values, str(path), "")


def _merge_mapping(config: CfgNode, values: Mapping[str, Any], source: str, prefix: str) -> None:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(config_node := _find(config, name), CfgNode) and isinstance(value, dict):
            _merge_mapping(config, value, source, f"{name}.")
        elif config_node is None:
            raise UserError(f"{source}: unknown key {name}{_similar(config, name)}")
        else:
            _set(config, name, value, source)


def _find(config: CfgNode, key: str) -> Any:
    """The value of a dotted key, or None."""
    node = config
    for part in str(key).split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return node


def _set(config: CfgNode, key: str, value: Any, source: str) -> None:
    """Set a dotted key to a value of the type of its default."""
    old = _find(config, key)
    if old is None:
        raise UserError(f"{source}: unknown key {key}{_similar(config, key)}")
    node = _find(config, key.rpartition(".")[0]) if "." in key else config
    node[key.rpartition(".")[2]] = _coerce(value, old, key, source)


def _coerce(value: Any, old: Any, key: str, source: str) -> Any:
    """Return ``value`` as the type of ``old``: yaml reads 1e-3 as a string and 5 as an integer."""
    if isinstance(old, float) and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            pass
    elif isinstance(old, list) and isinstance(value, (list, tuple)) and len(value) == len(old):
        return [_coerce(item, default, key, source) for item, default in zip(value, old, strict=True)]
    elif isinstance(old, str) and value is None:
        return ""
    elif type(value) is type(old) and not isinstance(old, (CfgNode, list)):
        return value
    wanted = f"a list of {len(old)} numbers" if isinstance(old, list) else f"of type {type(old).__name__}"
    raise UserError(f"{source}: {key} is {value!r}; it must be {wanted}")


def _parse(text: str) -> Any:
    """Read a command-line value as yaml would, so that lists, numbers and booleans work."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _keys(node: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys."""
    return [
        full
        for name, value in node.items()
        for full in (_keys(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"])
    ]


def _similar(config: CfgNode, key: str) -> str:
    """A hint for a mistyped key."""
    known = {name.upper(): name for name in _keys(config)}
    close = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def _check(config: CfgNode) -> None:
    """Reject values that no run can use. What the model and the transforms check themselves is left to them."""
    positive = (
        "DATA.BATCH_SIZE DATA.BATCH_SIZE_EVAL TRAIN.EPOCHS TRAIN.ACCUM_ITER TRAIN.BASE_LR TRAIN.LAYER_DECAY "
        "AUG.REPEATS VALIDATE_EPOCHS SAVE_EPOCHS LOG_INTERVAL"
    )
    not_negative = (
        "DATA.NUM_WORKERS MODEL.NUM_CLASSES TRAIN.WARMUP_EPOCHS TRAIN.WARMUP_LR TRAIN.END_LR TRAIN.LINEAR_SCALED_LR "
        "TRAIN.WEIGHT_DECAY TRAIN.GRAD_CLIP AUG.MIXUP AUG.CUTMIX KEEP_CHECKPOINTS SAVE_STEPS TRAIN.SKIP_NONFINITE SEED"
    )
    fractions = "AUG.MIX_PROB AUG.MIX_SWITCH_PROB AUG.LABEL_SMOOTHING"
    for key in positive.split():
        _require(config, key, lambda value: value > 0, "must be greater than 0")
    for key in not_negative.split():
        _require(config, key, lambda value: value >= 0, "must not be negative")
    for key in fractions.split():
        _require(config, key, lambda value: 0 <= value <= 1, "must be between 0 and 1")
    _require(config, "TRAIN.EMA_DECAY", lambda value: 0 <= value < 1, "must be at least 0 and less than 1")
    _require(config, "TRAIN.BETAS", lambda value: all(0 <= beta < 1 for beta in value), "must be two numbers in [0, 1)")
    if config.TRAIN.LAST_EPOCH >= 0 and not config.RESUME:
        raise UserError("-last_epoch says after which epoch to go on; it needs -resume")
    _require(config, "DATA.IMAGE_SIZE", lambda value: value >= 32, "must be at least 32, the largest stride")
    _require(config, "TRAIN.AMP", lambda value: value in ("", "float16", "bfloat16"), "must be float16, bfloat16 or ''")
    _require(config, "TRAIN.LAST_EPOCH", lambda value: value >= -1, "must be an epoch, or -1 for the checkpoint's own")


def _require(config: CfgNode, key: str, holds, rule: str) -> None:
    value = _find(config, key)
    if not holds(value):
        raise UserError(f"{key} is {value!r}; it {rule}")
