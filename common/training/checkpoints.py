"""The checkpoint files of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoints.file_format import SUFFIXES, remove_leftovers, save_file
from ..checkpoints.loading import read_state
from ..errors import UserError
from ..runtime.distributed import is_main_process

__all__ = ["CheckpointFolder"]


class CheckpointFolder:
    """``latest``, ``best``, and the last ``keep`` of ``epoch_NNNN`` or ``step_NNNN``. Rank 0 writes.

    ``latest`` and the numbered files are training states to resume from; ``best`` contains only weights.

    Args:
        folder: the output folder of the run.
        keep: how many numbered files to keep.
        unit: what their numbers count, ``epoch`` or ``step``.
    """

    def __init__(self, folder: Path, keep: int, unit: str = "epoch"):
        self.folder, self.keep, self.unit = folder, keep, unit
        self.latest, self.best = folder / f"latest{SUFFIXES[0]}", folder / f"best{SUFFIXES[0]}"

    def clean(self) -> None:
        """Remove temporary files of a killed process."""
        if is_main_process():
            remove_leftovers(self.folder)

    def find_latest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest intact training state; ``None`` if there is no state at all.

        Args:
            warn: called with a message about each damaged state that is skipped.

        Raises:
            UserError: there are states, and all of them are damaged.
        """
        damage = None
        for path in (self.latest, *reversed(self._numbered())):
            if path.is_file():
                try:
                    return path, read_state(path)
                except UserError as error:
                    damage = damage or error
                    warn(str(error))
        if damage:
            raise UserError(f"{self.folder} has no intact training state to resume from; {damage}")
        return None

    def save_latest(self, state: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(state, self.latest)

    def save_best(self, weights: Mapping[str, Any]) -> None:
        if is_main_process():
            save_file(weights, self.best)

    def save_numbered(self, state: Mapping[str, Any], number: int) -> None:
        """Save a state under its number, and delete the oldest numbered files beyond ``keep``."""
        if is_main_process() and self.keep:
            save_file(state, self.folder / f"{self.unit}_{number:04d}{SUFFIXES[0]}")
            for old in self._numbered()[: -self.keep]:
                old.unlink()

    def _numbered(self) -> list[Path]:
        """The numbered files in the order of writing, which is not that of their numbers if a run went back."""
        return sorted(self.folder.glob(f"{self.unit}_*{SUFFIXES[0]}"), key=lambda path: path.stat().st_mtime_ns)
