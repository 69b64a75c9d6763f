"""Attention within groups by its definition: one attention over the whole map, masked by coordinates; in NumPy."""

from __future__ import annotations

import numpy as np
from paddle import nn

from common.pale_attention import PSAttention, SeparableProjection

# What the groups of each part of the channels hold along the rows' and along the columns' axis.
KINDS = {
    "pale": [("interlaced", "all"), ("all", "interlaced")],
    "axial": [("interlaced", "all"), ("all", "interlaced")],
    "cross": [("neighbors", "all"), ("all", "neighbors")],
    "window": [("neighbors", "neighbors")],
    "global": [("all", "all")],
}


def random_map(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def randomize(layer: nn.Layer, deviation: float = 0.6, seed: int = 0) -> nn.Layer:
    """Give every parameter and statistic a value that shows when it is left out."""
    rng = np.random.default_rng(seed)
    for name, tensor in layer.state_dict().items():
        value = rng.uniform(0.5, 1.5, tensor.shape) if "variance" in name else rng.normal(0, deviation, tensor.shape)
        tensor.set_value(value.astype(str(tensor.dtype).removeprefix("paddle.")))
    return layer


def project(layer: SeparableProjection, x: np.ndarray) -> list[np.ndarray]:
    """Query, key and value: depthwise 3x3 with zeros around the map, BatchNorm, pointwise; ``[B, H, W, C]``."""
    height, width = x.shape[1:3]
    x = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    norm, results = layer.norm, []
    for number, linear in enumerate((layer.query, layer.key, layer.value)):
        part = slice(number * x.shape[-1], (number + 1) * x.shape[-1])
        weight = layer.depthwise.weight.numpy()[part, 0]
        y = sum(x[:, i : i + height, j : j + width] * weight[:, i, j] for i in range(3) for j in range(3))
        mean, variance = norm._mean.numpy()[part], norm._variance.numpy()[part]
        if layer.training:
            mean, variance = y.mean((0, 1, 2)), y.var((0, 1, 2))
        y = (y - mean) / np.sqrt(variance + 1e-5) * norm.weight.numpy()[part] + norm.bias.numpy()[part]
        results.append(y @ linear.weight.numpy() + linear.bias.numpy())
    return results


def attend(query, key, value, heads: int, visible: np.ndarray, biases: np.ndarray) -> np.ndarray:
    """Multi-head attention of ``[B, L, C]`` tokens; ``visible[i, j]``: token i sees token j; ``biases[head, i, j]``."""
    outputs = []
    for head, (q, k, v) in enumerate(zip(*(np.split(t, heads, axis=-1) for t in (query, key, value)), strict=True)):
        scores = np.where(visible, q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + biases[head], -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append(scores / scores.sum(-1, keepdims=True) @ v)
    return np.concatenate(outputs, -1)


def group_and_place(kind: str, position: np.ndarray, side: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Group, and place within the group, of the tokens at these positions along one axis."""
    if kind == "all":
        return 0 * position, position
    if kind == "interlaced":
        return position % (side // size), position // (side // size)
    return position // size, position % size


def masked_attention(layer: PSAttention, x: np.ndarray, size, attention: str = "pale", only: int | None = None):
    """What a layer has to compute of ``[B, H, W, C]``: in each part of the channels, a token sees those of its group.

    Args:
        size: rows and columns of a group.
        only: the one part that the sequential form has.
    """
    batch, height, width, channels = x.shape
    kinds = KINDS[attention] if only is None else KINDS[attention][only : only + 1]
    sides = np.array([height, width])
    sizes = np.ones(2, int) if attention == "axial" else np.minimum(size, sides)
    split = [any(kind[axis] != "all" for kind in kinds) for axis in (0, 1)]
    pads = np.where(split, -sides % sizes, 0)
    x = np.pad(x, [(0, 0), (0, pads[0]), (0, pads[1]), (0, 0)])
    padded = x.shape[1:3]
    qkv = [t.reshape(batch, -1, channels) for t in project(layer.qkv, x)]
    heads, attended = layer.num_heads // len(kinds), []
    for part, kind in enumerate(kinds):
        lines = np.indices(padded).reshape(2, -1)
        pairs = [group_and_place(kind[axis], lines[axis], padded[axis], sizes[axis]) for axis in (0, 1)]
        groups, places = zip(*pairs, strict=True)
        visible = (groups[0][:, None] == groups[0]) & (groups[1][:, None] == groups[1])
        biases = np.zeros((heads, 1, 1))
        if getattr(layer, "position_biases", None) is not None:
            table = layer.position_biases[part].table.numpy()
            rows, columns = (place[:, None] - place for place in places)
            biases = table[:, rows + table.shape[1] // 2, columns + table.shape[2] // 2]
        attended.append(attend(*(np.split(t, len(kinds), axis=-1)[part] for t in qkv), heads, visible, biases))
    y = np.concatenate(attended, -1).reshape(batch, *padded, channels)[:, :height, :width]
    return y @ layer.projection.weight.numpy() + layer.projection.bias.numpy()
