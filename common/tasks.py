"""The tasks of this project, by the name of their folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

__all__ = ["TASKS", "TaskEntry"]


@dataclass(frozen=True)
class TaskEntry:
    """The parts of a task. Each is a function that imports the part and returns it.

    Attributes:
        config: the :class:`common.training.config.TaskConfig`.
        task: the class of :class:`common.training.task.Task`, which trains and evaluates.
        predictor: the class of :class:`common.inference.predictor.Predictor`.
        exportable: the function from a predictor to an :class:`common.inference.exportable.Exportable`.
        build_model: the function from a configuration and a number of classes to the model.
        num_classes_key: the configuration key of the number of classes.
        own_key: a top-level key that only configuration files of this task have.
    """

    config: Callable[[], Any]
    task: Callable[[], Any]
    predictor: Callable[[], Any]
    exportable: Callable[[], Any]
    build_model: Callable[[], Any]
    num_classes_key: str
    own_key: str


TASKS = {
    "image_classification": TaskEntry(
        config=partial(resolve_name, "image_classification.config:CONFIG"),
        task=partial(resolve_name, "image_classification.classification:Classification"),
        predictor=partial(resolve_name, "image_classification.prediction:Classifier"),
        exportable=partial(resolve_name, "image_classification.exporting:exportable"),
        build_model=partial(resolve_name, "image_classification.pale_backbone:build_model"),
        num_classes_key="MODEL.NUM_CLASSES",
        own_key="AUG",
    ),
    "semantic_segmentation": TaskEntry(
        config=partial(resolve_name, "semantic_segmentation.config:CONFIG"),
        task=partial(resolve_name, "semantic_segmentation.segmentation:Segmentation"),
        predictor=partial(resolve_name, "semantic_segmentation.prediction:Segmenter"),
        exportable=partial(resolve_name, "semantic_segmentation.exporting:exportable"),
        build_model=partial(resolve_name, "semantic_segmentation.components:build_model"),
        num_classes_key="model.num_classes",
        own_key="model",
    ),
    "object_detection": TaskEntry(
        config=partial(resolve_name, "object_detection.config:CONFIG"),
        task=partial(resolve_name, "object_detection.detection:Detection"),
        predictor=partial(resolve_name, "object_detection.prediction:Detector"),
        exportable=partial(resolve_name, "object_detection.exporting:exportable"),
        build_model=partial(resolve_name, "object_detection.components:build_model"),
        num_classes_key="num_classes",
        own_key="architecture",
    ),
}
