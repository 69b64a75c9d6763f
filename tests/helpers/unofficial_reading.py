"""The unofficial reading's model [U] in float64 NumPy, as its documentation here describes it, to check conversions by.

It shares nothing with the project: maps are ``[B, C, H, W]``, and attention is computed over all pairs of tokens, of
which a mask leaves those of the same pale.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erf, softmax


def make_state(
    channels=(8, 16, 32, 64), depths=(1, 2, 1, 1), ratio=4, classes=5, qkv_bias=True, dtype=np.float32
) -> dict[str, np.ndarray]:
    """A state dict with its names and shapes, and random numbers."""
    shapes: dict[str, tuple[int, ...]] = {}
    previous = 3
    for stage, (width, depth) in enumerate(zip(channels, depths, strict=True)):
        kernel = 3 if stage else 7
        shapes[f"patch_merg_convs.{stage}.weight"] = (width, previous, kernel, kernel)
        shapes[f"patch_merg_convs.{stage}.bias"] = (width,)
        for block in range(depth):
            prefix = f"ps_blocks.{stage}.{block}"
            for norm in ("norm1.ln", "norm2.ln", "attn.qkv.0.bn", "attn.qkv.1.bn", "attn.qkv.2.bn"):
                shapes |= {f"{prefix}.{norm}.weight": (width,), f"{prefix}.{norm}.bias": (width,)}
            for number in range(3):
                qkv = f"{prefix}.attn.qkv.{number}"
                shapes |= {f"{qkv}.dw.weight": (width, 1, 3, 3), f"{qkv}.pw.weight": (width, width, 1, 1)}
                shapes |= {f"{qkv}.bn.{name}": (width,) for name in ("running_mean", "running_var")}
                if qkv_bias:
                    shapes |= {f"{qkv}.dw.bias": (width,), f"{qkv}.pw.bias": (width,)}
            for layer, shape in (
                ("cpe", (width, 1, 3, 3)),
                ("attn.proj", (width, width, 1, 1)),
                ("mlp.fc1", (ratio * width, width, 1, 1)),
                ("mlp.fc2", (width, ratio * width, 1, 1)),
            ):
                shapes |= {f"{prefix}.{layer}.weight": shape, f"{prefix}.{layer}.bias": shape[:1]}
        previous = width
    shapes |= {"proj.weight": (classes, previous), "proj.bias": (classes,)}

    rng = np.random.default_rng(0)
    state = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        elif name.endswith(("running_var", "ln.weight", "bn.weight")):
            array = rng.uniform(0.5, 1.5, shape)
        else:
            array = rng.normal(0, 0.3, shape)
        state[name] = array.astype(dtype)
        if name.endswith("running_var"):
            state[name.replace("running_var", "num_batches_tracked")] = np.array(7, np.int64)
    return state


def logits(state: dict[str, np.ndarray], images: np.ndarray, heads: tuple[int, ...], pale: int) -> np.ndarray:
    """Map images ``[B, 3, H, W]`` to ``[B, classes]``, before the softmax; ``heads`` are those of a half."""
    state = {name: array.astype(np.float64) for name, array in state.items()}

    def part(prefix):
        return {
            name.removeprefix(f"{prefix}."): value for name, value in state.items() if name.startswith(f"{prefix}.")
        }

    x = images.astype(np.float64)
    for stage in range(4):
        merging = part(f"patch_merg_convs.{stage}")
        x = convolve(x, merging["weight"], merging["bias"], stride=2 if stage else 4)
        block = 0
        while block_state := part(f"ps_blocks.{stage}.{block}"):
            x = run_block(block_state, x, heads[stage], pale)
            block += 1
    return x.mean((2, 3)) @ state["proj.weight"].T + state["proj.bias"]


def run_block(state, x, heads, pale):
    x = x + convolve(x, state["cpe.weight"], state["cpe.bias"])
    normed = layer_norm(x, state["norm1.ln.weight"], state["norm1.ln.bias"])
    x = x + attend(state, normed, heads, pale)
    y = layer_norm(x, state["norm2.ln.weight"], state["norm2.ln.bias"])
    y = convolve(y, state["mlp.fc1.weight"], state["mlp.fc1.bias"])
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return x + convolve(y, state["mlp.fc2.weight"], state["mlp.fc2.bias"])


def attend(state, x, heads, pale):
    batch, channels, height, width = x.shape
    qkv = []
    for number in range(3):
        one = {name.removeprefix(f"attn.qkv.{number}."): array for name, array in state.items()}
        y = convolve(x, one["dw.weight"], one.get("dw.bias", 0.0))
        deviation = np.sqrt(one["bn.running_var"] + 1e-5)
        y = (y - per_channel(one["bn.running_mean"])) / per_channel(deviation)
        y = y * per_channel(one["bn.weight"]) + per_channel(one["bn.bias"])
        y = convolve(y, one["pw.weight"], one.get("pw.bias", 0.0))
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
    return convolve(result, state["attn.proj.weight"], state["attn.proj.bias"])


def convolve(x, weight, bias, stride=1):
    """A convolution with padding k // 2; depthwise if the weight has one input channel for many."""
    size = weight.shape[-1]
    border = size // 2
    x = np.pad(x, ((0, 0), (0, 0), (border, border), (border, border)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
    depthwise = weight.shape[1] == 1 and x.shape[1] > 1
    equation = "bchwij,cij->bchw" if depthwise else "bchwij,ocij->bohw"
    y = np.einsum(equation, windows, weight[:, 0] if depthwise else weight, optimize=True)
    return y + per_channel(np.broadcast_to(bias, weight.shape[:1]))


def layer_norm(x, weight, bias):
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    return x * per_channel(weight) + per_channel(bias)


def per_channel(array):
    return array[None, :, None, None]
