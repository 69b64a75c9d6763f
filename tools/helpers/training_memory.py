"""The memory that training a configuration takes on a GPU, counted from traced programs; no GPU is needed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.autograd.backward_utils import ValueSet

from common.flops import params
from common.pale_transformer import PaleBlock
from tools.helpers.paper_figures import build_configured

__all__ = ["TrainingMemory", "training_memory"]


class TrainingMemory(NamedTuple):
    """Bytes on each GPU.

    Attributes:
        state: weights, gradients, the moments of AdamW, and averaged weights twice, in float32; with ``amp``, the
            weights in bfloat16, too.
        image: what the backward pass needs of the forward pass of one image.
        recomputed: the same if blocks are recomputed.
    """

    state: int
    image: int
    recomputed: int


def training_memory(task: str, file: Path, amp: bool) -> TrainingMemory:
    """Count the memory of a configuration.

    Args:
        amp: bfloat16 with the fused attention, as on GPUs of compute capability 8.0 and up, or float32.

    Raises:
        common.errors.UserError: the configuration is invalid.
    """
    config, model = build_configured(task, file)
    model.train()
    inputs: dict[PaleBlock, list[int]] = {}
    hooks = [
        block.register_forward_pre_hook(lambda block, x: inputs.update({block: x[0].shape}))
        for block in model.sublayers()
        if isinstance(block, PaleBlock)
    ]
    # Builds for CPUs have no BatchNorm in bfloat16, so it counts in float32, which is more than it takes.
    hooks += [
        norm.register_forward_pre_hook(lambda norm, x: x[0].astype("float32"))
        for norm in model.sublayers()
        if isinstance(norm, nn.BatchNorm2D)
    ]
    # Builds for CPUs have no BatchNorm in bfloat16, so it counts in float32, which is more than it takes.
    hooks += [
        norm.register_forward_pre_hook(lambda norm, x: x[0].astype("float32"))
        for norm in model.sublayers()
        if isinstance(norm, nn.BatchNorm2D)
    ]
    image = sum(_saved_bytes(function, layer, shape, amp) for function, layer, shape in _PARTS[task](config, model))
    for hook in hooks:
        hook.remove()

    kinds: dict[tuple, int] = {}  # the blocks of a stage take the same
    for block, shape in inputs.items():
        if tuple(shape) not in kinds:
            kinds[tuple(shape)] = _saved_bytes(_call, block, shape, amp)
    recomputed = image + max(kinds.values())
    for shape in inputs.values():
        recomputed += 4 * math.prod(shape) - kinds[tuple(shape)]  # a block's input, in float32, is kept
    state = params(model) * (4 * (6 if config.TRAIN.EMA_DECAY > 0 else 4) + 2 * amp)
    return TrainingMemory(state, image, recomputed)


# ---- what runs for one image: functions, their layers, and the shapes of the inputs

_Part = tuple[Callable[[nn.Layer, Tensor], Any], nn.Layer, list[int]]


def _call(layer: nn.Layer, x: Tensor) -> Any:
    return layer(x)


def _classification(config: Any, model: nn.Layer) -> Iterator[_Part]:
    side = config.DATA.IMAGE_SIZE
    yield _call, model, [1, 3, side, side]


def _segmentation(config: Any, model: nn.Layer) -> Iterator[_Part]:
    (crop,) = [t["crop_size"] for t in config.train_dataset["transforms"] if t["type"] == "RandomPaddingCrop"]
    yield _segmentation_loss, model, [1, 3, *crop[::-1]]


def _segmentation_loss(model: nn.Layer, images: Tensor) -> list[Tensor]:
    labels = paddle.zeros([1, *images.shape[2:]], "int64")
    return [F.cross_entropy(logits.astype("float32"), labels, axis=1) for logits in model(images)]


def _detection(config: Any, model: nn.Layer) -> Iterator[_Part]:
    from object_detection.flops import detector_parts

    boxes = config.BBoxAssigner["batch_size_per_im"]
    masks = round(boxes * config.BBoxAssigner["fg_fraction"])
    for layer, shape, count in detector_parts(model, 800, 1344, boxes, masks):
        yield _call, layer, [count, *shape]


_PARTS = {
    "image_classification": _classification,
    "semantic_segmentation": _segmentation,
    "object_detection": _detection,
}


# ---- counting


class _Traced(nn.Layer):
    def __init__(self, function: Callable, layer: nn.Layer, amp: bool):
        super().__init__()
        self.layer, self.run = layer, partial(_run, function, layer, amp)

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


@paddle.jit.not_to_static
def _run(function: Callable, layer: nn.Layer, amp: bool, x: Tensor) -> Tensor:
    with paddle.amp.auto_cast(amp, dtype="bfloat16"):
        outputs = function(layer, x)
    return paddle.add_n([output.mean() for output in (outputs if isinstance(outputs, (list, tuple)) else [outputs])])


def _saved_bytes(function: Callable, layer: nn.Layer, shape: list[int], amp: bool) -> int:
    """Bytes of the values of ``function(layer, x)`` that its backward pass reads, without parameters.

    The traced operations are those of GPUs, in float32 or in the types of ``auto_cast``.
    """
    spec = [paddle.static.InputSpec(shape, "float32")]
    static = paddle.jit.to_static(_Traced(function, layer, amp), spec, full_graph=True)
    traced = static.forward.concrete_program
    paddle.enable_static()
    try:
        with paddle.static.program_guard(traced.main_program):
            end = len(traced.main_program.global_block().ops)
            paddle.static.append_backward(traced.outputs[0])
    finally:
        paddle.disable_static()
    operations = traced.main_program.global_block().ops
    forward = ValueSet([value for operation in operations[:end] for value in operation.results()])
    read = [
        value
        for operation in operations[end:]
        if operation.name() != "builtin.combine"  # a list for concat's gradient, which reads no values
        for value in operation.operands_source()
        if value in forward and not operation.is_no_need_buffer(value)
    ]
    return sum(_bytes(value, amp) for value in ValueSet([_storage(value) for value in read]))


def _storage(value: Any) -> Any:
    """The value whose memory a reshaped one shares."""
    while value.get_defining_op().name() in ("pd_op.reshape", "pd_op.squeeze", "pd_op.unsqueeze"):
        value = value.get_defining_op().operand_source(0)
    return value


def _bytes(value: Any, amp: bool) -> int:
    operation = value.get_defining_op()
    if _origin(value).name() == "builtin.parameter":
        return 0
    if amp and _origin(value).name() == "pd_op.softmax":
        if operation.name() == "pd_op.cast":
            return 0
        # The fused attention keeps its outputs and a float32 for each query instead.
        *queries, head_dim = _origin(operation.operand_source(0)).operand_source(0).shape
        return math.prod(queries) * (2 * head_dim + 4)
    return math.prod(value.shape) * paddle.core.size_of_dtype(value.dtype)


def _origin(value: Any) -> Any:
    """The operation that computed a value before it was cast."""
    operation = value.get_defining_op()
    while operation.name() == "pd_op.cast":
        operation = operation.operand_source(0).get_defining_op()
    return operation
