"""AdamW with the model's own parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections import defaultdict

import paddle
from paddle import nn

__all__ = ["build_adamw", "parameter_groups", "warmup_cosine"]


def warmup_cosine(
    step: int, total_steps: int, warmup_steps: int, base_lr: float, warmup_lr: float, end_lr: float
) -> float:
    """Learning rate of an optimizer step.

    It rises linearly from ``warmup_lr`` to ``base_lr`` during ``warmup_steps``, then falls along half a cosine to
    ``end_lr``, which the last step, ``total_steps - 1``, reaches if it lies behind the warm-up's end.

    Args:
        step: 0 for the first optimizer step.
    """
    if step < warmup_steps:
        return warmup_lr + (base_lr - warmup_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return end_lr + (base_lr - end_lr) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def parameter_groups(model: nn.Layer, weight_decay: float, layer_decay: float = 1.0) -> list[dict]:
    """Group the trainable parameters by what the model, or its backbone, says of them.

    Parameters named by ``no_weight_decay()`` get no decay; around a backbone, these are biases and norms. With
    ``layer_decay`` below 1 a parameter's rate is ``layer_decay ** (last layer - its layer)``, by ``layer_id`` (BEiT's
    fine-tuning recipe); what is around a backbone counts as its last layer.

    Returns:
        Groups as Paddle's optimizers take them: ``params``, an absolute ``weight_decay``, a relative ``learning_rate``.
    """
    prefix = "" if hasattr(model, "layer_id") else "backbone."
    described = model.backbone if prefix else model
    last_layer, undecayed = described.num_layers - 1, described.no_weight_decay()
    groups = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.stop_gradient:
            continue
        own = name[len(prefix) :] if name.startswith(prefix) else None
        decayed = own not in undecayed if own else parameter.ndim > 1
        scale = layer_decay ** (last_layer - (described.layer_id(own) if own else last_layer))
        groups[weight_decay if decayed else 0.0, scale].append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "learning_rate": scale}
        for (decay, scale), parameters in groups.items()
    ]


def build_adamw(
    model: nn.Layer, base_lr: float, weight_decay: float, betas: tuple[float, float], layer_decay: float = 1.0
) -> paddle.optimizer.AdamW:
    """AdamW over :func:`parameter_groups`; the caller sets the rate of each step and clips the gradients.

    Paddle would clip each parameter group by its own norm, so the optimizer is given no ``grad_clip``.
    """
    return paddle.optimizer.AdamW(
        learning_rate=base_lr,
        beta1=betas[0],
        beta2=betas[1],
        parameters=parameter_groups(model, weight_decay, layer_decay),
        weight_decay=weight_decay,
    )
