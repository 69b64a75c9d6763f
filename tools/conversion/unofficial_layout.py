"""The names and shapes of the unofficial PyTorch reading's state dict [U], and ours: from one to the other and back.

``docs/reproduction.md`` says where the two models differ. What can be equal is made equal:

- A 1x1 convolution ``[out, in, 1, 1]`` and a linear layer ``[out, in]`` are a linear layer ``[in, out]`` here.
- The bias of a depthwise convolution before a BatchNorm is taken off the BatchNorm's running mean, which leaves the
  function as it is in training and in evaluation; on the way back the bias is zero.
- There a half of the channels has ``num_heads`` heads, and products are scaled as if the heads were twice as wide. Here
  ``num_heads`` counts both halves, and the scale is that of the width. So the number doubles, and the query's pointwise
  convolution takes the factor sqrt(1/2). The product is kept in float64, from which the way back makes the same float16
  or float32 numbers again; loading it into a model rounds it.
- Norms after the patch mergings and before the pooling exist only here, and only with ``stage_norms``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from common.errors import UserError

__all__ = ["Conversion", "Dimensions", "to_paddle", "to_torch"]

Arrays = Mapping[str, np.ndarray]

_QUERY_FACTOR = 0.5**0.5


@dataclass(frozen=True)
class Dimensions:
    """What the shapes tell of a model; the numbers of heads and the pale size are not among it.

    Attributes:
        channels, depths, hidden: for each of four stages, its width, its blocks, and the hidden width of their MLPs.
        classes: outputs of the head; 0 if there is none.
    """

    in_channels: int
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    hidden: tuple[int, ...]
    classes: int


@dataclass
class Conversion:
    """What a conversion made of a state dict.

    Attributes:
        weights: what could be mapped, under the new names.
        unmapped: names that have no place in the other layout.
        missing: names that the file lacks.
        mismatched: ``name (shape) for (shape)`` of arrays of another shape, and names of those that hold no floats.
        notes: what was changed other than names and axes.
    """

    dimensions: Dimensions
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    unmapped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every array found its place, so that the other model computes the same."""
        return not (self.unmapped or self.missing or self.mismatched)


def to_paddle(state: Arrays) -> Conversion:
    """Map a state dict of the unofficial model to one of ours, for ``stage_norms=False`` and twice the ``num_heads``.

    Raises:
        UserError: it is of another layout, or of widths that our model cannot have.
    """
    state = {name.removeprefix("module."): array for name, array in state.items()}  # as DistributedDataParallel saves
    dimensions = _dimensions(state, "patch_merg_convs.{}", "ps_blocks.{}.{}", "proj")
    _require_our_widths(dimensions)
    conversion = Conversion(dimensions)
    for name in [name for name in state if name.endswith(".bn.num_batches_tracked")]:
        del state[name]  # Paddle's BatchNorm keeps no count
    _fold_depthwise_biases(state, conversion)
    _add_pointwise_biases(state, conversion)
    for entry in _entries(dimensions):
        _move(conversion, state, entry, to_torch=False)
    _scale_queries(conversion.weights, _QUERY_FACTOR, "attention.query.pointwise", "attention.key.pointwise")
    conversion.unmapped = list(state)
    return conversion


def to_torch(weights: Arrays) -> Conversion:
    """Map weights of ours to a state dict of the unofficial model, for half the ``num_heads`` and ``qkv_bias=True``.

    Raises:
        UserError: they are no weights of a Pale Transformer's classification model.
    """
    state = dict(weights)
    dimensions = _dimensions(state, "stages.{}.merging.conv", "stages.{}.blocks.{}", "head")
    conversion = Conversion(dimensions)
    for entry in _entries(dimensions):
        _move(conversion, state, entry, to_torch=True)
    _scale_queries(conversion.weights, 1 / _QUERY_FACTOR, "attn.qkv.0.pw", "attn.qkv.1.pw")
    for name in [name for name in conversion.weights if name.endswith(".dw.weight")]:
        prefix, weight = name.removesuffix("dw.weight"), conversion.weights[name]
        conversion.weights[f"{prefix}dw.bias"] = np.zeros(weight.shape[0], weight.dtype)
        conversion.weights[f"{prefix}bn.num_batches_tracked"] = np.zeros((), np.int64)
    conversion.unmapped = list(state)
    return conversion


@dataclass(frozen=True)
class _Entry:
    """An array under both names, with its shape in PyTorch."""

    torch: str
    paddle: str
    torch_shape: tuple[int, ...]
    is_matrix: bool = False

    @property
    def paddle_shape(self) -> tuple[int, ...]:
        return self.torch_shape[1::-1] if self.is_matrix else self.torch_shape


def _entries(dimensions: Dimensions) -> Iterator[_Entry]:
    """All arrays that both models have."""
    previous = dimensions.in_channels
    stages = zip(dimensions.channels, dimensions.depths, dimensions.hidden, strict=True)
    for stage, (width, depth, hidden) in enumerate(stages):
        kernel = 3 if stage else 7
        yield from _layer(
            f"patch_merg_convs.{stage}", f"stages.{stage}.merging.conv", (width, previous, kernel, kernel)
        )
        for block in range(depth):
            yield from _block(f"ps_blocks.{stage}.{block}", f"stages.{stage}.blocks.{block}", width, hidden)
        previous = width
    if dimensions.classes:
        yield from _layer("proj", "head", (dimensions.classes, previous), True)


def _block(torch: str, paddle: str, width: int, hidden: int) -> Iterator[_Entry]:
    yield from _layer(f"{torch}.cpe", f"{paddle}.position_encoding", (width, 1, 3, 3))
    for norm in ("norm1", "norm2"):
        yield from _layer(f"{torch}.{norm}.ln", f"{paddle}.{norm}", (width,))
    for number, part in enumerate(("query", "key", "value")):
        theirs, ours = f"{torch}.attn.qkv.{number}", f"{paddle}.attention.{part}"
        yield _Entry(f"{theirs}.dw.weight", f"{ours}.depthwise.weight", (width, 1, 3, 3))
        yield from _layer(f"{theirs}.bn", f"{ours}.norm", (width,))
        yield _Entry(f"{theirs}.bn.running_mean", f"{ours}.norm._mean", (width,))
        yield _Entry(f"{theirs}.bn.running_var", f"{ours}.norm._variance", (width,))
        yield from _layer(f"{theirs}.pw", f"{ours}.pointwise", (width, width, 1, 1), True)
    yield from _layer(f"{torch}.attn.proj", f"{paddle}.attention.projection", (width, width, 1, 1), True)
    yield from _layer(f"{torch}.mlp.fc1", f"{paddle}.mlp.fc1", (hidden, width, 1, 1), True)
    yield from _layer(f"{torch}.mlp.fc2", f"{paddle}.mlp.fc2", (width, hidden, 1, 1), True)


def _layer(torch: str, paddle: str, shape: tuple[int, ...], is_matrix: bool = False) -> Iterator[_Entry]:
    yield _Entry(f"{torch}.weight", f"{paddle}.weight", shape, is_matrix)
    yield _Entry(f"{torch}.bias", f"{paddle}.bias", shape[:1])


def _move(conversion: Conversion, state: dict[str, np.ndarray], entry: _Entry, to_torch: bool) -> None:
    """Take an array out of the state and put it under its new name, transposed if it is a matrix."""
    names, shapes = (entry.torch, entry.paddle), (entry.torch_shape, entry.paddle_shape)
    (target, source), (target_shape, shape) = (names, shapes) if to_torch else (names[::-1], shapes[::-1])
    if source not in state:
        conversion.missing.append(source)
        return
    array = state.pop(source)
    if array.shape != shape:
        conversion.mismatched.append(f"{source} {array.shape} for {shape}")
    elif array.dtype.kind != "f":
        conversion.mismatched.append(f"{source} of {array.dtype} for floating-point numbers")
    elif entry.is_matrix:
        conversion.weights[target] = np.ascontiguousarray(array.reshape(shape[:2]).T).reshape(target_shape)
    else:
        conversion.weights[target] = array


def _dimensions(state: Arrays, merging: str, block: str, head: str) -> Dimensions:
    none = np.zeros(())
    kernels = [state.get(f"{merging.format(stage)}.weight", none) for stage in range(4)]
    hidden = [state.get(f"{block.format(stage, 0)}.mlp.fc1.bias", none) for stage in range(4)]
    shapes_fit = all(kernel.ndim == 4 and kernel.size for kernel in kernels) and all(bias.ndim == 1 for bias in hidden)
    if not shapes_fit or f"{merging.format(4)}.weight" in state:
        raise UserError(
            f"these are no weights of this layout, whose four stages begin with {merging.format(0)}.weight to "
            f"{merging.format(3)}.weight, [out, in, k, k], and have {block.format(0, 0)}.mlp.fc1.bias and so on; "
            "see docs/reproduction.md, and -to for the direction"
        )
    pattern = re.compile(re.escape(block).replace(r"\{\}", r"(\d+)") + r"\.")
    blocks = {match.groups() for name in state if (match := pattern.match(name))}
    bias = state.get(f"{head}.bias")
    return Dimensions(
        in_channels=kernels[0].shape[1],
        channels=tuple(kernel.shape[0] for kernel in kernels),
        depths=tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4)),
        hidden=tuple(bias.shape[0] for bias in hidden),
        classes=bias.shape[0] if bias is not None and bias.ndim == 1 else 0,
    )


def _require_our_widths(dimensions: Dimensions) -> None:
    first, ratio = dimensions.channels[0], dimensions.hidden[0] / dimensions.channels[0]
    if dimensions.channels != tuple(first * 2**stage for stage in range(4)):
        raise UserError(f"its stages have {dimensions.channels} channels; in our model they double from stage to stage")
    if dimensions.hidden != tuple(int(width * ratio) for width in dimensions.channels):
        raise UserError(
            f"its MLPs are {dimensions.hidden} wide; our model has one ratio to the channels for all stages"
        )


def _fold_depthwise_biases(state: dict[str, np.ndarray], conversion: Conversion) -> None:
    biases = [name for name in state if re.fullmatch(r"ps_blocks\.\d+\.\d+\.attn\.qkv\.[012]\.dw\.bias", name)]
    for name in biases:
        mean = name.replace(".dw.bias", ".bn.running_mean")
        if mean in state and state[mean].shape == state[name].shape:
            bias = state.pop(name)
            state[mean] = (state[mean] - bias.astype(np.float64)).astype(state[mean].dtype)
    if biases:
        conversion.notes.append(
            f"{len(biases)} biases of depthwise convolutions were taken off the means of BatchNorms"
        )


def _add_pointwise_biases(state: dict[str, np.ndarray], conversion: Conversion) -> None:
    """Give a model without ``qkv_bias`` the biases that ours always has."""
    weights = [name for name in state if re.fullmatch(r"ps_blocks\.\d+\.\d+\.attn\.qkv\.[012]\.pw\.weight", name)]
    lacking = [name for name in weights if name.replace(".weight", ".bias") not in state]
    for name in lacking:
        state[name.replace(".weight", ".bias")] = np.zeros(state[name].shape[0], state[name].dtype)
    if lacking:
        conversion.notes.append(f"{len(lacking)} pointwise convolutions without a bias have one of zeros now")


def _scale_queries(weights: dict[str, np.ndarray], factor: float, query: str, key: str) -> None:
    """Multiply by the factor: into float64 what has the dtype of the key's weights, what has not into that dtype."""
    for name in [name for name in weights if f".{query}." in name]:
        dtype = weights.get(name.replace(query, key), weights[name]).dtype
        product = weights[name].astype(np.float64) * factor
        weights[name] = product if weights[name].dtype == dtype else product.astype(dtype)
