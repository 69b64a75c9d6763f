"""The kinds of pictures: what each computes of a subject, what it tells in JSON, and what it draws."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from paddle import Tensor
from PIL import Image
from tqdm import tqdm

from common.errors import UserError
from tools.visualizing import figures
from tools.visualizing.attention_maps import attention_rollout, token_attention
from tools.visualizing.gradients import backbone_of, grad_cam, receptive_fields
from tools.visualizing.subject import ClassScore, Subject, classification_score, segmentation_score
from tools.visualizing.token_groups import groups_of_stage, token_at

__all__ = ["DRAW", "draw_receptive_fields"]

# What JSON tells, and the pictures by what to call them.
_Drawn = tuple[dict[str, Any], dict[str, Image.Image]]


def _draw_pales(subject: Subject, task: str | None, arguments: Namespace) -> _Drawn:
    backbone = backbone_of(subject.model)
    height, width = subject.picture.shape[:2]
    stages = [stage - 1 for stage in arguments.stages]
    strides = [backbone.out_strides[stage] for stage in stages]
    sides = [(-(-height // stride), -(-width // stride)) for stride in strides]
    tokens = [token_at(subject.pixel, stride, *side) for stride, side in zip(strides, sides, strict=True)]
    groups = [
        groups_of_stage(backbone, stage, *side, *token)
        for stage, side, token in zip(stages, sides, tokens, strict=True)
    ]
    about = [
        {
            "stage": stage + 1,
            "stride": stride,
            "map": list(side),
            "token": list(token),
            "groups": [group.describe() for group in found],
        }
        for stage, stride, side, token, found in zip(stages, strides, sides, tokens, groups, strict=True)
    ]
    return {"pale": about}, {"pale": figures.draw_groups(subject.picture, stages, strides, tokens, groups)}


def _draw_attention(subject: Subject, task: str | None, arguments: Namespace) -> _Drawn:
    backbone = backbone_of(subject.model)
    found = token_attention(subject.model, lambda: backbone.forward_features(subject.images), subject.pixel)
    drawn = {}
    for stage in arguments.stages:
        stride = backbone.out_strides[stage - 1]
        blocks = dict(enumerate(found[stage - 1]))
        token = token_at(subject.pixel, stride, *blocks[0].weights.shape[1:])
        drawn[f"attention_stage{stage}"] = figures.draw_attention(subject.picture, stage - 1, stride, token, blocks)
    return {}, drawn


def _draw_grad_cam(subject: Subject, task: str | None, arguments: Namespace) -> _Drawn:
    score = _score(subject, task, arguments)
    strides = backbone_of(subject.model).out_strides
    side = max(subject.picture.shape[:2])
    # A map of one token says nothing about where: the fourth of a 32x32 digit.
    stage = next((n for n in reversed(arguments.stages) if side > strides[n - 1]), arguments.stages[-1])
    heat = grad_cam(subject.model, lambda: score.of(subject.images), stage - 1)
    picture = figures.draw_heat(subject.picture, heat, f"Grad-CAM of stage {stage}: {score.text}", "largest")
    return {**_about(score), "grad_cam": {"stage": stage}}, {"grad_cam": picture}


def _draw_rollout(subject: Subject, task: str | None, arguments: Namespace) -> _Drawn:
    score = _score(subject, task, arguments)
    heat = attention_rollout(subject.model, subject.images, score.of)
    title = f"attention rollout: {score.text}"
    return _about(score), {"rollout": figures.draw_heat(subject.picture, heat, title, "largest")}


def draw_receptive_fields(subject: Subject, inputs: Sequence[Tensor]) -> _Drawn:
    """The one kind that is of all images together.

    Args:
        inputs: of one size.

    Raises:
        UserError: their sizes differ.
    """
    sizes = sorted({tuple(images.shape[2:]) for images in inputs})
    if len(sizes) > 1:
        shown = " and ".join(f"{width}x{height}" for height, width in sizes[:2])
        raise UserError(f"-show receptive_field takes images of one size, not of {shown}; crop them, or give one")
    fields = receptive_fields(subject.model, tqdm(inputs, disable=not sys.stderr.isatty(), leave=False))
    about = [
        {"stage": stage + 1, "radius_50": field.radius(0.5), "radius_95": field.radius(0.95)}
        for stage, field in enumerate(fields)
    ]
    return {"receptive_field": about}, {"receptive_field": figures.draw_receptive_fields(fields, len(inputs))}


# Of one image each: a function of the subject, its task (None for a variant without weights), and the arguments.
DRAW = {"pale": _draw_pales, "attention": _draw_attention, "grad_cam": _draw_grad_cam, "rollout": _draw_rollout}


def _score(subject: Subject, task: str | None, arguments: Namespace) -> ClassScore:
    of_task = classification_score if task == "image_classification" else segmentation_score
    return of_task(subject, arguments.label)


def _about(score: ClassScore) -> dict[str, Any]:
    return {"label": score.label, "name": score.name}
