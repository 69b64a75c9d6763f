"""Optimizers with the model's parameter groups, and learning rates as pure functions of the step."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError, one_line
from .config import check_keys

__all__ = [
    "OPTIMIZERS",
    "OptimizerKind",
    "build_optimizer",
    "clip_gradients",
    "parameter_groups",
    "schedule_function",
    "warmup_cosine",
    "with_cooldown",
]

_MAX = float(np.finfo(np.float32).max)


class OptimizerKind(NamedTuple):
    """An optimizer that a configuration may choose.

    Attributes:
        build: its class.
        limits: of the arguments that a configuration may set: each is at least 0 and less than its limit.
        accumulators: the arrays that it keeps for each parameter, with their least and greatest values; a training
            state with others is refused. Those called ``..._pow_acc`` have one element, others the parameter's shape.
    """

    build: type[paddle.optimizer.Optimizer]
    limits: dict[str, float]
    accumulators: dict[str, tuple[float, float]]


# Of all tasks.
OPTIMIZERS = {
    "AdamW": OptimizerKind(
        paddle.optimizer.AdamW,
        {"weight_decay": math.inf, "beta1": 1.0, "beta2": 1.0},
        {
            "moment1": (-_MAX, _MAX),
            "moment2": (0.0, _MAX),
            "beta1_pow_acc": (0.0, 1 - 2**-24),
            "beta2_pow_acc": (0.0, 1 - 2**-24),
        },
    ),
}


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, base_lr: float, warmup_lr: float, end_lr: float
) -> float:
    """Learning rate of an optimizer step.

    It rises linearly from ``warmup_lr`` to ``base_lr`` during ``warmup_steps``, then falls along half a cosine to
    ``end_lr`` at the last step, ``total_steps - 1``.

    Args:
        step: 0 for the first optimizer step.
    """
    if step < warmup_steps:
        return warmup_lr + (base_lr - warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return end_lr + (base_lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def schedule_function(scheduler: paddle.optimizer.lr.LRScheduler, steps: int, name: str) -> Callable[[int], float]:
    """Paddle's schedule as a function of the optimizer step, from 0.

    Args:
        steps: length of the run.
        name: section of the configuration that describes the schedule, for messages.

    Raises:
        UserError: it fails or gives an impossible rate at the beginning, in the middle or at the end of the run, or
            is 0 in all of them.
    """

    def learning_rate(step: int) -> float:
        scheduler.step(step)
        return float(scheduler())

    rates = []
    for step in (0, steps // 2, steps - 1):
        try:
            rates.append(rate := learning_rate(step))
        except Exception as error:
            raise UserError(f"{name} fails at step {step}: {one_line(error)}") from error
        if not 0 <= rate < math.inf:
            raise UserError(f"{name} has the learning rate {rate} at step {step}; it must be a number >= 0")
    if not any(rates):
        raise UserError(f"{name} has the learning rate 0, with which nothing is trained; give a higher -lr")
    return learning_rate


def with_cooldown(learning_rate: Callable[[int], float], steps: int) -> Callable[[int], float]:
    """Continue a schedule with a constant rate: the one that it ends with [A: timm's ``cooldown_epochs``].

    PaddleSeg's and PaddleDetection's schedules often end at 0, where nothing would be trained. If a schedule ends below
    a thousandth of its highest rate, the constant rate is a hundredth of that [A: ours; 1e-3 to 1e-5 in the
    classification recipe].

    Args:
        learning_rate: maps an optimizer step, from 0, to its rate.
        steps: length of the schedule.
    """
    peak = max(learning_rate(steps * part // 100) for part in range(100))
    # Some schedules reach their end only after the last step, and those with restarts begin anew there.
    constant = min(learning_rate(steps - 1), learning_rate(steps))
    if constant < peak / 1000:
        constant = peak / 100
    return lambda step: learning_rate(step) if step < steps else constant


def parameter_groups(model: nn.Layer, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group the trainable parameters by weight decay and learning rate.

    The model, or its backbone, describes its parameters: those of ``no_weight_decay()`` get no decay; with
    ``layer_decay`` below 1 a parameter's rate is ``layer_decay ** (last layer - its layer)``, by ``layer_id`` (BEiT's
    fine-tuning recipe). The parameters around a backbone count as its last layer, and its biases and norms get no
    decay; so do all parameters of a model that describes nothing.

    Returns:
        Groups as Paddle's optimizers take them: ``params``, an absolute ``weight_decay``, a relative ``learning_rate``.

    Raises:
        UserError: ``layer_decay`` is not 1, and the model does not number its layers.
    """
    backbone = getattr(model, "backbone", None)
    described = next((layer for layer in (model, backbone) if hasattr(layer, "layer_id")), None)
    if described is None:
        if layer_decay != 1.0:
            name = type(backbone or model).__name__
            raise UserError(f"TRAIN.LAYER_DECAY is {layer_decay}, but {name} does not number its layers; set it to 1")
        prefix, last_layer, undecayed = None, 0, set()
    else:
        prefix = "" if described is model else "backbone."
        last_layer, undecayed = described.num_layers - 1, described.no_weight_decay()
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        own = name[len(prefix) :] if prefix is not None and name.startswith(prefix) else None
        decayed = own not in undecayed if own else parameter.ndim > 1
        scale = layer_decay ** (last_layer - (described.layer_id(own) if described and own else last_layer))
        groups[weight_decay if decayed else 0.0, scale].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "learning_rate": scale}
        for (decay, scale), parameters in groups.items()
    ]


def build_optimizer(
    section: Mapping[str, Any],
    model: nn.Layer,
    layer_decay: float = 1.0,
    name: str = "optimizer",
    learning_rate: float = 0.0,
) -> paddle.optimizer.Optimizer:
    """Build an optimizer over :func:`parameter_groups`; the trainer sets the rate of each step and clips the gradients.

    The optimizer gets no ``grad_clip``, because Paddle would clip each parameter group by its own norm.

    Args:
        section: ``type``, one of :data:`OPTIMIZERS`, and its arguments.
        name: of the section, for messages.
        learning_rate: for use without the trainer.

    Raises:
        UserError: the type or an argument is unknown, or a value is out of range; or see :func:`parameter_groups`.
    """
    kind = section.get("type")
    if kind not in OPTIMIZERS:
        raise UserError(f"{name}.type is {kind!r}; choose one of {', '.join(OPTIMIZERS)}")
    build, limits, _ = OPTIMIZERS[kind]
    check_keys(section, ("type", *limits), name)
    arguments = {key: value for key, value in section.items() if key != "type"}
    for key, value in arguments.items():
        if type(value) not in (int, float) or not 0 <= value < limits[key]:
            raise UserError(f"{name}.{key} is {value!r}; it must be a number in [0, {limits[key]})")
    groups = parameter_groups(model, arguments.setdefault("weight_decay", 0.01), layer_decay)
    return build(learning_rate, parameters=groups, **arguments)


@paddle.no_grad()
def clip_gradients(parameters: Iterable[paddle.Tensor], limit: float = 0.0) -> paddle.Tensor:
    """Scale all gradients in place so that their global norm is at most ``limit``; 0 does not clip.

    ``paddle.nn.utils.clip_grad_norm_`` does the same, but takes longer on CPUs.

    Returns:
        The global norm before clipping, float32 ``[]``; not finite if a gradient is not, or if the sum of squares
        overflows. The host does not wait for a GPU.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # paddle.nn.ClipGradByGlobalNorm takes the same operation, which squares and sums in one kernel.
    norm = paddle.stack([paddle._C_ops.squared_l2_norm(gradient) for gradient in gradients]).sum().sqrt()
    if limit and paddle.get_device() != "cpu":
        factor = (limit / (norm + 1e-6)).clip(max=1.0)
        for gradient in gradients:
            gradient.multiply_(factor)
    elif limit and not norm <= limit:  # known at once on CPUs, where multiplying by a tensor takes longer
        for gradient in gradients:
            gradient.scale_(limit / (float(norm) + 1e-6))
    return norm
