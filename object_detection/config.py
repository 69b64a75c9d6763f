"""The configuration of object detection: PaddleDetection's sections, and the keys in capitals that all tasks share.

PaddleDetection has a section for each component, such as ``FPN`` or ``TrainReader``. Its keys for running, such as
``log_iter``, have counterparts among ours.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from yacs.config import CfgNode

from common.errors import UserError
from common.training.config import Flag, TaskConfig, check_sizes, require, shared_config
from object_detection.allowed import ALLOWED

__all__ = ["CONFIG", "default_config"]


def default_config() -> CfgNode:
    """All keys with their default values."""
    config = shared_config()
    config.architecture = ""  # the section of the model
    config.num_classes = 0  # 0: the number of categories of the training annotations
    config.epoch = 12  # number of epochs; [P] the paper's 1x
    config.metric = "COCO"  # no other is supported

    config.STRICT_DATA = False  # every problem of the annotations and images is an error
    config.PICTURE_THRESHOLD = 0.5  # the lowest score of a detection that is drawn on VisualDL's images
    config.CHECK_DATA = False  # only check the data
    return config


class _ToolkitSections(Container[str]):
    """The possible names of PaddleDetection's sections: they begin with a capital, and are not keys of ours."""

    def __init__(self):
        self._own = frozenset(default_config())

    def __contains__(self, key: object) -> bool:
        name = str(key)
        return name[:1].isupper() and "." not in name and name not in self._own


_FLAGS = {
    "data_path": Flag(
        ("TrainDataset.dataset_dir", "EvalDataset.dataset_dir"),
        str,
        "folder of the training and validation data",
        "data",
        "FOLDER",
    ),
    "batch_size": Flag(("TrainReader.batch_size",), int, "training images per batch and rank", "data"),
    "num_classes": Flag(("num_classes",), int, "number of classes (default: number of categories)", "data"),
    "epochs": Flag(("epoch",), int, "number of epochs", "training"),
    "lr": Flag(("LearningRate.base_lr",), float, "highest learning rate", "training", "RATE"),
    "strict": Flag(("STRICT_DATA",), bool, "treat every problem of the annotations and images as an error", "data"),
    "check_data": Flag(("CHECK_DATA",), bool, "only check all annotations and images", "instead of training"),
}

_FREE_KEYS = """
    epoch EvalDataset TestDataset TestReader TrainDataset.dataset_dir TrainReader.batch_size
    PICTURE_THRESHOLD STRICT_DATA
"""


# Of PaddleDetection's programs, see the table in README.md, and of version 0.1.0.
_IGNORED_KEYS = """
    use_gpu use_xpu use_npu use_mlu log_iter save_dir snapshot_epoch worker_num find_unused_parameters weights use_ema
    ema_decay ON_PROBLEM
"""


def _check(config: CfgNode) -> None:
    """Reject values that no run can use. PaddleDetection's components check their own sections."""
    require(config, "epoch", lambda value: value > 0, "must be greater than 0")
    require(config, "num_classes", lambda value: value >= 0, "must not be negative")
    require(config, "PICTURE_THRESHOLD", lambda value: 0 <= value <= 1, "must be between 0 and 1")
    require(config, "metric", lambda value: value == "COCO", "must be COCO")
    for section in (config.architecture, "TrainDataset", "EvalDataset", "TrainReader", "EvalReader", "LearningRate"):
        if not section or not isinstance(config.get(section), CfgNode):
            raise UserError(
                f"{section or 'architecture'} is missing; give a -cfg in PaddleDetection's format that has it"
            )
    for section in ("TrainReader", "EvalReader"):
        check_sizes(config[section], section)
    batch_size = config.TrainReader.get("batch_size", 1)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"TrainReader.batch_size is {batch_size!r}; it must be a positive integer")


CONFIG = TaskConfig(
    default_file=Path(__file__).parent / "configs" / "mask_rcnn_pale_nano_nuclei.yml",
    defaults=default_config,
    flags=_FLAGS,
    check=_check,
    free_keys=frozenset(_FREE_KEYS.split()),
    invocation_keys=frozenset({"CHECK_DATA"}),
    open_sections=_ToolkitSections(),
    allowed=ALLOWED,
    ignored_keys=frozenset(_IGNORED_KEYS.split()),
    input_keys=("EvalReader.sample_transforms",),
    kind_keys=("TrainDataset.name", "EvalDataset.name"),
    own_data="mask_rcnn_pale_nano_own_data.yml",
)
