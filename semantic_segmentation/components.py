"""PaddleSeg's components out of the sections of a configuration, with errors that say which section is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from paddle import nn
from paddleseg.cvlibs import SegBuilder
from yacs.config import CfgNode

from common.config import plain
from common.errors import UserError
from semantic_segmentation import pale_backbone, upernet  # noqa: F401 (they register themselves in PaddleSeg)

__all__ = ["build_component", "build_losses", "build_model", "build_schedule"]


def build_component(item: Mapping[str, Any], where: str) -> Any:
    """Build what ``{type: NAME, argument: value, ...}`` describes, nested ones included.

    Args:
        where: what to call it in messages.

    Raises:
        UserError: PaddleSeg has no such component, or the arguments are wrong.
    """
    try:
        return SegBuilder(None).build_component(dict(item))
    except Exception as error:
        cause = error.__context__ or error  # the builder wraps it in several lines
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"{where}: {' '.join(str(cause).split()) or type(cause).__name__}") from error


def build_model(config: CfgNode, num_classes: int) -> nn.Layer:
    """Build the section ``model`` for so many classes.

    Raises:
        UserError: the section asks for what does not exist or cannot work.
    """
    section = plain(config.model)
    if section.setdefault("num_classes", num_classes) != num_classes:
        raise UserError(f"model.num_classes is {section['num_classes']}, but the data has {num_classes} classes")
    return build_component(section, f"model ({section['type']})")


def build_losses(config: CfgNode, ignore_index: int) -> dict[str, list]:
    """Build the section ``loss``: one loss and one coefficient for each output of the model in training.

    Args:
        ignore_index: the data's; losses that say nothing get it.

    Returns:
        ``types`` and ``coef`` as ``paddleseg.core.train.loss_computation`` wants them.

    Raises:
        UserError: the section asks for what does not exist or cannot work.
    """
    section = plain(config.loss)
    types, coefficients = section.get("types"), section.get("coef")
    if not isinstance(types, list) or not isinstance(coefficients, list) or not types or not coefficients:
        raise UserError("loss must have two lists, types and coef: a loss and its weight for each output of the model")
    if len(types) == 1:
        types = types * len(coefficients)
    if len(types) != len(coefficients):
        raise UserError(f"loss has {len(types)} types and {len(coefficients)} coef; give a weight for each")
    for number, item in enumerate(types):
        for part in item.get("losses", [item]) if isinstance(item, dict) else ():  # MixedLoss has several
            if part.setdefault("ignore_index", ignore_index) != ignore_index:
                raise UserError(
                    f"loss.types[{number}].ignore_index is {part['ignore_index']}, the data's is {ignore_index}; make "
                    "them equal"
                )
    losses = [build_component(item, f"loss.types[{number}]") for number, item in enumerate(types)]
    return {"types": losses, "coef": coefficients}


def build_schedule(config: CfgNode) -> Callable[[int], float]:
    """Build the section ``lr_scheduler`` as a function of the optimizer step, the first of which is 0.

    Raises:
        UserError: Paddle has no such scheduler, or the arguments are wrong.
    """
    settings = SimpleNamespace(lr_scheduler_cfg=plain(config.lr_scheduler), iters=config.iters)
    try:
        scheduler = SegBuilder(settings).lr_scheduler
    except Exception as error:
        raise UserError(f"lr_scheduler: {' '.join(str(error).split())}") from error

    def learning_rate(step: int) -> float:
        scheduler.step(step)
        return float(scheduler())

    return learning_rate
