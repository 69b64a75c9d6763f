"""Freezing parts of a model for fine-tuning."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

import paddle.nn.functional as F
from paddle import Tensor, nn

from .drop_path import DropPath

__all__ = ["freeze"]

_WORDS = ("stem", "backbone", "norm_eval")
_STEM = "stages.0.merging"
_BATCH_NORMS = (nn.BatchNorm2D, nn.SyncBatchNorm)


def freeze(model: nn.Layer, patterns: Iterable[str]) -> None:
    """Keep parameters and BatchNorm statistics as they are in training.

    A frozen parameter gets no gradient. The statistics of a frozen BatchNorm normalize in training, too, and stand
    still, also after ``model.train()``. A block whose parameters are all frozen drops no path.

    Args:
        model: a backbone, or a model that has one as ``backbone``. Optimizers must be built afterwards.
        patterns: what to freeze; each is one of

            - the name of a layer, such as ``stages.0``, for all of its parameters and statistics,
            - a shell pattern of parameter names, such as ``stages.*.norm1.*``,
            - ``stem``, the patch embedding of a Pale Transformer,
            - ``backbone``, the whole backbone but its head: the classifier, or the norms of its outputs,
            - ``norm_eval``, the statistics of all BatchNorms of the backbone, whose weights still train (the habit of
              detection models, mmdetection's argument of this name).

            Names in the backbone may be given without ``backbone.``.

    Raises:
        ValueError: a pattern matches nothing, or freezes only one of the weight and the bias of a BatchNorm.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in patterns:
        found = _matches(model, pattern, names)
        if not found:
            raise ValueError(f"{pattern!r} matches no parameter of the model{_similar(model, pattern)}")
        frozen |= found
    _require_whole_batch_norms(model, frozen)
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    for name, layer in model.named_sublayers():
        if isinstance(layer, _BATCH_NORMS) and f"{name}._mean" in frozen:
            if isinstance(layer, nn.SyncBatchNorm):  # its kernel cannot normalize by running statistics in training
                layer.__class__ = nn.BatchNorm2D
            layer._use_global_stats = True
        elif type(layer) is nn.LayerNorm and f"{name}.weight" in frozen:
            layer.__class__ = _FrozenLayerNorm
        elif isinstance(layer, DropPath):
            block = name.rpartition(".")[0]
            if frozen.issuperset(parameter for parameter in names if parameter.startswith(f"{block}.")):
                layer.rate = 0.0


def _matches(model: nn.Layer, pattern: str, names: Iterable[str]) -> set[str]:
    """The names that a pattern freezes, those of statistics included."""
    backbone = getattr(model, "backbone", model)
    prefix = "" if backbone is model else "backbone."
    inside = [name for name in names if name.startswith(prefix)]
    if pattern == "norm_eval":
        return {name for name in inside if name.endswith(("._mean", "._variance"))}
    if pattern == "backbone":
        heads = (*getattr(backbone, "head_prefixes", ()), *getattr(backbone, "training_only_prefixes", ()))
        return {name for name in inside if not name[len(prefix) :].startswith(heads)}
    shell = _STEM if pattern == "stem" else pattern
    return {
        name
        for name in names
        for spelling in (name, name.removeprefix(prefix))
        if fnmatchcase(spelling, shell) or fnmatchcase(spelling, f"{shell}.*")
    }


def _similar(model: nn.Layer, pattern: str) -> str:
    """The names that may be meant, as the end of a message."""
    known = [name for name, _ in (*model.named_sublayers(), *model.named_parameters())]
    known += [name.removeprefix("backbone.") for name in known]
    close = difflib.get_close_matches(pattern, {*_WORDS, *known}, n=3)
    parts = [name for name, _ in model.named_children()]
    return f"; did you mean {' or '.join(close)}?" if close else f"; its parts are {', '.join(parts)}"


def _require_whole_batch_norms(model: nn.Layer, frozen: set[str]) -> None:
    """Refuse to freeze the weight or the bias of a BatchNorm alone: Paddle then has no gradient of the other either."""
    for name, layer in model.named_sublayers():
        if isinstance(layer, _BATCH_NORMS) and len({f"{name}.weight", f"{name}.bias"} & frozen) == 1:
            raise ValueError(f"weight and bias of the BatchNorm {name} can only be frozen together")


class _FrozenLayerNorm(nn.LayerNorm):
    """``nn.LayerNorm`` whose weight gets no gradient: Paddle's then leaves the weight out of its input's gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., *normalized_shape]`` to the same shape."""
        if x.stop_gradient:
            return super().forward(x)
        x = F.layer_norm(x, self._normalized_shape, epsilon=self._epsilon) * self.weight
        return x if self.bias is None else x + self.bias
