"""The checkpoints of a run: which files there are, and the optimizer's state under names that fit any process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.base import unique_name

from ..checkpoints.file_format import SUFFIXES, load_file, remove_leftovers, save_file
from ..errors import UserError
from ..runtime.distributed import is_main_process

__all__ = ["CheckpointFolder", "load_optimizer_state", "optimizer_state"]


class CheckpointFolder:
    """The checkpoints of one run: ``latest``, ``best``, and the last ``keep`` of ``epoch_NNNN`` or
    ``step_NNNN``; rank 0 writes.

    ``latest`` and the numbered ones are whole training states, to resume from; ``best`` holds weights only.

    Args:
        folder: where they are.
        keep: how many of the numbered ones.
        unit: what their numbers count: ``epoch`` or ``step``.
    """

    def __init__(self, folder: Path, keep: int, unit: str = "epoch"):
        self.folder, self.keep, self.unit = folder, keep, unit
        self.latest, self.best = folder / f"latest{SUFFIXES[0]}", folder / f"best{SUFFIXES[0]}"

    def clean(self) -> None:
        """Remove what a killed process left half-written."""
        if is_main_process():
            remove_leftovers(self.folder)

    def find_latest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest training state that is intact, or return ``None`` where there is none at all.

        Args:
            warn: is told of each damaged state that was passed over.

        Raises:
            UserError: there are states, and all of them are damaged.
        """
        damage = None
        for path in (self.latest, *reversed(self._numbered())):
            if path.is_file():
                try:
                    return path, load_file(path)
                except UserError as error:
                    damage = damage or error
                    warn(str(error))
        if damage:
            raise UserError(f"{self.folder} has no intact training state to resume from; {damage}")
        return None

    def save_latest(self, state: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(state, self.latest)

    def save_numbered(self, state: Mapping[str, Any], number: int) -> None:
        """Keep a state under its number and delete the oldest beyond ``keep``."""
        if is_main_process() and self.keep:
            save_file(state, self.folder / f"{self.unit}_{number:04d}{SUFFIXES[0]}")
            for old in self._numbered()[: -self.keep]:
                old.unlink()

    def _numbered(self) -> list[Path]:
        """The kept states in the order they were written, which after a step back is not that of their numbers."""
        return sorted(self.folder.glob(f"{self.unit}_*{SUFFIXES[0]}"), key=lambda path: path.stat().st_mtime_ns)

    def save_best(self, state: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(state, self.best)


def optimizer_state(optimizer: paddle.optimizer.Optimizer, model: nn.Layer) -> dict[str, np.ndarray]:
    """The optimizer's accumulators as ``<parameter name>/<accumulator>``.

    Paddle keys them by automatic names, which count the layers and the optimizers that a process has built, so that
    they fit only the same program in a fresh process; the structured names always fit.
    """
    state = optimizer.state_dict()
    return {name: np.array(state[key].numpy()) for name, key in _accumulator_keys(state, model).items()}


def load_optimizer_state(
    optimizer: paddle.optimizer.Optimizer, model: nn.Layer, state: Mapping[str, np.ndarray]
) -> None:
    """Give the optimizer the accumulators that :func:`optimizer_state` took.

    Raises:
        UserError: the state is of other parameters than this model trains.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    # The state may lack some: Paddle keeps nothing of a parameter that never had a gradient.
    other = {key.rpartition("/")[0] for key in state} - set(parameters)
    if other:
        raise UserError(f"the optimizer's state is of other parameters than this model trains, such as {min(other)}")
    present = _accumulator_keys(optimizer.state_dict(), model)
    own = {}
    for name, array in state.items():
        parameter, _, accumulator = name.rpartition("/")
        prefix = f"{parameters[parameter].name}_{accumulator}"
        # Before its first step the optimizer has no accumulators; it will name them by the next count of Paddle's.
        own[present.get(name, f"{prefix}_{unique_name.generator.ids[prefix]}")] = paddle.to_tensor(array)
    optimizer.set_state_dict(own)


def _accumulator_keys(state: Mapping[str, Any], model: nn.Layer) -> dict[str, str]:
    """``<parameter name>/<accumulator>`` -> Paddle's key, such as ``linear_0.w_0_moment1_0``."""
    names = {parameter.name: name for name, parameter in model.named_parameters()}
    keys = {}
    for key, value in state.items():
        if isinstance(value, paddle.Tensor):
            owner = max((name for name in names if key.startswith(f"{name}_")), key=len)
            keys[f"{names[owner]}/{key[len(owner) + 1 :].rpartition('_')[0]}"] = key
    return keys
