"""Weights and training states on disk."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn

from common.distributed import is_main_process
from common.errors import UserError

__all__ = [
    "CheckpointFolder",
    "LoadReport",
    "find_weights",
    "load_file",
    "load_optimizer_state",
    "load_pretrained",
    "load_weights",
    "numpy_state",
    "optimizer_state",
    "save_file",
]

SUFFIX = ".pdparams"


def save_file(state: Mapping[str, Any], path: Path) -> None:
    """Write a nested dict of NumPy arrays and plain values; the target is replaced only by a complete file.

    ``paddle.load`` reads the file, too.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            pickle.dump(dict(state), file, protocol=4)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if temporary:
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose -output") from error


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a ``.pdparams`` file, named with or without its suffix, as nested dicts of NumPy arrays.

    Raises:
        UserError: there is no such file, or it is no checkpoint.
    """
    path = Path(path).expanduser()
    if not path.is_file() and path.with_name(path.name + SUFFIX).is_file():
        path = path.with_name(path.name + SUFFIX)
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; give the path of a {SUFFIX} file")
    try:
        state = paddle.load(str(path), return_numpy=True)
    except Exception as error:
        raise UserError(f"{path} is damaged or no Paddle checkpoint ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a {type(state).__name__}, not a dict of weights")
    return state


def numpy_state(layer: nn.Layer) -> dict[str, np.ndarray]:
    """The layer's parameters and buffers under their structured names."""
    return {name: np.array(tensor.numpy()) for name, tensor in layer.state_dict().items()}


def find_weights(state: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Take the weights out of a checkpoint: the file itself, or its ``model`` (training states, PaddleViT)."""
    weights = state.get("model", state)
    return {name: array for name, array in weights.items() if isinstance(array, np.ndarray)}


@dataclass
class LoadReport:
    """What became of the weights of a file, by parameter name."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    new_head: bool = False

    def __str__(self) -> str:
        text = f"{len(self.loaded)} loaded, {len(self.missing)} missing, {len(self.unexpected)} unexpected"
        return text + f", {len(self.mismatched)} of another shape" + (", new head" if self.new_head else "")


def load_weights(
    model: nn.Layer, weights: Mapping[str, np.ndarray], source: str, replace_head: bool = False
) -> LoadReport:
    """Copy weights into a model: all of them or, on an error, none.

    Args:
        weights: arrays by structured parameter name.
        source: where they come from, for messages.
        replace_head: leave the model's own head where the weights have one for another number of classes, or none.

    Raises:
        UserError: the weights are not this model's; the message says which model's they seem to be.
    """
    own = model.state_dict()
    report, fitting = LoadReport(), {}
    for name, tensor in own.items():
        if name not in weights:
            report.missing.append(name)
        elif tuple(weights[name].shape) != tuple(tensor.shape):
            report.mismatched.append(f"{name} {tuple(weights[name].shape)} for {tuple(tensor.shape)}")
        else:
            fitting[name] = weights[name]
    report.unexpected = [name for name in weights if name not in own]

    wrong = report.missing + report.mismatched + report.unexpected
    if wrong and replace_head and all(name.startswith("head.") for name in wrong):
        report.new_head = True
        fitting = {name: array for name, array in fitting.items() if not name.startswith("head.")}
    elif wrong:
        raise UserError(f"{source} does not fit the model ({report}): {_likely_cause(model, weights, report)}")
    for name, array in fitting.items():
        own[name].set_value(array)
    report.loaded = list(fitting)
    return report


def load_pretrained(model: nn.Layer, source: str | Path, replace_head: bool = True) -> LoadReport:
    """Load the weights of a ``.pdparams`` file into a model; see :func:`load_weights`."""
    return load_weights(model, find_weights(load_file(source)), str(source), replace_head)


def _likely_cause(model: nn.Layer, weights: Mapping[str, np.ndarray], report: LoadReport) -> str:
    from common.pale_transformer import VARIANTS

    stem = weights.get("stages.0.merging.norm.weight")
    if stem is None:
        return "these are no Pale Transformer weights"
    blocks = {match.groups() for name in weights if (match := re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name))}
    depths = tuple(sum(stage == str(number) for stage, _ in blocks) for number in range(4))
    if depths != getattr(model, "depths", depths) or stem.shape[0] != getattr(model, "out_channels", stem.shape)[0]:
        variants = [
            name for name, row in VARIANTS.items() if (row["embed_dim"], tuple(row["depths"])) == (*stem.shape, depths)
        ]
        known = f"{variants[0]} weights" if variants else f"weights of depths {depths} and {stem.shape[0]} channels"
        return f"these are {known}; set MODEL.NAME to match"
    head = weights.get("head.weight")
    if head is not None and any(name.startswith("head.") for name in report.mismatched):
        return f"its head has {head.shape[1]} classes, the model {getattr(model, 'num_classes', '?')}"
    return f"the first that differs is {(report.mismatched + report.missing + report.unexpected)[0]}"


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """The optimizer's accumulators as ``<parameter name>/<accumulator>``.

    Paddle keys them by automatic names, which count the layers that a process has built, so that they fit only the same
    program in a fresh process; the structured names always fit.
    """
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    state = {}
    for key, value in optimizer.state_dict().items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in names if key.startswith(f"{name}_")), key=len)
            state[f"{names[owner]}/{key[len(owner) + 1 :]}"] = np.array(value.numpy())
    return state


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: Mapping[str, np.ndarray]
) -> None:
    """Give the optimizer the accumulators that :func:`optimizer_state` took."""
    parameters = dict(model.named_parameters())
    own = {}
    for key, array in state.items():
        name, _, accumulator = key.rpartition("/")
        if name not in parameters:
            raise UserError(
                f"the checkpoint's optimizer knows {name}, which this model has not; is it another model's?"
            )
        own[f"{parameters[name].name}_{accumulator}"] = paddle.to_tensor(array)
    optimizer.set_state_dict(own)


class CheckpointFolder:
    """The checkpoints of one run: ``latest``, ``best``, and the last ``keep`` of ``epoch_NNNN``; rank 0 writes.

    ``latest`` and ``epoch_NNNN`` are whole training states, to resume from; ``best`` holds weights only.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self.latest, self.best = folder / f"latest{SUFFIX}", folder / f"best{SUFFIX}"

    def save_latest(self, state: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(state, self.latest)

    def save_epoch(self, state: Mapping[str, Any], epoch: int) -> None:
        """Keep a state under its epoch and delete the oldest beyond ``keep``."""
        if is_main_process() and self.keep:
            save_file(state, self.folder / f"epoch_{epoch:04d}{SUFFIX}")
            for old in sorted(self.folder.glob(f"epoch_*{SUFFIX}"))[: -self.keep]:
                old.unlink()

    def save_best(self, state: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(state, self.best)
