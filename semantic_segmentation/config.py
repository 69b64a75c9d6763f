"""The configuration of semantic segmentation: PaddleSeg's format, and the keys in capitals that all tasks share.

The keys in small letters are PaddleSeg's: the same file works with PaddleSeg's own tools, which ignore the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from common.data.channel_image import MAX_CHANNELS
from common.errors import UserError
from common.training.config import Flag, TaskConfig, check_sizes, require, shared_config
from semantic_segmentation.allowed import ALLOWED

__all__ = ["ABSENT_CLASSES", "CONFIG", "default_config", "image_channels", "require_transforms"]

ABSENT_CLASSES = ("exclude", "zero")  # how a class in neither labels nor predictions counts in a mean

_SECTIONS = ("train_dataset", "val_dataset", "model", "loss", "optimizer", "lr_scheduler", "test_config")


def default_config() -> CfgNode:
    """All keys with their default values."""
    config = shared_config()
    config.batch_size = 2  # images per batch and rank
    config.iters = 160000  # optimizer steps
    config.EPOCHS = 0  # passes over the training data, from which iters is computed; 0 takes iters as it is
    for section in _SECTIONS:
        config[section] = CfgNode()

    config.VALIDATE_EVERY = config.CHECKPOINT_EVERY = 16000  # optimizer steps
    config.ABSENT_CLASSES = "exclude"  # classes in neither labels nor predictions: exclude, or zero as PaddleSeg does
    config.CHECK_DATA = False  # only check the data
    return config


def _positive(text: str) -> int:
    """Read ``-epochs``; the key's 0 stands for no epochs given."""
    if (value := int(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{value} must be greater than 0")
    return value


_FLAGS = {
    "data_path": Flag(
        ("train_dataset.dataset_root", "val_dataset.dataset_root"),
        str,
        "folder of the data set, training and validation",
        "data",
        "FOLDER",
    ),
    "batch_size": Flag(("batch_size",), int, "training images per batch and rank", "data"),
    "iters": Flag(("iters",), int, "optimizer steps", "training"),
    "epochs": Flag(("EPOCHS",), _positive, "passes over the training data, in place of -iters", "training"),
    "lr": Flag(("lr_scheduler.learning_rate",), float, "highest learning rate", "training", "RATE"),
    "num_classes": Flag(
        ("model.num_classes", "train_dataset.num_classes", "val_dataset.num_classes"),
        int,
        "number of classes, for data of type Dataset",
        "data",
    ),
    "check_data": Flag(
        ("CHECK_DATA",),
        bool,
        "only check every image and mask of the data, and count the classes",
        "instead of training",
    ),
}

_FREE_KEYS = """
    iters batch_size train_dataset.dataset_root val_dataset.dataset_root val_dataset.val_path
"""


def require_transforms(section: Mapping[str, Any], name: str) -> None:
    """Check that the section of a data set has a list of transforms.

    Raises:
        UserError: there is no such list.
    """
    if not isinstance(section.get("transforms"), list):
        raise UserError(f"{name}.transforms is {section.get('transforms')!r}; give a list of PaddleSeg's transforms")


def image_channels(config: CfgNode) -> int:
    """Channels of the images that the model takes."""
    return _stem(config)[1].get("in_channels", 3)


def _stem(config: CfgNode) -> tuple[str, dict[str, Any]]:
    """The section that has ``in_channels``, after its name: that of the backbone, or else of the model."""
    backbone = config.model.get("backbone")
    return ("model.backbone", backbone) if isinstance(backbone, dict) else ("model", config.model)


def _set_channels(config: CfgNode) -> None:
    """Complete the channels of the data and of the model, which have to be equal; so does PaddleSeg.

    Raises:
        UserError: they differ or are out of range, or ``Normalize`` is for another number.
    """
    stem, section = _stem(config)
    places = [(stem, "in_channels", section)]
    places += [(name, "img_channels", config[name]) for name in ("train_dataset", "val_dataset")]
    given = [(f"{name}.{key}", values[key]) for name, key, values in places if key in values]
    for where, value in given:
        if type(value) is not int or not 1 <= value <= MAX_CHANNELS:
            raise UserError(f"{where} is {value!r:.80}; give an integer from 1 to {MAX_CHANNELS}")
        if value != given[0][1]:
            raise UserError(
                f"{where} is {value}, but {given[0][0]} is {given[0][1]}; make them equal: one of them is enough"
            )
    channels = given[0][1] if given else 3
    if channels != 3:
        for _, key, values in places:
            values[key] = channels
    for name in ("train_dataset", "val_dataset"):
        for number, item in enumerate(config[name].transforms):
            if isinstance(item, Mapping) and item.get("type") == "Normalize":
                for key in ("mean", "std"):
                    values = item.get(key)
                    if isinstance(values, list | tuple) and len(values) not in (1, channels):
                        raise UserError(
                            f"{name}.transforms[{number}].{key} has {len(values)} numbers, but images have {channels} "
                            "channels; give one for each, or correct img_channels"
                        )


def _check(config: CfgNode) -> None:
    """Reject impossible values; PaddleSeg's components check their own."""
    require(config, "batch_size iters", lambda value: value > 0, "must be greater than 0")
    require(config, "EPOCHS", lambda value: value >= 0, "must not be negative")
    require(config, "ABSENT_CLASSES", lambda value: value in ABSENT_CLASSES, f"must be {' or '.join(ABSENT_CLASSES)}")
    for section in ("train_dataset", "val_dataset", "model", "optimizer", "lr_scheduler"):
        if not isinstance(config[section].get("type"), str):
            raise UserError(f"{section} has no type; give a -cfg that says which {section} to use")
    for section in ("train_dataset", "val_dataset"):
        require_transforms(config[section], section)
        check_sizes(config[section].transforms, f"{section}.transforms")
    _set_channels(config)


CONFIG = TaskConfig(
    default_file=Path(__file__).parent / "configs" / "upernet_pale_nano_nuclei.yml",
    defaults=default_config,
    flags=_FLAGS,
    check=_check,
    free_keys=frozenset(_FREE_KEYS.split()),
    invocation_keys=frozenset({"CHECK_DATA", "EPOCHS"}),
    open_sections=frozenset(_SECTIONS),
    allowed=ALLOWED,
    input_keys=("model.align_corners", "val_dataset.transforms"),
    kind_keys=("train_dataset.type", "val_dataset.type"),
    own_data="upernet_pale_nano_own_data.yml",
)
