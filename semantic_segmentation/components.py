"""PaddleSeg's components, built from the sections of a configuration, with errors that name the section."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import paddle
from paddle import nn
from paddleseg.cvlibs import SegBuilder, manager
from paddleseg.cvlibs.manager import ComponentManager
from yacs.config import CfgNode

from common.errors import UserError, one_line
from common.training.config import check_keys, plain
from common.training.optimizer import schedule_function
from semantic_segmentation import pale_backbone  # noqa: F401 (registers the backbone and UPerNet in PaddleSeg)

__all__ = [
    "build_component",
    "build_losses",
    "build_model",
    "build_schedule",
    "check_arguments",
    "find_component",
]


def find_component(item: Any, where: str, registry: ComponentManager) -> Callable:
    """Look up the class or function that ``{type: NAME, ...}`` names.

    Args:
        item: the section.
        where: its name, for messages.
        registry: PaddleSeg's registry of this kind of components.

    Raises:
        UserError: there is no such component.
    """
    if not isinstance(item, Mapping) or not isinstance(item.get("type"), str):
        raise UserError(f"{where} is {item!r}; write {{type: NAME, ...}}")
    known = registry.components_dict
    if item["type"] not in known:
        raise UserError(f"{where}: unknown type {item['type']!r}; choose one of {', '.join(sorted(known))}")
    return known[item["type"]]


def check_arguments(component: Callable, arguments: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Check the arguments of a component, and add its default values.

    Raises:
        UserError: an argument is unknown or missing, or a string is given for a number or vice versa.
    """
    signature = inspect.signature(component)
    try:
        bound = signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{where}: {error}; its arguments are {', '.join(signature.parameters)}") from error
    for name, value in arguments.items():
        default = getattr(signature.parameters.get(name), "default", None)
        # Other types are not compared: some arguments of PaddleSeg take lists or None as well.
        for kind, other in (((int, float), str), (str, (int, float))):
            if isinstance(default, kind) and isinstance(value, other):
                raise UserError(f"{where}: {name} is {value!r}; give something like the default, {default!r}")
    bound.apply_defaults()
    return bound.arguments


def build_component(item: Any, where: str, registry: ComponentManager = manager.TRANSFORMS) -> Any:
    """Build a component ``{type: NAME, argument: value, ...}``, with nested components.

    PaddleSeg's own builder looks names up in all registries, and its errors hide the cause.

    Args:
        item, where, registry: see :func:`find_component`.

    Raises:
        UserError: there is no such component, or the arguments are invalid.
    """
    component = find_component(item, where, registry)
    named = f"{where} ({item['type']})"
    arguments = {key: value for key, value in item.items() if key != "type"}
    check_arguments(component, arguments, named)
    built = {
        key: _build_nested(value, f"{where}.{key}", manager.BACKBONES if key == "backbone" else registry)
        for key, value in arguments.items()
    }
    try:
        return component(**built)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{named}: {one_line(error)}") from error


def _build_nested(value: Any, where: str, registry: ComponentManager) -> Any:
    if isinstance(value, Mapping) and "type" in value:
        return build_component(value, where, registry)
    if isinstance(value, list):
        return [_build_nested(item, f"{where}[{number}]", registry) for number, item in enumerate(value)]
    return value


def build_model(config: CfgNode, num_classes: int, load_pretrained: bool = False, source: str = "the data") -> nn.Layer:
    """Build the section ``model``.

    Args:
        config: of the task.
        num_classes: of the data or the weights.
        load_pretrained: load the ``pretrained`` weights of the section and its backbone; otherwise the files need not
            exist.
        source: where ``num_classes`` comes from, for messages.

    Raises:
        UserError: the section is invalid.
    """
    section = plain(config.model)
    if not load_pretrained:
        for part in (section, section.get("backbone")):
            if isinstance(part, dict):
                part.pop("pretrained", None)
    if section.setdefault("num_classes", num_classes) != num_classes:
        raise UserError(
            f"model.num_classes is {section['num_classes']}, but {source} has {num_classes} classes; set it to "
            f"{num_classes}, or leave it out"
        )
    return build_component(section, "model", manager.MODELS)


def build_losses(config: CfgNode, ignore_index: int) -> dict[str, list]:
    """Build the section ``loss``: a loss and a coefficient for each output of the model in training.

    Args:
        config: of the task.
        ignore_index: of the data, the default of losses that have this argument.

    Returns:
        ``types`` and ``coef`` for ``paddleseg.core.train.loss_computation``.

    Raises:
        UserError: the section is invalid.
    """
    section = plain(config.loss)
    check_keys(section, ("types", "coef"), "loss")
    types, coefficients = section.get("types"), section.get("coef")
    if not isinstance(types, list) or not isinstance(coefficients, list) or not types or not coefficients:
        raise UserError("loss must have two lists, types and coef: a loss and its weight for each output of the model")
    _check_weights(coefficients, "loss.coef")
    if len(types) == 1:
        types = types * len(coefficients)
    if len(types) != len(coefficients):
        raise UserError(f"loss has {len(types)} types and {len(coefficients)} coef; give a weight for each")
    for number, item in enumerate(types):
        _prepare_loss(item, f"loss.types[{number}]", ignore_index)
    losses = [build_component(item, f"loss.types[{number}]", manager.LOSSES) for number, item in enumerate(types)]
    return {"types": losses, "coef": coefficients}


def _check_weights(values: Any, where: str) -> None:
    # PaddleSeg accepts negative ones, which maximize the loss.
    for number, value in enumerate(values if isinstance(values, list) else ()):
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise UserError(f"{where}[{number}] is {value!r}; it must be a number >= 0")
    if isinstance(values, list) and values and not any(values):
        raise UserError(f"{where} is {values!r}; at least one weight must be greater than 0")


def _prepare_loss(item: Any, where: str, ignore_index: int) -> None:
    component = find_component(item, where, manager.LOSSES)
    for name in ("weight", "coef"):
        _check_weights(item.get(name), f"{where}.{name}")
    parts = item.get("losses")  # of MixedLoss
    for number, part in enumerate(parts if isinstance(parts, list) else ()):
        _prepare_loss(part, f"{where}.losses[{number}]", ignore_index)
    takes_it = "ignore_index" in inspect.signature(component).parameters
    if takes_it and item.setdefault("ignore_index", ignore_index) != ignore_index:
        raise UserError(
            f"{where}.ignore_index is {item['ignore_index']}, the data's is {ignore_index}; make them equal"
        )


def build_schedule(config: CfgNode) -> Callable[[int], float]:
    """Build the section ``lr_scheduler`` as a function from the optimizer step, from 0, to the learning rate.

    Raises:
        UserError: Paddle has no such scheduler, or the arguments are invalid.
    """
    section = plain(config.lr_scheduler)
    kind = getattr(paddle.optimizer.lr, section["type"], None)
    if not inspect.isclass(kind) or kind is paddle.optimizer.lr.ReduceOnPlateau:
        raise UserError(
            f"lr_scheduler: unknown type {section['type']!r}; choose a schedule of paddle.optimizer.lr that "
            "depends only on the step, such as PolynomialDecay"
        )
    known = ("type", *inspect.signature(kind).parameters, "warmup_iters", "warmup_start_lr")
    check_keys(section, known, "lr_scheduler")
    warmup = section.get("warmup_iters", 0)
    if type(warmup) is not int or warmup < 0:
        raise UserError(f"lr_scheduler.warmup_iters is {warmup!r}; it must be an integer of at least 0")
    if not warmup:  # PaddleSeg does not accept a warm-up of 0 steps
        section.pop("warmup_iters", None)
        section.pop("warmup_start_lr", None)
    highest, last = section.get("learning_rate"), section.get("end_lr", 0)
    if all(isinstance(rate, int | float) for rate in (highest, last)) and last > highest:
        raise UserError(f"lr_scheduler.end_lr is {last:g}, above learning_rate (-lr), {highest:g}; lower it")
    settings = SimpleNamespace(lr_scheduler_cfg=section, iters=config.iters)
    try:
        scheduler = SegBuilder(settings).lr_scheduler
    except Exception as error:
        raise UserError(f"lr_scheduler: {one_line(error)}") from error
    return schedule_function(scheduler, config.iters, "lr_scheduler")
