"""What tokens attend to: the weights of one token, and attention rollout through the whole backbone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from common.layers.attention_shapes import merge, partition
from common.pale_attention import PSAttention
from common.pale_transformer import PaleTransformer
from tools.visualizing.gradients import backbone_of, gradients_of
from tools.visualizing.token_groups import group_indices, token_at

__all__ = ["TokenAttention", "attention_rollout", "token_attention"]


@dataclass(frozen=True)
class TokenAttention:
    """What one token attends to in one block.

    Attributes:
        weights: float32 ``[heads, h, w]``, those of the first part of the channels first; NaN outside the head's group.
        parts: which part of the channels each head belongs to, ``[heads]``.
        to_padding: share of each head's attention that goes to padded tokens, float32 ``[heads]``.
    """

    weights: np.ndarray
    parts: np.ndarray
    to_padding: np.ndarray


@dataclass(frozen=True)
class _Observed:
    """The weights of one part of the channels in one block, on a map of these sides: ``[N, heads, L, L]``."""

    stage: int
    block: int
    part: int
    height: int
    width: int
    attention: PSAttention
    weights: Tensor


@contextmanager
def _observing(backbone: PaleTransformer, observe: Callable[[_Observed], None]) -> Iterator[None]:
    """Show every block's attention weights while the model runs on one image, which it does in the plain formula."""
    hooks, fused = [], []
    for stage, layers in enumerate(backbone.stages):
        for block, layer in enumerate(layers.blocks):
            attention: PSAttention = layer.attention
            place = {"stage": stage, "block": block, "attention": attention}
            hooks.append(attention.register_forward_pre_hook(partial(_start, place)))
            hooks.append(attention.attention.softmax.register_forward_post_hook(partial(_show, place, observe)))
            fused.append((attention.attention, attention.attention.fused))
            attention.attention.fused = False
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, value in fused:
            layer.fused = value


def _start(place: dict, layer: nn.Layer, inputs: tuple[Tensor]) -> None:
    _, place["height"], place["width"], _ = inputs[0].shape
    place["part"] = 0


def _show(place: dict, observe: Callable, layer: nn.Layer, inputs: tuple[Tensor], weights: Tensor) -> None:
    observe(_Observed(**place, weights=weights))
    place["part"] += 1


@paddle.no_grad()
def token_attention(
    model: nn.Layer, run: Callable[[], object], pixel: tuple[float, float]
) -> list[list[TokenAttention]]:
    """What the token that holds a pixel attends to, for each block of each stage.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        run: runs it once on one image.
        pixel: x and y in that image.
    """
    backbone = backbone_of(model)
    found = [[[] for _ in stage.blocks] for stage in backbone.stages]

    def observe(seen: _Observed) -> None:
        height, width = seen.height, seen.width
        row, column = token_at(pixel, backbone.out_strides[seen.stage], height, width)
        pad_bottom, pad_right = seen.attention.padding(height, width)
        indices = group_indices(seen.attention, seen.part, height, width)
        ((group, place),) = np.argwhere(indices == row * (width + pad_right) + column)
        weights = seen.weights[int(group), :, int(place)].astype("float32").numpy()
        maps = np.full((len(weights), height + pad_bottom, width + pad_right), np.nan, np.float32)
        maps.reshape(len(weights), -1)[:, indices[group]] = weights
        inside = maps[:, :height, :width]
        lost = np.nansum(maps, axis=(1, 2)) - np.nansum(inside, axis=(1, 2))
        found[seen.stage][seen.block].append((inside, np.full(len(weights), seen.part), lost))

    with _observing(backbone, observe):
        run()
    return [[TokenAttention(*map(np.concatenate, zip(*parts, strict=True))) for parts in stage] for stage in found]


def attention_rollout(model: nn.Layer, images: Tensor, score: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
    """How much each pixel counts for the mean of the last map, as attention alone tells.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928) takes what a token holds after a block as half itself, half
    the tokens that it attends to, heads averaged. For a class, each weight counts by its gradient, negative products
    not at all, and is added to the token itself (Chefer et al., arXiv 2103.15679); what passes by every attention says
    nothing and is taken away. Both were made for one sequence of tokens; here, what comes out of a patch merging counts
    for what its convolution sees, more for the middle of that [A: ours]. Position encoding, the convolutions before
    query, key and value, and MLPs are left out.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        images: one, float32 ``[1, 3, H, W]``.
        score: what the model says of a class, a scalar; ``None`` for rollout without a class.

    Returns:
        float32 ``[H, W]``. Without a class the sum is 1, less what falls on padding.
    """
    backbone = backbone_of(model)
    seen: list[_Observed] = []
    with _observing(backbone, seen.append):
        if score is None:
            with paddle.no_grad():
                backbone.forward_features(images)
            matrices = [part.weights.mean(1) for part in seen]
        else:
            value = score(images)
            gradients = gradients_of(value, [part.weights for part in seen], model)
            matrices = [F.relu(g * part.weights).mean(1) for g, part in zip(gradients, seen, strict=True)]
    blocks: dict[tuple[int, int], list[tuple[_Observed, Tensor]]] = {}
    for part, matrix in zip(seen, matrices, strict=True):
        blocks.setdefault((part.stage, part.block), []).append((part, matrix.detach()))

    with paddle.no_grad():
        last = seen[-1]
        relevance = passed_by = paddle.full([1, last.height, last.width, 1], 1 / (last.height * last.width))
        for (stage, block), parts in reversed(blocks.items()):
            attended = sum(_attended(relevance, part, matrix) for part, matrix in parts) / len(parts)
            relevance = (relevance + attended) / 2 if score is None else relevance + attended
            if block == 0:
                below = [(part.height, part.width) for part in seen if part.stage == stage - 1]
                sides = below[0] if below else images.shape[2:]
                (stride, _) = backbone.stages[stage].merging.conv._stride
                relevance, passed_by = (_spread(values, stride, *sides) for values in (relevance, passed_by))
        return (relevance if score is None else relevance - passed_by)[0, :, :, 0].numpy()


def _attended(relevance: Tensor, part: _Observed, matrix: Tensor) -> Tensor:
    """Hand the relevance of each token, ``[1, h, w, 1]``, to those that it attends to, by weights ``[N, L, L]``."""
    pad_bottom, pad_right = part.attention.padding(part.height, part.width)
    grouping = part.attention.groupings[part.part].at_most(part.height, part.width)
    padded = F.pad(relevance, [0, pad_right, 0, pad_bottom], data_format="NHWC")
    groups = partition(padded, grouping).squeeze(-1)
    groups = paddle.matmul(groups, matrix).unsqueeze(-1)
    return merge(groups, grouping, *padded.shape[1:3])[:, : part.height, : part.width]


def _spread(relevance: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Hand the relevance of each token to the tokens or pixels around it, on a map of these sides.

    The shares fall linearly from the token's centre to those of its neighbours, as the window of the patch merging,
    ``2 * stride - 1`` wide, reaches from one to the other. So even relevance stays even.
    """
    rows, columns = (
        _shares(side, tokens, stride) for side, tokens in zip((height, width), relevance.shape[1:3], strict=True)
    )
    return (rows @ relevance[0, :, :, 0] @ columns.T)[None, :, :, None]


def _shares(side: int, tokens: int, stride: int) -> Tensor:
    """What each token gives to each place along one axis: ``[side, tokens]``."""
    places = (paddle.arange(side, dtype="float32") / stride).clip(max=tokens - 1)
    distances = (places[:, None] - paddle.arange(tokens, dtype="float32")).abs()
    return F.relu(1 - distances) / stride
