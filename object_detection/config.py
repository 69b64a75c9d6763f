"""The configuration of object detection: PaddleDetection's format, and the keys in capitals that all tasks share.

PaddleDetection has a section for each component, such as ``FPN`` or ``TrainReader``. Its keys for running, such as
``log_iter``, have their counterparts among ours.
"""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

from yacs.config import CfgNode

from common.errors import UserError
from common.training.config import Flag, TaskConfig, require, shared_config
from object_detection.problems import default_actions, resolve_actions

__all__ = ["CONFIG", "default_config"]


def default_config() -> CfgNode:
    """All keys with their default values."""
    config = shared_config()
    config.architecture = ""  # the section that describes the model
    config.num_classes = 0  # 0: as many as the training annotations have categories
    config.epoch = 12  # number of epochs; [P] the paper's 1x schedule
    config.metric = "COCO"  # the only one

    config.ON_PROBLEM = CfgNode()  # what to do about annotations that cannot be used as they are
    for kind, action in default_actions().items():
        config.ON_PROBLEM[kind] = action
    config.PICTURE_THRESHOLD = 0.5  # score from which a detection is drawn on them
    config.CHECK_DATA = False  # only check the data
    config.OUTPUT = "output/detection"
    return config


class _Components(Container[str]):
    """The possible names of PaddleDetection's sections: they begin with a capital, and are not ours."""

    def __init__(self):
        self._own = frozenset(default_config())

    def __contains__(self, key: object) -> bool:
        name = str(key)
        return name[:1].isupper() and "." not in name and name not in self._own


_FLAGS = {
    "data_path": Flag(
        ("TrainDataset.dataset_dir", "EvalDataset.dataset_dir"),
        str,
        "folder of the data set, training and validation",
        "data",
        "FOLDER",
    ),
    "batch_size": Flag(("TrainReader.batch_size",), int, "images in a training batch on each rank", "data"),
    "num_classes": Flag(("num_classes",), int, "number of classes (default: that of the categories)", "data"),
    "epochs": Flag(("epoch",), int, "number of epochs", "training"),
    "check_data": Flag(
        ("CHECK_DATA",), bool, "only check every image and annotation of the data", "instead of training"
    ),
}

_FREE_KEYS = """
    epoch EvalDataset EvalReader TestDataset TestReader TrainDataset.dataset_dir TrainReader.batch_size
    PICTURE_THRESHOLD
"""


def _check(config: CfgNode) -> None:
    """Reject impossible values; PaddleDetection's components check their own."""
    require(config, "epoch", lambda value: value > 0, "must be greater than 0")
    require(config, "num_classes", lambda value: value >= 0, "must not be negative")
    require(config, "PICTURE_THRESHOLD", lambda value: 0 <= value <= 1, "must be between 0 and 1")
    require(config, "metric", lambda value: value == "COCO", "must be COCO")
    resolve_actions(config.ON_PROBLEM)
    for section in (config.architecture, "TrainDataset", "EvalDataset", "TrainReader", "EvalReader", "LearningRate"):
        if not section or not isinstance(config.get(section), CfgNode):
            raise UserError(
                f"{section or 'architecture'} is missing; give a -cfg in PaddleDetection's form that has it"
            )
    batch_size = config.TrainReader.get("batch_size", 1)
    if type(batch_size) is not int or batch_size < 1:
        raise UserError(f"TrainReader.batch_size is {batch_size!r}; it must be an integer from 1 up")


CONFIG = TaskConfig(
    default_file=Path(__file__).parent / "configs" / "mask_rcnn_pale_nano_nuclei.yml",
    defaults=default_config,
    flags=_FLAGS,
    check=_check,
    free_keys=frozenset(_FREE_KEYS.split()),
    invocation_keys=frozenset({"CHECK_DATA"}),
    open_sections=_Components(),
)
