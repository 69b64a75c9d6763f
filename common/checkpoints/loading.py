"""Weights out of files and into models."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from ..data.class_names import MAX_CLASSES, check_class_order, printable_names, renamed_classes
from ..data.preprocessing import Preprocessing
from ..errors import UserError, printable
from ..layers.learned_positions import resample
from ..layers.variants import VARIANTS
from ..runtime.distributed import is_main_process
from ..runtime.verbosity import is_quiet
from ..runtime.yaml_text import read_yaml
from ..schema import Text, check_value, hints_of
from .download import sha256_of
from .file_format import float32_of_bfloat16, load_file
from .first_convolution import adapt_channels, is_for_other_channels
from .released import local_path, resolve_weights
from .renames import rename_keys, reorder_statistics
from .report import LoadReport, any_starts_with, has_names_of_pytorch, likely_cause

__all__ = [
    "Checkpoint",
    "LoadReport",
    "attention_of",
    "deployed_state",
    "load_pretrained",
    "load_weights",
    "numpy_state",
    "read_checkpoint",
    "read_state",
]

# The parts after the stages: the classifier and its norm or, in backbones of dense models, a norm per output.
_AFTER_THE_STAGES = ("head.", "norm.", "out_norms.")

# What other training programs call the weights and their average in a training state.
_OTHER_NAMES = {
    **dict.fromkeys(("state_dict", "model_state_dict"), "model"),
    **dict.fromkeys(("state_dict_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema"), "model_ema"),
}


# ---- from a model


def numpy_state(layer: nn.Layer) -> dict[str, np.ndarray]:
    """A copy of the layer's weights and BatchNorm statistics under their structured names."""
    return {name: np.array(tensor.numpy()) for name, tensor in layer.state_dict().items()}


def deployed_state(layer: nn.Layer) -> dict[str, np.ndarray]:
    """:func:`numpy_state` without the parts that only training uses (``layer.training_only_prefixes``)."""
    unused = _training_only(layer)
    return {name: array for name, array in numpy_state(layer).items() if not name.startswith(unused)}


def attention_of(model: nn.Layer) -> dict[str, Any]:
    """The attention settings of a model or of its backbone; empty for other models."""
    return dict(getattr(getattr(model, "backbone", model), "attention_settings", {}))


def _attention_of_config(text: str) -> dict[str, Any]:
    """The heads and the pale sizes of a configuration in weights, of which they may have recorded none."""
    try:
        values = read_yaml(text, "")
    except UserError:
        return {}
    dense = values.get("model")
    backbone = dense.get("backbone") if isinstance(dense, dict) else None
    sections = (values.get("MODEL"), backbone, values.get("PaleTransformer"))  # dense tasks have a MODEL, too
    own = {str(key).lower(): value for part in sections if isinstance(part, dict) for key, value in part.items()}
    name = own.get("name") or own.get("variant")
    row = VARIANTS.get(name, {}) if isinstance(name, str) else {}
    found = {}
    for key in ("num_heads", "pale_size") if own.get("attention") in (None, "pale") else ("num_heads",):
        value = own.get(key) or row.get(key)
        sizes = list(value) if isinstance(value, (list, tuple)) else [value]
        found[key] = sizes * 4 if len(sizes) == 1 and key == "pale_size" else sizes
    return {key: sizes for key, sizes in found.items() if len(sizes) == 4 and all(type(size) is int for size in sizes)}


def _training_only(model: nn.Layer) -> tuple[str, ...]:
    """Name prefixes of the parameters that the model uses in training only.

    A model has to declare them: an ``aux_head`` of PaddleSeg's or PaddleDetection's models is used in evaluation.
    """
    return tuple(getattr(model, "training_only_prefixes", ()))


# ---- from a file


@dataclass(frozen=True)
class Checkpoint:
    """Weights and their metadata. Files that this project did not write may contain only weights.

    Attributes:
        source: what the user gave, for messages.
        weights: arrays by structured parameter name.
        path: the file.
        sha256: of the file, when it was read; another one may have its name now.
        task: folder of the task that they were trained for.
        config: the configuration of the training as yaml.
        attention: :func:`attention_of` the trained model.
        class_names: in the order of the outputs.
        figures: metrics of the weights.
        versions: of the packages they were trained with.
    """

    source: str
    weights: Mapping[str, np.ndarray]
    path: Path | None = None
    sha256: str = ""
    task: str | None = None
    config: Text | None = None
    attention: Mapping[str, Any] = field(default_factory=dict)
    class_names: list[Text] | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_state(cls, state: Mapping[str, Any], source: str, ema: bool | None = None) -> Checkpoint:
        """Extract the weights and their metadata from the content of a file.

        Args:
            state: a training state or PaddleViT checkpoint (``model``, ``model_ema``), or the weights themselves.
            ema: take the averaged weights (``model_ema``); None takes them if there are some.

        Raises:
            UserError: there are no weights, an entry of the metadata has another type, or there are more classes than
                memory could hold a model for.
        """
        if ema is None:
            ema = state.get("model_ema") is not None
        elif ema and state.get("model_ema") is None:
            raise UserError(f"{source} has no averaged weights (model_ema); choose model (-weights, or ema=False)")
        key = "model_ema" if ema else "model"
        weights = state.get(key, state)
        if not isinstance(weights, dict):
            raise UserError(f"{source}: {key} is a {type(weights).__name__}, not a dict of weights")
        arrays = {
            # NumPy has no bfloat16, and Paddle no uint16, so Paddle writes the one as the other.
            str(name): float32_of_bfloat16(array) if array.dtype == np.uint16 else array
            for name, array in weights.items()
            if isinstance(array, np.ndarray)
        }
        if not arrays:
            found = ", ".join(map(repr, weights))[:200] or "nothing"
            remedy = "choose -weights model, or ema=False" if ema else "save the weights alone, or as 'model'"
            raise UserError(f"{source} contains no weights{' in model_ema' * ema}, but {found}; {remedy}")
        for name in arrays:
            if not name.isprintable():
                raise UserError(f"{source} has a weight with the unprintable name {name[:80]!a}")
        if weights is state:
            return cls(source, arrays)._require_few_classes()
        hints = hints_of(cls)  # type: ignore[arg-type]  # mypy takes the hash of instances for that of the class
        known = {
            name: check_value(state[name], hints[name], source, name)
            for name in ("task", "config", "attention", "class_names", "figures", "versions")
            if state.get(name) is not None
        }
        if "config" in known:  # older files do not record all of the attention
            known.setdefault("attention", {"attention": "pale", "parallel": True})
            known["attention"] = {**_attention_of_config(known["config"]), **known["attention"]}
        if "class_names" in known:
            known["class_names"] = printable_names(known["class_names"])
        return cls(source, arrays, **known)._require_few_classes()

    def _require_few_classes(self) -> Checkpoint:
        classes = max(self.num_classes or 0, len(self.class_names or ()))
        if classes > MAX_CLASSES:
            raise UserError(f"{self.source} has {classes:,} classes; at most {MAX_CLASSES:,} are supported")
        return self

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the classification head, or None if the weights have none."""
        head = self.weights.get("head.weight")
        return head.shape[1] if head is not None and head.ndim == 2 else None

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How the images of the training were preprocessed for evaluation, or None if these are not of a classifier.

        Raises:
            UserError: the configuration is damaged.
        """
        source = f"the configuration of {self.source}"
        data = read_yaml(self.config, source).get("DATA") if self.config else None
        if not isinstance(data, dict) or "CROP_PCT" not in data:
            return None
        return check_value({str(key).lower(): value for key, value in data.items()}, Preprocessing, source)


def read_state(source: str | Path) -> dict[str, Any]:
    """Read the content of a file, with the parameter names of this version.

    Args:
        source: path with or without suffix, or ``https://...#sha256=...``.

    Raises:
        UserError: it cannot be read or downloaded, is damaged, or contains something other than weights.
    """
    state = load_file(local_path(source))
    for name, usual in _OTHER_NAMES.items():
        if isinstance(state.get(name), dict) and not isinstance(state.get(usual), dict):
            state[usual] = state.pop(name)
    if "model" not in state and "model_ema" not in state:
        return rename_keys(state)
    parts = [name for name in ("model", "model_ema", "optimizer") if isinstance(state.get(name), dict)]
    renamed = {**state, **{name: rename_keys(state[name]) for name in parts}}
    if isinstance(models := state.get("rank_statistics"), list) and "model" in parts:
        renamed["rank_statistics"] = [reorder_statistics(rows, state["model"]) for rows in models]
    return renamed


def read_checkpoint(
    source: str | Path | bool, model: str | None = None, ema: bool | None = None, task: str = ""
) -> Checkpoint:
    """Read weights.

    If the file has weights and their average, the average is taken, and a line on stderr says so.

    Args:
        source: path with or without suffix, ``https://...#sha256=...``, the tag of released weights, or ``True`` for
            ImageNet weights.
        model: the variant whose released weights are looked up; None looks among those of all.
        ema: take the averaged weights, or, if false, the others, without that line.
        task: folder of the task whose released weights are taken, if those of several have the tag.

    Raises:
        UserError: see :func:`common.checkpoints.released.resolve_weights`, :func:`read_state` and
            :meth:`Checkpoint.from_state`.
    """
    found = resolve_weights(model, source, task)
    path = local_path(found)
    state, sha256 = _read_with_hash(path)
    name = str(found if source is True else source)
    if ema is None and "model" in state and state.get("model_ema") is not None and is_main_process() and not is_quiet():
        line = f"{name}: the averaged weights are taken (model_ema); -weights model, or ema=False, takes the others"
        print(printable(line), file=sys.stderr, flush=True)
    if ema is False and state.get("model_ema") is None and is_main_process():
        line = f"warning: {name} has one set of weights, perhaps averaged; -weights, or ema, changes nothing"
        print(printable(line), file=sys.stderr, flush=True)
    return replace(Checkpoint.from_state(state, name, ema), path=path, sha256=sha256)


def _read_with_hash(path: Path) -> tuple[dict[str, Any], str]:
    """The content of a file and its SHA-256, both of the same file: a run may replace it meanwhile.

    Raises:
        UserError: see :func:`read_state`, or it is replaced all the time.
    """
    for _ in range(5):
        before = path.stat()
        found = read_state(path), sha256_of(path)  # the content first, since a file of any length may be no weights
        after = path.stat()
        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
            return found
    raise UserError(f"{path} is replaced again and again while it is read; copy it, and give the copy")


# ---- into a model


def load_weights(
    model: nn.Layer,
    checkpoint: Checkpoint,
    fine_tune: bool = False,
    strict: bool = True,
    task: str | None = None,
    class_names: Sequence[str] | None = None,
) -> LoadReport:
    """Copy weights into a model: all of them or, on an error, none.

    Learned positions for other map sizes are interpolated. Parts that only training uses, and the stages in
    ``model.left_out_prefixes``, are skipped where the model does not have them.

    Args:
        fine_tune: the weights are a start for training. The model may then keep a new head (``model.head_prefixes``)
            if the weights have another one or none; the backbone may be loaded from a whole segmentation or detection
            model, and the backbone of a whole model from a classifier; the first convolution is adapted to images with
            another number of channels (:func:`common.checkpoints.first_convolution.adapt_channels`); another attention
            is noted in the report. Otherwise the weights are used as they are, and have to fit entirely.
        strict: False loads what fits and leaves the rest of the model as it is; weights of PyTorch are refused even so.
        task: folder of the task that uses the weights; without ``fine_tune``, others' weights are refused.
        class_names: of the data; without ``fine_tune``, weights with another order of the classes are refused. Classes
            with another name are listed in the report, with ``fine_tune`` if the head of the same task is kept.

    Raises:
        UserError: the weights do not fit or are refused; the message names the reason.
    """
    source, weights = checkpoint.source, checkpoint.weights
    if not fine_tune:
        if task and checkpoint.task not in (None, task):
            raise UserError(f"{source} was trained for {checkpoint.task!r}, not for {task}; give weights of this task")
        check_class_order(class_names, checkpoint.class_names, "the data", source)
    elif hasattr(model, "backbone") and (
        not any_starts_with(weights, "backbone.") or (task and checkpoint.task not in (None, task))
    ):
        model = model.backbone
    own = model.state_dict()
    head = tuple(getattr(model, "head_prefixes", ()))
    of_whole_model = any_starts_with(weights, "backbone.") and not any_starts_with(own, "backbone.")
    if of_whole_model:
        weights = {name[9:]: array for name, array in weights.items() if name.startswith("backbone.")}
    if (of_whole_model or any_starts_with(weights, "out_norms.")) != any_starts_with(own, "out_norms."):
        head = (*_AFTER_THE_STAGES, *_training_only(model))
    optional = (*_training_only(model), *getattr(model, "left_out_prefixes", ()))
    unused = tuple(part for part in optional if any_starts_with(weights, part) and not any_starts_with(own, part))
    weights = {name: array for name, array in weights.items() if not name.startswith(unused)}

    fitting, report = _fit(own, weights, source, fine_tune)
    report.left_out = [part.rstrip(".") for part in unused]
    report.note = _compare_attention(model, checkpoint)
    if report.wrong and fine_tune and all(name.startswith(head) for name in report.wrong):
        new = tuple(part for part in head if any_starts_with(report.missing + report.mismatched, part))
        fitting = {name: array for name, array in fitting.items() if not name.startswith(new)}
        report.new_parts = [part.rstrip(".") for part in new]
    elif report.wrong and (strict or has_names_of_pytorch(weights)):  # whose square matrices fit, but are transposed
        raise UserError(f"{source} does not fit the model: {likely_cause(model, weights, report)}; {report.summary()}")
    if report.note and not fine_tune:
        raise UserError(
            f"{source} does not fit the model: {report.note}; set MODEL.ATTENTION, MODEL.PALE_SIZE, MODEL.PARALLEL and "
            "MODEL.NUM_HEADS, or the backbone's arguments, to match"
        )
    if not fine_tune or (checkpoint.task == task and not report.new_parts):
        report.renamed = renamed_classes(class_names, checkpoint.class_names)

    for name, array in fitting.items():
        dtype = str(own[name].dtype).rpartition(".")[2].replace("bfloat16", "float32")  # NumPy's name of it
        with np.errstate(all="ignore"):
            fitting[name] = array = array.astype(dtype, copy=False)  # float64 may overflow
        if not np.isfinite(array).all():
            raise UserError(f"{source} has NaN or infinity in {name}; give the weights of a run that did not diverge")
        if name.endswith("._variance") and (array < 0).any():
            raise UserError(f"{source} has a negative variance in {name}; give weights that are intact")
    for name, array in fitting.items():
        is_bfloat16 = own[name].dtype == paddle.bfloat16  # which NumPy does not have
        own[name].set_value(paddle.to_tensor(array).astype("bfloat16") if is_bfloat16 else array)
    report.loaded = list(fitting)
    return report


def load_pretrained(
    model: nn.Layer,
    source: str | Path | Checkpoint,
    strict: bool = True,
    replace_head: bool = True,
    ema: bool | None = None,
) -> LoadReport:
    """Load weights into a model (:func:`load_weights`), and print the report on rank 0.

    A model of this project takes over the preprocessing of a classifier's weights, for ``transforms_for``.

    Args:
        source: as for :func:`read_checkpoint`, or its result.
        replace_head: ``fine_tune`` of :func:`load_weights`.
        ema: as for :func:`read_checkpoint`.

    Raises:
        UserError: the weights cannot be read, are unsafe or damaged, or do not fit. The model is then unchanged.
    """
    if not isinstance(source, str | Path | Checkpoint):
        raise UserError(f"source is a {type(source).__name__}, not a file; give a state_dict to model.set_state_dict")
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source, ema=ema)
    preprocessing = checkpoint.preprocessing
    report = load_weights(model, checkpoint, replace_head, strict)
    if preprocessing and hasattr(model, "preprocessing"):
        model.preprocessing = preprocessing
    if is_main_process():
        print("\n".join(map(printable, str(report).split("\n"))), flush=True)
    return report


def _fit(
    own: Mapping[str, paddle.Tensor], weights: Mapping[str, np.ndarray], source: str, fine_tune: bool
) -> tuple[dict[str, np.ndarray], LoadReport]:
    """The arrays that can be copied into the tensors of a model, and a report of the others."""
    fitting, report = {}, LoadReport(source)
    for name, tensor in own.items():
        array = weights.get(name)
        if array is None:
            report.missing.append(name)
        elif _is_table_of_another_size(name, array, tensor):
            report.interpolated.append(f"{name} {array.shape} to {tuple(tensor.shape)}")
            fitting[name] = resample(paddle.to_tensor(array), *tensor.shape[1:]).numpy()
        elif fine_tune and is_for_other_channels(name, array, tensor):
            report.adapted.append(f"{name} {array.shape} to {tuple(tensor.shape)}")
            fitting[name] = adapt_channels(array, tensor.shape[1])
        elif tuple(array.shape) != tuple(tensor.shape):
            report.mismatched.append(f"{name} {tuple(array.shape)} for {tuple(tensor.shape)}")
        elif array.dtype.kind != "f" and tensor.is_floating_point():
            report.mismatched.append(f"{name} of {array.dtype} for {tensor.dtype}")
        else:
            fitting[name] = array
    report.unexpected = [name for name in weights if name not in own]
    return fitting, report


def _compare_attention(model: nn.Layer, checkpoint: Checkpoint) -> str:
    """Name the differences between the model's attention and that of the training, which parameters do not show."""
    now, then = attention_of(model), checkpoint.attention
    changes = [f"{name}={then[name]}, not {now[name]}" for name in now if name in then and then[name] != now[name]]
    return f"the weights were trained with {'; '.join(changes)}" if changes else ""


def _is_table_of_another_size(name: str, array: np.ndarray, tensor: paddle.Tensor) -> bool:
    """Whether an array is a position table that fits, except for the size of the map or group."""
    same_kind = name.endswith(".table") and array.dtype.kind == "f" and array.ndim == tensor.ndim == 3
    return same_kind and array.size > 0 and array.shape[0] == tensor.shape[0] and list(array.shape) != tensor.shape
