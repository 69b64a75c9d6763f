"""Builds PaddleDetection's components from the sections of a configuration, with errors that name the wrong section.

PaddleDetection has one global configuration per process; here each component is built in a scope of its own, so that
one process can build several models.
"""

from __future__ import annotations

import copy
import difflib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# isort: split
from object_detection import pale_backbone  # noqa: F401 (before ppdet: registers the backbone, applies the patches)

# isort: split
from paddle import nn
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import create, global_config, merge_config
from yacs.config import CfgNode

from common.errors import UserError, one_line
from common.runtime.verbosity import is_verbose
from common.training.config import check_keys, plain
from common.training.optimizer import schedule_function
from object_detection.allowed import NOT_THE_MODEL
from object_detection.config import CONFIG
from object_detection.masks import RleMasks

__all__ = [
    "OPTIMIZER_SECTION",
    "build_model",
    "build_schedule",
    "optimizer_section",
    "scoped_config",
    "silence_loggers",
]

OPTIMIZER_SECTION = "OptimizerBuilder.optimizer"

# The layers whose size depends on the number of classes, which fine-tuning may replace.
_CLASSIFIERS: dict[str, tuple[str, ...]] = {
    "FasterRCNN": ("bbox_head.bbox_score.", "bbox_head.bbox_delta."),
    "MaskRCNN": ("bbox_head.bbox_score.", "bbox_head.bbox_delta.", "mask_head.mask_fcn_logits."),
    "CascadeRCNN": ("bbox_head.bbox_score_stage", "bbox_head.bbox_delta_stage", "mask_head.mask_fcn_logits."),
    "RetinaNet": ("head.retina_cls.",),
}

# Keys of OptimizerBuilder that are set elsewhere here.
_COUNTERPARTS = {
    "clip_grad_by_norm": "set TRAIN.GRAD_CLIP",
    "clip_grad_by_value": "set TRAIN.GRAD_CLIP, which limits the norm",
    "param_groups": "biases and norms do not decay, and TRAIN.LAYER_DECAY sets the rates of the layers",
    "regularizer": "set optimizer.weight_decay",
}


def silence_loggers() -> None:
    """Silence PaddleDetection's loggers without ``-verbose``: errors and the data check say what they warn of."""
    if is_verbose():
        return
    for name in logging.root.manager.loggerDict:
        if name.startswith("ppdet") or name == "reader":
            logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def scoped_config(sections: Mapping[str, Any]) -> Iterator[None]:
    """Add sections to PaddleDetection's global configuration, and restore it afterwards.

    Args:
        sections: plain values by name, such as ``{"num_classes": 1, "FPN": {"out_channel": 64}}``.
    """
    before = {name: _copy(value) if isinstance(value, SchemaDict) else value for name, value in global_config.items()}
    try:
        merge_config(copy.deepcopy(dict(sections)))
        yield
    finally:
        global_config.clear()
        global_config.update(before)


def _copy(section: SchemaDict) -> SchemaDict:
    twin = section.copy()
    twin.update(copy.deepcopy(dict(section)))  # sections are merged in place
    return twin


def build_model(config: CfgNode, num_classes: int, load_pretrained: bool = False) -> nn.Layer:
    """Build the model of the section that ``architecture`` names, and all components that it refers to.

    In training ``model(batch)`` returns a dict of losses, whose sum is ``loss``; otherwise a dict of ``bbox`` [n, 6]
    (label, score, x1, y1, x2, y2 in pixels of the original image), ``bbox_num``, and, if it has masks, ``mask``: n
    masks in COCO's run-length encoding.

    Args:
        num_classes: number of classes.
        load_pretrained: load the weights that the backbone's section names as ``pretrained``; false if all weights will
            be loaded from another file.

    Raises:
        UserError: a component does not exist, or its arguments are wrong.
    """
    names = [name for name in config if name in CONFIG.open_sections and name not in NOT_THE_MODEL]
    sections = {name: plain(config[name]) for name in names}
    if not load_pretrained:
        for section in sections.values():
            section.pop("pretrained", None)
    model = _create(sections, config.architecture, num_classes=num_classes)
    model.head_prefixes = _CLASSIFIERS.get(config.architecture, ())
    if getattr(model, "mask_post_process", None) is not None:
        threshold = model.mask_post_process.binary_thresh
        if not isinstance(threshold, float) or not 0.5 <= threshold < 1:
            raise UserError(f"MaskPostProcess.binary_thresh is {threshold}; it must be from 0.5 to below 1")
        model.mask_post_process = RleMasks(threshold)
    return model


def build_schedule(config: CfgNode, steps_per_epoch: int) -> Callable[[int], float]:
    """Build the section ``LearningRate`` as a function of the optimizer step, the first of which is 0.

    ``CosineDecay`` ends with the run unless ``max_epochs`` is given.

    Raises:
        UserError: a scheduler does not exist, its arguments are wrong, or the warm-up ends after the first milestone.
    """
    section = plain(config.LearningRate)
    schedulers = section.get("schedulers", [{}, {}])
    remedy = "write a decay and a warm-up, such as [{name: CosineDecay}, {name: LinearWarmup, steps: 500}]"
    if not isinstance(schedulers, list) or not all(isinstance(part, dict) for part in schedulers):
        raise UserError(f"LearningRate.schedulers is {schedulers!r}; {remedy}")
    if len(schedulers) < 2 and all(part.get("use_warmup", True) for part in schedulers):
        raise UserError(f"LearningRate.schedulers has no warm-up; {remedy}, or set use_warmup: false in the decay")
    for part in schedulers:
        if part.get("name") == "CosineDecay":
            part.setdefault("max_epochs", config.epoch)
    builder = _create({"LearningRate": section}, "LearningRate")
    try:
        scheduler = builder(steps_per_epoch)
    except Exception as error:
        raise UserError(f"LearningRate: {one_line(error)}") from error
    boundaries = list(getattr(scheduler, "boundaries", []))
    if boundaries != sorted(boundaries):
        raise UserError(
            f"LearningRate: with {steps_per_epoch} steps per epoch, the warm-up ends after the first milestone; "
            "shorten it, or raise the milestones"
        )
    return schedule_function(scheduler, steps_per_epoch * config.epoch, "LearningRate")


def optimizer_section(config: CfgNode) -> dict[str, Any]:
    """The section ``OptimizerBuilder.optimizer``.

    Raises:
        UserError: it is not a section, or ``OptimizerBuilder`` has a key that is unknown or set elsewhere here.
    """
    builder = plain(config.get("OptimizerBuilder", {}))
    section = builder.get("optimizer", {})
    if not isinstance(section, dict):
        raise UserError(f"{OPTIMIZER_SECTION} is {section!r}; write {{type: AdamW, ...}}")
    for key, ours in _COUNTERPARTS.items():
        if builder.get(key) or section.get(key):
            raise UserError(f"OptimizerBuilder.{key} is not used here; {ours}")
    check_keys(builder, ("optimizer", *_COUNTERPARTS), "OptimizerBuilder")
    return section


def _create(sections: Mapping[str, Any], name: str, **shared: Any) -> Any:
    _check_sections(sections)
    with scoped_config({**sections, **shared}):
        try:
            return create(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{name}: {one_line(error)}") from error


def _check_sections(sections: Mapping[str, Any]) -> None:
    known = {name: value for name, value in global_config.items() if isinstance(value, SchemaDict)}
    for name, section in sections.items():
        if name not in known:
            raise UserError(f"PaddleDetection has no component {name}{_similar(name, known)}")
        _check_arguments(section, known[name], name, known)


def _check_arguments(section: Mapping[str, Any], schema: SchemaDict, where: str, known: Mapping[str, Any]) -> None:
    """Refuse unknown arguments of a component, and text in place of numbers, also in nested components."""
    for key, value in section.items():
        if key != "name" and schema.strict and key not in schema.schema:
            known_keys = ", ".join(schema.schema) or "no arguments"
            raise UserError(f"{where} has no {key}{_similar(key, schema.schema)}; it has {known_keys}")
        if isinstance(value, str) and schema.has_default(key) and type(schema.schema[key].default) in (int, float):
            raise UserError(f"{where}.{key} is {value!r}; it must be a number")
        if isinstance(value, dict) and value.get("name") in known:
            _check_arguments(value, known[value["name"]], f"{where}.{key} ({value['name']})", known)


def _similar(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
