"""The model of the unofficial PyTorch reading [U] in float64 NumPy, and the mapping of its weights to ours.

It shares no code with the project: maps are ``[B, C, H, W]``, and attention is computed over all pairs of tokens, with
a mask that keeps the pairs of one pale. ``docs/reproduction.md`` lists where the two models differ.
"""

from __future__ import annotations

import re

import numpy as np
from scipy.special import erf, softmax

State = dict[str, np.ndarray]


def random_state(channels, depths, classes: int) -> State:
    """A float32 state dict of random values, with the names and shapes of the unofficial code."""
    shapes: dict[str, tuple[int, ...]] = {}
    previous = 3
    for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        kernel = 3 if stage else 7
        shapes[f"patch_merg_convs.{stage}.weight"] = (width, previous, kernel, kernel)
        for block in range(depth):
            prefix = f"ps_blocks.{stage}.{block}"
            shapes |= {f"{prefix}.{norm}.ln.weight": (width,) for norm in ("norm1", "norm2")}
            for qkv in (f"{prefix}.attn.qkv.{number}" for number in range(3)):
                shapes |= {f"{qkv}.bn.{name}": (width,) for name in ("weight", "running_mean", "running_var")}
                shapes |= {f"{qkv}.dw.weight": (width, 1, 3, 3), f"{qkv}.pw.weight": (width, width, 1, 1)}
            shapes[f"{prefix}.cpe.weight"] = (width, 1, 3, 3)
            shapes[f"{prefix}.attn.proj.weight"] = (width, width, 1, 1)
            shapes[f"{prefix}.mlp.fc1.weight"] = (4 * width, width, 1, 1)
            shapes[f"{prefix}.mlp.fc2.weight"] = (width, 4 * width, 1, 1)
        previous = width
    shapes["proj.weight"] = (classes, previous)
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")}

    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif name.endswith(("running_var", "ln.weight", "bn.weight")):
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        state[name] = array.astype(np.float32)
    return state


# Their names, and those of our checkpoints.
_NAMES = (
    (r"^patch_merg_convs\.(\d+)", r"stages.\1.merging.conv"),
    (r"^ps_blocks\.(\d+)\.(\d+)", r"stages.\1.blocks.\2"),
    (r"\.cpe\.", ".position_encoding."),
    (r"\.ln\.", "."),
    (r"\.attn\.qkv\.0\.", ".attention.query."),
    (r"\.attn\.qkv\.1\.", ".attention.key."),
    (r"\.attn\.qkv\.2\.", ".attention.value."),
    (r"\.attn\.proj\.", ".attention.projection."),
    (r"\.dw\.", ".depthwise."),
    (r"\.bn\.running_mean$", ".norm._mean"),
    (r"\.bn\.running_var$", ".norm._variance"),
    (r"\.bn\.", ".norm."),
    (r"\.pw\.", ".pointwise."),
    (r"^proj\.", "head."),
)


def to_our_weights(state: State) -> State:
    """Map a state dict to weights of our model with ``stage_norms=False`` and twice the ``num_heads``.

    - The weight of a linear layer or a 1x1 convolution, ``[out, in, ...]``, becomes ``[in, out]``.
    - The bias of a depthwise convolution is subtracted from the running mean of the BatchNorm behind it.
    - They scale the products by ``(2 * head width) ** -0.5``, we by ``head width ** -0.5``: the queries take the rest.
    """
    weights = {}
    for name, array in state.items():
        if name.endswith((".dw.bias", ".num_batches_tracked")):
            continue
        if name.endswith(".running_mean"):
            array = array - state[name.replace("bn.running_mean", "dw.bias")]
        if ".attn.qkv.0.pw." in name:
            array = array * np.float32(0.5**0.5)
        if re.search(r"\.(pw|fc1|fc2|attn\.proj)\.weight$|^proj\.weight$", name):
            array = np.ascontiguousarray(array.reshape(array.shape[:2]).T)
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        weights[name] = array
    return weights


def logits(state: State, images: np.ndarray, heads, pale: int) -> np.ndarray:
    """Map images ``[B, 3, H, W]`` to ``[B, classes]``, before the softmax; ``heads`` of one half, for each stage."""
    state = {name: array.astype(np.float64) for name, array in state.items()}
    x = images.astype(np.float64)
    for stage in range(4):
        merging = _below(state, f"patch_merg_convs.{stage}")
        x = _convolve(x, merging["weight"], merging["bias"], stride=2 if stage else 4)
        block = 0
        while block_state := _below(state, f"ps_blocks.{stage}.{block}"):
            x = _block(block_state, x, heads[stage], pale)
            block += 1
    return x.mean((2, 3)) @ state["proj.weight"].T + state["proj.bias"]


def _below(state: State, prefix: str) -> State:
    return {name.removeprefix(f"{prefix}."): a for name, a in state.items() if name.startswith(f"{prefix}.")}


def _block(state: State, x: np.ndarray, heads: int, pale: int) -> np.ndarray:
    x = x + _convolve(x, state["cpe.weight"], state["cpe.bias"])
    x = x + _attend(state, _layer_norm(x, state["norm1.ln.weight"], state["norm1.ln.bias"]), heads, pale)
    y = _layer_norm(x, state["norm2.ln.weight"], state["norm2.ln.bias"])
    y = _convolve(y, state["mlp.fc1.weight"], state["mlp.fc1.bias"])
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return x + _convolve(y, state["mlp.fc2.weight"], state["mlp.fc2.bias"])


def _attend(state: State, x: np.ndarray, heads: int, pale: int) -> np.ndarray:
    batch, channels, height, width = x.shape
    qkv = []
    for number in range(3):
        one = _below(state, f"attn.qkv.{number}")
        y = _convolve(x, one["dw.weight"], one["dw.bias"])
        y = (y - _channels(one["bn.running_mean"])) / np.sqrt(_channels(one["bn.running_var"]) + 1e-5)
        y = y * _channels(one["bn.weight"]) + _channels(one["bn.bias"])
        y = _convolve(y, one["pw.weight"], one["pw.bias"])
        qkv.append(y.reshape(batch, 2, heads, channels // 2 // heads, height * width))  # 2: rows, columns
    rows, columns = np.divmod(np.arange(height * width), width)
    result = np.empty_like(qkv[2])
    for half, (position, side) in enumerate(((rows, height), (columns, width))):
        spacing = side // pale
        same_pale = position[:, None] % spacing == position[None] % spacing
        query, key, value = (array[:, half] for array in qkv)
        scores = np.einsum("bhdi,bhdj->bhij", query, key) * (channels / heads) ** -0.5
        weights = softmax(np.where(same_pale, scores, -np.inf), axis=-1)
        result[:, half] = np.einsum("bhij,bhdj->bhdi", weights, value)
    result = result.reshape(batch, channels, height, width)
    return _convolve(result, state["attn.proj.weight"], state["attn.proj.bias"])


def _convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int = 1) -> np.ndarray:
    """A convolution with padding ``k // 2``; depthwise if the weight has one input channel and the map has several."""
    size = weight.shape[-1]
    border = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    depthwise = weight.shape[1] == 1 and x.shape[1] > 1
    equation = "bchwij,cij->bchw" if depthwise else "bchwij,ocij->bohw"
    return np.einsum(equation, windows, weight[:, 0] if depthwise else weight, optimize=True) + _channels(bias)


def _layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x * _channels(weight) + _channels(bias)


def _channels(array: np.ndarray) -> np.ndarray:
    return array[None, :, None, None]
