"""What each part of a Pale Transformer's eager forward pass costs, as hooks of its layers see it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import paddle
from paddle import Tensor, nn

from common.flops import flops_by_layer
from common.pale_attention import ScaledDotProductAttention
from common.pale_transformer import PaleBlock, PaleTransformer, create_model
from tools.benchmarking.paddle_models import prepare
from tools.benchmarking.subjects import Profile

__all__ = ["PARTS", "ProfileRunner", "build"]

MERGING, ENCODING, NORMS = "patch merging", "position encoding", "norms"
DEPTHWISE, PROJECTIONS, GROUPING, ATTENTION = "q/k/v depthwise", "projections", "grouping", "attention"
MLP, ADDITIONS, HEAD = "MLP", "additions", "head"
PARTS = (MERGING, ENCODING, NORMS, DEPTHWISE, PROJECTIONS, GROUPING, ATTENTION, MLP, ADDITIONS, HEAD)

Part = tuple[str, str]  # stage, part
_HEAD: Part = (HEAD, HEAD)


class ProfileRunner:
    """Runs a model with a clock around each part.

    The time between two events (a layer begins or ends) belongs to the innermost part that is running. Inside the
    attention, what comes before the first pointwise convolution are the depthwise ones with the padding, and what is no
    layer after that is grouping: gathering pales and heads, putting rows and columns back, joining the halves.

    The bytes are those that a part must move if it kept everything in between in registers and caches: its inputs, its
    outputs and its weights, once. The hidden map of the MLP and the scores of the attention are not among them.

    Args:
        model: ready to run.
        images: its input.
        multiply_adds: of this input by the name of the sublayer, see :func:`common.flops.flops_by_layer`.
        synchronize: waits until the device has done what it was given.
    """

    def __init__(
        self,
        model: PaleTransformer,
        images: Tensor,
        multiply_adds: dict[str, int],
        synchronize: Callable[[], None] = lambda: None,
    ):
        self._model, self._images, self._synchronize = model, images, synchronize
        self.images, self.flops = images.shape[0], 2 * sum(multiply_adds.values())
        self._names = {id(layer): name for name, layer in model.named_sublayers()}
        self._part_of: dict[str, Part] = {}  # by the names of the layers that are watched
        self._bytes: dict[Part, int] = defaultdict(int)
        self._seconds: list[dict[Part, float]] = []
        self._running: list[Part] = []
        self._counting = True
        self._watch_model(model)
        self.run()  # which counts the bytes
        self._counting = False
        self._seconds.clear()
        self._multiply_adds: dict[Part, int] = defaultdict(int)
        for name, count in multiply_adds.items():
            self._multiply_adds[self._innermost(name)] += count

    @paddle.no_grad()
    def run(self) -> float:
        self._seconds.append(defaultdict(float))
        self._running = [("1", MERGING)]  # the first stage's, until the last stage has ended
        self._since = time.perf_counter()
        self._model(self._images)
        self._charge()
        return sum(self._seconds[-1].values())

    def parts(self) -> list[dict[str, str | float]]:
        """What each part costs, in the order of the model; seconds are the means of the runs since the last call."""
        runs, self._seconds = self._seconds, []
        return [
            {
                "stage": part[0],
                "part": part[1],
                "multiply_adds": self._multiply_adds[part],
                "bytes": self._bytes[part],
                "seconds": sum(seconds[part] for seconds in runs) / len(runs),
            }
            for part in sorted(self._bytes, key=lambda part: (part[0], PARTS.index(part[1])))
        ]

    # ---- what is watched

    def _watch_model(self, model: PaleTransformer) -> None:
        for number, stage in enumerate(model.stages, 1):
            self._watch(stage.merging, (str(number), MERGING), _moved)
            for block in stage.blocks:
                self._watch_block(block, str(number))
        model.stages[-1].register_forward_post_hook(lambda *_: self._begin_head())
        self._watch(model.norm, _HEAD, lambda layer, inputs, output: _bytes(*inputs, *layer.parameters()))
        self._watch(model.head, _HEAD, lambda layer, inputs, output: _bytes(output, *layer.parameters()))

    def _watch_block(self, block: PaleBlock, stage: str) -> None:
        def watch(layer: nn.Layer, part: str, moved: Callable[..., int] = _moved, then: str | None = None) -> None:
            self._watch(layer, (stage, part), moved, (stage, then) if then else None)

        # Three additions, each of two maps to a third.
        watch(block, ADDITIONS, lambda layer, inputs, output: 9 * _bytes(output))
        watch(block.position_encoding, ENCODING)
        watch(block.norm1, NORMS)
        watch(block.norm2, NORMS)
        watch(block.mlp, MLP)
        attention = block.attention
        kernels = [
            parameter
            for layer in attention.sublayers()
            if isinstance(layer, nn.Conv2D)
            for parameter in layer.parameters()
        ]
        watch(attention, DEPTHWISE, lambda layer, inputs, output: _bytes(*inputs, *kernels))
        for layer in attention.sublayers():
            if isinstance(layer, nn.LayerList):  # the parts of one projection, which have one input
                for part in layer[1:]:
                    watch(part, PROJECTIONS, lambda part, inputs, output: _bytes(output, *part.parameters()), GROUPING)
            elif isinstance(layer, nn.Linear) and self._names[id(layer)] not in self._part_of:
                watch(layer, PROJECTIONS, then=GROUPING)
            elif isinstance(layer, ScaledDotProductAttention):
                watch(layer, ATTENTION)
                layer.register_forward_post_hook(partial(self._count_around_attention, stage))

    def _watch(
        self, layer: nn.Layer, part: Part, moved: Callable[[nn.Layer, tuple, Tensor], int], then: Part | None = None
    ) -> None:
        """Charge what runs inside a layer to a part, and what follows in the enclosing layer to ``then``."""
        self._part_of[self._names[id(layer)]] = part

        def begin(layer: nn.Layer, inputs: tuple) -> None:
            self._charge()
            self._running.append(part)

        def end(layer: nn.Layer, inputs: tuple, output: Tensor) -> None:
            self._charge()
            self._running.pop()
            if then:
                self._running[-1] = then
            if self._counting:
                self._bytes[part] += moved(layer, inputs, output)

        layer.register_forward_pre_hook(begin)
        layer.register_forward_post_hook(end)

    def _count_around_attention(self, stage: str, layer: nn.Layer, inputs: tuple, output: Tensor) -> None:
        if self._counting:
            qkv = inputs[:3]
            self._bytes[stage, DEPTHWISE] += _bytes(*qkv)  # what becomes query, key and value is as large as they
            self._bytes[stage, GROUPING] += 2 * _bytes(*qkv, output)  # read in one order, written in another

    def _begin_head(self) -> None:
        self._charge()
        self._running[-1] = _HEAD

    def _charge(self) -> None:
        """Give the time since the last event to the part that was running."""
        self._synchronize()
        now = time.perf_counter()
        self._seconds[-1][self._running[-1]] += now - self._since
        self._since = now

    def _innermost(self, name: str) -> Part:
        """The part of a sublayer: that of the closest layer around it that is watched."""
        while name not in self._part_of:
            name, _, _ = name.rpartition(".")
        return self._part_of[name]


def _bytes(*tensors: Tensor | None) -> int:
    return sum(tensor.size * tensor.element_size() for tensor in tensors if tensor is not None)


def _moved(layer: nn.Layer, inputs: tuple, output: Tensor) -> int:
    return _bytes(*inputs, output, *layer.parameters())


def build(subject: Profile) -> ProfileRunner:
    """Build a model of this project, fused for inference, and watch its parts.

    Raises:
        UserError: the model or the device does not exist.
    """
    model, images, _ = prepare(subject)
    counted = create_model(subject.model)
    counted.fuse()
    multiply_adds = flops_by_layer(counted, images.shape)
    synchronize = {} if subject.device == "cpu" else {"synchronize": paddle.device.synchronize}
    return ProfileRunner(model, images, multiply_adds, **synchronize)
