"""What tokens attend to: their groups, the attention weights of one token, and attention rollout."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from common.ablation import ShapedAttention, groupings
from common.layers.padding import pad_to_groups
from common.pale_transformer import PaleTransformer
from tools.helpers.visualize_gradients import backbone_of, gradients_of

__all__ = [
    "BlockAttention",
    "attention_rollout",
    "describe_group",
    "groups_of_token",
    "observed_attention",
    "token_at",
]


def token_at(pixel: tuple[float, float], stride: int, height: int, width: int) -> tuple[int, int]:
    """Row and column of the token whose patch contains a pixel (x, y), on a map of ``height`` x ``width`` tokens."""
    x, y = pixel
    return min(int(y) // stride, height - 1), min(int(x) // stride, width - 1)


def _group_indices(attention: nn.Layer, height: int, width: int) -> tuple[list[np.ndarray], tuple[int, int]]:
    """The groups of an attention layer on a map of these sides.

    Returns:
        For each part of the channels, the tokens of its groups, int64 ``[N, L]``, as indices of the flattened padded
        map; and the sides of that map.
    """
    if isinstance(attention, ShapedAttention):
        kinds, sizes = attention.groupings, attention.multiples
    else:
        kinds, sizes = groupings("pale", attention.pale_size), attention.pale_size
    _, (rows, columns), sides = pad_to_groups(paddle.zeros([1, height, width, 1]), sizes, (height, width))
    index = paddle.arange(math.prod(sides)).reshape([1, *sides, 1])
    return [kind.fitted(rows, columns).group(index, *sides, heads=1)[:, 0, :, 0].numpy() for kind in kinds], sides


# ---- groups


def groups_of_token(
    backbone: PaleTransformer, stage: int, height: int, width: int, token: tuple[int, int]
) -> list[np.ndarray]:
    """The different groups of a token over all blocks of a stage.

    Args:
        stage: from 0.
        height, width: sides of the stage's map, without padding.
        token: its row and column.

    Returns:
        A bool mask ``[H, W]`` of the padded map for each.
    """
    groups: dict[bytes, np.ndarray] = {}
    for block in backbone.stages[stage].blocks:
        parts, sides = _group_indices(block.attention, height, width)
        for indices in parts:
            (own,) = np.flatnonzero((indices == np.ravel_multi_index(token, sides)).any(axis=1))
            tokens = np.zeros(sides, bool)
            tokens.flat[indices[own]] = True
            groups.setdefault(tokens.tobytes(), tokens)
    return list(groups.values())


def describe_group(tokens: np.ndarray) -> tuple[str, str]:
    """The kind of a group, ``rows``, ``columns``, ``window`` or ``whole map``; and text such as ``7 rows, 8 apart``."""
    height, width = tokens.shape
    rows, columns = (np.flatnonzero(tokens.any(axis=axis)) for axis in (1, 0))
    if (len(rows) == height) == (len(columns) == width):
        kind = "whole map" if len(rows) == height else "window"
        return kind, f"{kind} of {len(rows)}x{len(columns)}"
    kind, lines = ("rows", rows) if len(columns) == width else ("columns", columns)
    if len(lines) == 1:
        return kind, f"1 {kind[:-1]}"
    spacing = lines[1] - lines[0]
    return kind, f"{len(lines)} {kind}" + (f", {spacing} apart" if spacing > 1 else "")


# ---- weights


@dataclass(frozen=True)
class BlockAttention:
    """The attention of one block on one image.

    Attributes:
        stage, block: from 0; the block is counted within its stage.
        height, width: sides of the map.
        indices, padded: see :func:`_group_indices`.
        weights: softmax weights ``[N, heads, L, L]`` of each part of the channels, query by key.
    """

    stage: int
    block: int
    height: int
    width: int
    indices: list[np.ndarray]
    padded: tuple[int, int]
    weights: list[Tensor] = field(default_factory=list)

    def of_token(self, token: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """The weights of one token (row, column).

        Returns:
            float32 ``[heads, h, w]``, NaN outside the head's group; and the share of each head's attention that goes
            to padding, ``[heads]``.
        """
        maps = []
        for indices, weights in zip(self.indices, self.weights, strict=True):
            ((group, place),) = np.argwhere(indices == np.ravel_multi_index(token, self.padded))
            of_token = weights[int(group), :, int(place)].numpy()
            of_part = np.full((len(of_token), self.padded[0] * self.padded[1]), np.nan, np.float32)
            of_part[:, indices[group]] = of_token
            maps.append(of_part)
        padded = np.concatenate(maps).reshape(-1, *self.padded)
        inside = padded[:, : self.height, : self.width]
        return inside, np.nansum(padded, axis=(1, 2)) - np.nansum(inside, axis=(1, 2))


@contextmanager
def observed_attention(model: nn.Layer) -> Iterator[list[BlockAttention]]:
    """Collect the attention of every block, in order, while the model runs on one image.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
    """
    seen: list[BlockAttention] = []

    def keep_weights(softmax: nn.Layer, inputs: tuple, weights: Tensor) -> None:
        seen[-1].weights.append(weights)

    with ExitStack() as hooks:
        for stage, layers in enumerate(backbone_of(model).stages):
            for block, layer in enumerate(layers.blocks):

                def begin(attention: nn.Layer, inputs: tuple, stage: int = stage, block: int = block) -> None:
                    _, height, width, _ = inputs[0].shape
                    seen.append(BlockAttention(stage, block, height, width, *_group_indices(attention, height, width)))

                hooks.callback(layer.attention.register_forward_pre_hook(begin).remove)
                hooks.callback(layer.attention.attention.softmax.register_forward_post_hook(keep_weights).remove)
        yield seen


# ---- rollout


def attention_rollout(model: nn.Layer, images: Tensor, score: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The relevance of each pixel for a score, following the attention alone.

    Attention rollout (Abnar and Zuidema, arXiv 2005.00928) with the weights of a class (Chefer et al., arXiv
    2103.15679): each attention weight is multiplied by its gradient, negative products are set to 0, and heads are
    averaged. Both were made for one sequence of tokens. Here, the relevance of a token behind a patch merging is
    distributed over the window of its convolution, with more weight on the center [A: ours]. The relevance that passes
    by all attention, through the residual connections, is subtracted. Convolutions and MLPs are ignored.

    Args:
        model: is or has a Pale Transformer; in evaluation mode.
        images: one, float32 ``[1, 3, H, W]``.
        score: runs the model and returns a scalar.

    Returns:
        float32 ``[H, W]``, 0 or more.
    """
    with observed_attention(model) as blocks:
        value = score(images)
    gradients = iter(gradients_of(value, [weights for block in blocks for weights in block.weights], model))
    matrices = [[F.relu(next(gradients) * w).mean(1).numpy() for w in block.weights] for block in blocks]
    merging_strides = [stage.merging.conv._stride[0] for stage in backbone_of(model).stages]

    last = blocks[-1]
    relevance = np.full((last.height, last.width), 1 / (last.height * last.width), np.float32)
    residual = relevance
    for number in reversed(range(len(blocks))):
        block = blocks[number]
        relevance = relevance + _attended(relevance, block, matrices[number])
        if block.block == 0:
            height, width = (blocks[number - 1].height, blocks[number - 1].width) if number else images.shape[2:]
            stride = merging_strides[block.stage]
            relevance = _distribute(relevance, stride, height, width)
            residual = _distribute(residual, stride, height, width)
    return relevance - residual


def _attended(relevance: np.ndarray, block: BlockAttention, matrices: list[np.ndarray]) -> np.ndarray:
    """Pass the relevance ``[h, w]`` of each token on to the tokens that it attends to, as the mean of all parts."""
    padded = np.zeros(block.padded, np.float32)
    padded[: block.height, : block.width] = relevance
    attended = np.zeros_like(padded)
    for indices, matrix in zip(block.indices, matrices, strict=True):
        # Each token is in one group of a part: nothing is written twice.
        attended.flat[indices] += (padded.flat[indices][:, None] @ matrix)[:, 0]
    return attended[: block.height, : block.width] / len(matrices)


def _distribute(relevance: np.ndarray, stride: int, height: int, width: int) -> np.ndarray:
    """Distribute the relevance of each token over the map (or image) below its patch merging.

    The shares fall linearly from the center of the token to those of its neighbors, as far as the window of the
    convolution reaches, ``2 * stride - 1``. So constant relevance stays constant.
    """

    def shares(side: int, tokens: int) -> np.ndarray:
        places = np.minimum(np.arange(side, dtype=np.float32) / stride, tokens - 1)
        return np.maximum(1 - np.abs(places[:, None] - np.arange(tokens, dtype=np.float32)), 0) / stride

    return shares(height, relevance.shape[0]) @ relevance @ shares(width, relevance.shape[1]).T
