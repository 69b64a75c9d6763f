"""Weights into models."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..errors import UserError
from ..layers.position_encoding import resample
from ..layers.variants import VARIANTS
from ..runtime.distributed import is_main_process
from .file_format import load_file
from .released import open_source

__all__ = [
    "LoadReport",
    "attention_of",
    "compare_attention",
    "deployed_state",
    "find_weights",
    "head_classes",
    "load_pretrained",
    "load_weights",
    "numpy_state",
    "read_checkpoint",
    "refuse_other_attention",
]

# What follows the stages: the classifier and its norm or, in the backbones of dense models, a norm for each output.
_AFTER_THE_STAGES = ("head.", "norm.", "out_norms.")


def numpy_state(layer: nn.Layer) -> dict[str, np.ndarray]:
    """The layer's weights and BatchNorm statistics under their structured names."""
    return {name: np.array(tensor.numpy()) for name, tensor in layer.state_dict().items()}


def deployed_state(layer: nn.Layer) -> dict[str, np.ndarray]:
    """:func:`numpy_state` without what only training uses: what evaluation and prediction need."""
    unused = _training_only(layer)
    return {name: array for name, array in numpy_state(layer).items() if not name.startswith(unused)}


def _training_only(model: nn.Layer) -> tuple[str, ...]:
    """How the names of the parameters begin that a model, by its own words, needs in training alone.

    Another's ``aux_head`` may be no such thing: PaddleSeg's DDRNet and PaddleDetection's PPYOLOEWithAuxHead have one.
    """
    return tuple(getattr(model, "training_only_prefixes", ()))


def read_checkpoint(source: str | Path) -> dict[str, Any]:
    """Read a checkpoint from a path or from an address with its hash; see ``load_file`` and ``download``.

    Raises:
        UserError: it cannot be had, is damaged, or holds something other than weights.
    """
    return load_file(open_source(source))


def find_weights(state: Mapping[str, Any], source: str, ema: bool = False) -> dict[str, np.ndarray]:
    """Take the weights out of a checkpoint.

    Args:
        state: a training state or PaddleViT checkpoint (``model``, ``model_ema``), or the weights themselves.
        source: where it comes from, for messages.
        ema: take the averaged weights.

    Raises:
        UserError: there are none.
    """
    key = "model_ema" if ema else "model"
    if ema and key not in state:
        raise UserError(f"{source} has no model_ema; load its plain weights")
    weights = state.get(key, state)
    if not isinstance(weights, dict):
        raise UserError(f"{source}: {key} is a {type(weights).__name__}, not a dict of weights")
    arrays = {str(name): array for name, array in weights.items() if isinstance(array, np.ndarray)}
    if not arrays:
        raise UserError(f"{source} holds no weights")
    for name in arrays:
        if not name.isprintable():
            raise UserError(f"{source} has a weight with the unprintable name {name[:80]!a}")
    return arrays


def head_classes(weights: Mapping[str, np.ndarray]) -> int | None:
    """Number of classes of the classification head among weights, or ``None`` if there is none."""
    head = weights.get("head.weight")
    return head.shape[1] if head is not None and head.ndim == 2 else None


@dataclass
class LoadReport:
    """What became of the weights of a file.

    Attributes:
        loaded: names of the parameters that were in both.
        missing: of those only in the model.
        unexpected: of those only in the file.
        mismatched: ``name (shape in the file) for (shape in the model)``.
        new_parts: parts such as ``head`` that the model keeps as they were initialised.
        interpolated: ``name (shape in the file) to (shape in the model)`` of position tables for other maps or groups.
        left_out: parts of the file that only training uses, and that the model has not.
        note: what else a reader should know.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    new_parts: list[str] = field(default_factory=list)
    interpolated: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def new_head(self) -> bool:
        """Whether the model keeps its own, newly initialised head."""
        return bool(self.new_parts)

    def summary(self) -> str:
        """The counts."""
        return (
            f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected, "
            f"{len(self.mismatched)} of another shape"
        )

    def __str__(self) -> str:
        lines = [f"weights {self.source}: {self.summary()}"]
        for kind, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("other shape", self.mismatched),
            ("interpolated", self.interpolated),
        ):
            lines += [f"  {kind}: {name}" for name in names[:10]]
            lines += [f"  {kind}: and {len(names) - 10} more"] * (len(names) > 10)
        if self.new_parts:
            lines.append(f"  new {', '.join(self.new_parts)}: to be trained before use")
        if self.left_out:
            lines.append(f"  left out {', '.join(self.left_out)}: only training uses it")
        if self.note:
            lines.append(f"  {self.note}")
        return "\n".join(lines)


def load_weights(
    model: nn.Layer, weights: Mapping[str, np.ndarray], source: str, replace_head: bool = False, strict: bool = True
) -> LoadReport:
    """Copy weights into a model: all that are asked for or, on an error, none.

    A model that was built under ``paddle.LazyGuard`` has no values yet; what is not loaded is then initialised.

    A backbone takes its part, ``backbone.``, out of the weights of a whole PaddleSeg or PaddleDetection model.
    Classification models and the backbones of dense models can exchange their stages; what comes after these is then
    new. Learned positions of other maps or groups are interpolated. What only training uses
    (``model.training_only_prefixes``) is left out where the model has it not.

    Args:
        weights: arrays by structured parameter name.
        source: where they come from, for messages.
        replace_head: let the model keep its own head (``model.head_prefixes`` says which parameters that is) where the
            weights have one for another number of classes, or none.
        strict: ``False`` loads what fits and leaves the rest as it was.

    Raises:
        UserError: the weights are not this model's; the message says whose they seem to be.
    """
    own = model.state_dict()
    head = tuple(getattr(model, "head_prefixes", ()))
    of_whole_model = _any_starts(weights, "backbone.") and not _any_starts(own, "backbone.")
    if of_whole_model:
        weights = {name[9:]: array for name, array in weights.items() if name.startswith("backbone.")}
    if (of_whole_model or _any_starts(weights, "out_norms.")) != _any_starts(own, "out_norms."):
        head = (*_AFTER_THE_STAGES, *_training_only(model))
    report, fitting = LoadReport(source), {}
    unused = tuple(part for part in _training_only(model) if _any_starts(weights, part) and not _any_starts(own, part))
    report.left_out = [part.rstrip(".") for part in unused]
    weights = {name: array for name, array in weights.items() if not name.startswith(unused)}
    for name, tensor in own.items():
        if name not in weights:
            report.missing.append(name)
        elif _is_table_of_another_size(name, weights[name], tensor):
            report.interpolated.append(f"{name} {weights[name].shape} to {tuple(tensor.shape)}")
            fitting[name] = resample(paddle.to_tensor(weights[name]), *tensor.shape[1:]).numpy()
        elif tuple(weights[name].shape) != tuple(tensor.shape):
            report.mismatched.append(f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}")
        elif weights[name].dtype.kind != "f" and tensor.is_floating_point():
            report.mismatched.append(f"{name} of {weights[name].dtype} for {tensor.dtype}")
        else:
            fitting[name] = weights[name]
    report.unexpected = [name for name in weights if name not in own]

    wrong = report.missing + report.mismatched + report.unexpected
    if wrong and replace_head and all(name.startswith(head) for name in wrong):
        new = tuple(prefix for prefix in head if _any_starts(report.missing + report.mismatched, prefix))
        fitting = {name: array for name, array in fitting.items() if not name.startswith(new)}
        report.new_parts = [prefix.rstrip(".") for prefix in new]
    elif wrong and strict:
        raise UserError(f"{source} does not fit the model: {_likely_cause(model, weights, report)}; {report.summary()}")
    for name, array in fitting.items():
        own[name].set_value(array.astype(_numpy_dtype(own[name]), copy=False))
    for name, tensor in own.items():
        if name not in fitting and not tensor._is_initialized():
            tensor.initialize()
    report.loaded = list(fitting)
    return report


def attention_of(model: nn.Layer) -> dict[str, Any]:
    """What a model, or its backbone, says of its attention; nothing, if it is of another kind."""
    return dict(getattr(getattr(model, "backbone", model), "attention_settings", {}))


def compare_attention(model: nn.Layer, state: Mapping[str, Any]) -> str:
    """Say where weights learnt with another attention than the model's, which their names and shapes do not reveal.

    Args:
        model: the model, or one around a backbone.
        state: what :func:`read_checkpoint` gave. Only training states and the best weights say how they were trained;
            those from before there was a choice have pales in parallel.

    Returns:
        A sentence, or nothing.
    """
    now = attention_of(model)
    then = state.get("attention") or ({"attention": "pale", "parallel": True} if "config" in state else {})
    if not isinstance(then, dict):
        return ""
    changes = [f"{name} {then[name]}, not {now[name]}" for name in now if name in then and then[name] != now[name]]
    return f"the weights learnt with {', '.join(changes)}" if changes else ""


def refuse_other_attention(model: nn.Layer, state: Mapping[str, Any], source: str | Path) -> None:
    """Stop where weights that fit, and are to be used as they are, learnt with another attention than the model's.

    Raises:
        UserError: they did, see :func:`compare_attention`.
    """
    if difference := compare_attention(model, state):
        raise UserError(
            f"{source} does not fit the model: {difference}; set MODEL.ATTENTION, MODEL.PALE_SIZE and MODEL.PARALLEL, "
            "or the backbone's arguments, to match"
        )


def _is_table_of_another_size(name: str, array: np.ndarray, tensor: paddle.Tensor) -> bool:
    """Whether an array is a position table that fits a model's, but for the size of maps or groups."""
    same_kind = name.endswith(".table") and array.dtype.kind == "f" and array.ndim == tensor.ndim == 3
    return same_kind and array.shape[0] == tensor.shape[0] and list(array.shape) != tensor.shape


def _any_starts(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _numpy_dtype(tensor: paddle.Tensor) -> str:
    """NumPy's name of a tensor's dtype."""
    return str(tensor.dtype).rpartition(".")[2]


def load_pretrained(
    model: nn.Layer,
    source: str | Path,
    strict: bool = True,
    replace_head: bool = True,
    ema: bool = False,
    verbose: bool = True,
) -> LoadReport:
    """Load weights into a model and say what became of them.

    Args:
        model: any model of this project, with or without a head.
        source: a ``.pdparams`` or ``.safetensors`` file with or without its suffix, or ``https://...#sha256=...``.
        strict, replace_head: see :func:`load_weights`.
        ema: take a checkpoint's averaged weights.
        verbose: print the report on rank 0.

    Raises:
        UserError: the weights cannot be had, are unsafe or damaged, or do not fit. The model is then as it was.
    """
    state = read_checkpoint(source)
    weights = find_weights(state, str(source), ema)
    report = load_weights(model, weights, str(source), replace_head, strict)
    report.note = compare_attention(model, state)
    if verbose and is_main_process():
        print(report, flush=True)
    return report


def _likely_cause(model: nn.Layer, weights: Mapping[str, np.ndarray], report: LoadReport) -> str:
    backbone = getattr(model, "backbone", model)
    if backbone is not model and not _any_starts(weights, "backbone.") and _any_starts(weights, "stages."):
        return "these are the weights of a backbone alone; load them into the model's backbone"
    weights = {name.removeprefix("backbone."): array for name, array in weights.items()}
    stem = weights.get("stages.0.merging.conv.bias")
    if stem is None or stem.ndim != 1:
        return "these are no Pale Transformer weights"
    blocks = {match.groups() for name in weights if (match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4))
    own = (getattr(backbone, "depths", depths), getattr(backbone, "out_channels", stem.shape)[0])
    if own != (depths, stem.shape[0]):
        variants = [
            name for name, row in VARIANTS.items() if (row["embed_dim"], tuple(row["depths"])) == (*stem.shape, depths)
        ]
        known = f"{variants[0]} weights" if variants else f"weights of depths {depths} and {stem.shape[0]} channels"
        return f"these are {known}; set MODEL.NAME, or the backbone's variant, to match"
    positions, own_positions = (_position_encoding(names) for names in (weights, model.state_dict()))
    if positions != own_positions:
        return f"it has position encoding {positions}, the model {own_positions}; set MODEL.POSITION_ENCODING to match"
    classes = head_classes(weights)
    if classes and any(name.startswith("head.") for name in report.mismatched):
        return f"its head has {classes} classes, the model {getattr(model, 'num_classes', '?')}"
    wrong = report.mismatched + report.missing + report.unexpected
    if any("position_biases." in name for name in wrong):
        return "its relative positions are of another attention; set MODEL.ATTENTION and MODEL.PARALLEL to match"
    if all(name.startswith(_training_only(model)) for name in wrong):
        return "it was trained without token labels, which this run has"
    if all(name.startswith(tuple(getattr(model, "head_prefixes", ()))) for name in wrong):
        return f"it is for another number of classes, see {wrong[0]}"
    if {f"stages.{stage}.merging.norm.weight" for stage in range(4)} <= set(wrong):
        return f"these have {'no' if report.missing else 'the'} norms of the stages, see the model's stage_norms"
    return f"the first that differs is {wrong[0]}"


def _position_encoding(names: Iterable[str]) -> str:
    """The kind of position encoding that weights of these names are of."""
    parts = {part for name in names for part in name.split(".")}
    kinds = {"position_encoding": "cpe", "position_embedding": "absolute", "position_biases": "relative"}
    return next((kind for part, kind in kinds.items() if part in parts), "none")
