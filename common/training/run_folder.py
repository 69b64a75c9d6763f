"""The folder of a run: who may write into it, which files belong to the run, and which state to resume."""

from __future__ import annotations

import os
import re
import shlex
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

from ..checkpoints.file_format import SUFFIXES, DamagedFileError, save_file
from ..checkpoints.loading import read_state
from ..errors import UserError
from ..runtime.atomic_file import copy_file, write_text
from ..runtime.distributed import is_main_process, wait_for_all_ranks
from ..runtime.folders import refuse_other_files
from .log import CURVES_FILE

__all__ = ["RunFolder", "numbered_states"]

_NUMBER = "(?!0[0-9]{4})[0-9]{4,}"  # as f"{number:04d}" writes it, and nothing else
# Files of a run, relative to its folder. Deleting them in this order, a process that is killed between two leaves no
# weights without the log, by which the rest is recognized as a run.
_FILES = (
    rf"(best|last|latest|(epoch|step)_{_NUMBER})\.pdparams",
    rf"config\.yaml|(val|val_ema)_(bbox|segm)\.json|visualdl/{CURVES_FILE}",
    r"pictures/(train_samples|(val|val_ema)_(images|image_[0-9]+))\.png",
    r"log\.jsonl",
)
_SUBFOLDERS = "visualdl", "pictures"
_HOLDER = "host "  # how the content of a lock begins
# What makes a folder that of a run. The other files may be those of a user, of an evaluation or of a check.
_SIGNS_OF_A_RUN = re.compile(rf"(latest|(epoch|step)_{_NUMBER})\.pdparams|log\.jsonl")
# What may be in the folder of a new run: results of data checks and evaluations, logs of Paddle's launcher.
_HARMLESS = re.compile(
    r"\..*|data_check\.json|eval_\w+\.json|(workerlog|envlog)\.\d+|backup_env\.\d+\.json|default\..*\.log"
    rf"|{CURVES_FILE}"  # which VisualDL's thread writes again after the folder of a run was deleted
)
_TEMPORARY = re.compile(r"\.([^/]+)\.[0-9]+\.tmp$")  # what atomic_file.py calls the temporary file of a name


class RunFolder:
    """The output folder of a run, which only one run writes at a time; its rank 0 does.

    ``latest`` and the numbered ``epoch_NNNN`` or ``step_NNNN`` are training states to resume from. ``best`` and
    ``last`` contain only weights, those of the best and of the last validation.

    Args:
        folder: the output folder.
        keep: how many numbered states to keep.
        unit: what their numbers count, ``epoch`` or ``step``.
    """

    def __init__(self, folder: Path, keep: int, unit: str = "epoch"):
        self.folder, self.keep, self.unit = folder, keep, unit
        self.latest, self.best = folder / f"latest{SUFFIXES[0]}", folder / f"best{SUFFIXES[0]}"
        self._lock_path, self.config_file = folder / ".lock", folder / "config.yaml"
        self._lock_file: TextIO | None = None
        self._locked = self._replaces = False

    # ---- before the run

    def claim(self, resume: str, overwrite: bool, warn: Callable[[str], None], pretrained: Iterable[Path] = ()) -> None:
        """Create the folder, lock it for the life of this object, and refuse one whose files are not this run's.

        Args:
            resume: the training state to continue, ``auto`` for that of the folder, or empty.
            overwrite: replace another run.
            warn: called with a message if the file system has no locks.
            pretrained: files of weights that the run starts from.

        Raises:
            UserError: another process writes into the folder, or it contains another run or other files, or the run to
                replace contains the weights to start from.
        """
        if not is_main_process():
            return
        self._refuse_other_files()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock(warn)
        is_run = self._is_run()
        continues = is_run and (resume == "auto" or self._contains(resume))
        if continues and overwrite:
            raise UserError(f"-overwrite would delete the run in {self.folder} that -resume continues; give only one")
        self._replaces = is_run and not continues
        if self._replaces and not overwrite and self._has_results():
            raise UserError(
                f"{self.folder} holds a run; continue it with -resume auto, replace it with -overwrite, or give "
                "another -output"
            )
        for file in pretrained:
            if self._replaces and self._contains(file):
                raise UserError(f"-overwrite would delete {file}, which the new run starts from; give another -output")

    def find_latest(self, warn: Callable[[str], None]) -> tuple[Path, dict[str, Any]] | None:
        """Read the newest intact training state; ``None`` if there is no state at all.

        Args:
            warn: called with a message about each file that is skipped because it is damaged or no training state.

        Raises:
            UserError: there are states, and all of them are damaged; or one could not be read for another reason; or
                there are only weights, which a new run would replace.
        """
        damage = None
        for path in (self.latest, *reversed(numbered_states(self.folder, self.unit).values())):
            if os.path.lexists(path):
                try:
                    state = read_state(path)
                    if "optimizer" not in state:
                        raise DamagedFileError(f"{path} contains weights, not a training state")
                    return path, state
                except DamagedFileError as error:
                    damage = damage or error
                    warn(f"warning: {error}")
                except UserError as error:
                    raise UserError(f"{error}; nothing older is used instead") from error
        remedy = "give another -output, or -overwrite instead of -resume"
        if damage:
            raise UserError(f"{self.folder} has no intact training state to resume from ({damage}); {remedy}")
        if self.best.exists():
            raise UserError(f"{self.folder} has {self.best.name}, but no training state to resume from; {remedy}")
        return None

    def begin(self, config: str) -> None:
        """Write ``config.yaml``; delete the files of a replaced run, and temporary files of killed processes.

        Links in place of subfolders are not followed.

        Args:
            config: the configuration of the run as yaml.
        """
        if not is_main_process():
            return
        if self._replaces:
            for state in (self.latest, *numbered_states(self.folder).values()):  # first: a kill must leave none alone
                state.unlink(missing_ok=True)
            for pattern in _FILES:
                self._delete(pattern)
        if self._locked:
            self._delete("|".join((*_FILES, r"data_check\.json")), temporary=True)
        (self.folder / "log.jsonl").touch()  # so that config.yaml alone, after a kill, is not taken for a user's file
        write_text(self.config_file, config)

    # ---- during the run

    def require_intact(self) -> None:
        """Raise ``UserError`` if somebody has deleted or replaced the folder, or a file in it, since :meth:`claim`."""
        if self._lock_file is None:  # another rank than 0
            return
        try:
            intact = os.path.samestat(os.fstat(self._lock_file.fileno()), self._lock_path.stat())
        except FileNotFoundError:
            intact = False
        if not intact or not self.config_file.exists() or not (self.folder / "log.jsonl").exists():
            raise UserError(
                f"the output folder {self.folder}, or its config.yaml or log.jsonl, was deleted or replaced while "
                "training; start the run again with another -output"
            )

    def save_latest(self, state: Mapping[str, Any]) -> None:
        self._save(state, self.latest)

    def save_numbered(self, state: Mapping[str, Any], number: int) -> None:
        """Save a state under a number, delete all but the last ``keep`` up to this number, then save it as the latest.

        Larger numbers, of a run that went back, stay. In this order, a run that is killed in between loses neither: it
        resumes from the older ``latest``, and comes here again.
        """
        if not self.keep:
            return self.save_latest(state)
        numbered = self.folder / f"{self.unit}_{number:04d}{SUFFIXES[0]}"
        self._save(state, numbered)
        if is_main_process():
            done = [path for other, path in numbered_states(self.folder, self.unit).items() if other <= number]
            for old in done[: -self.keep]:
                old.unlink()
            copy_file(numbered, self.latest)

    def save_best(self, weights: Mapping[str, Any]) -> None:
        self._save(weights, self.best)

    def save_last(self, weights: Mapping[str, Any]) -> None:
        self._save(weights, self.folder / f"last{SUFFIXES[0]}")

    # ---- the files

    def _save(self, state: Mapping[str, Any], path: Path) -> None:
        if is_main_process():
            self.require_intact()
            save_file(state, path)
        wait_for_all_ranks()

    def _contains(self, file: str | Path) -> bool:
        real = os.path.realpath(file)
        return bool(file) and Path(real).parent == Path(os.path.realpath(self.folder))

    def _is_run(self) -> bool:
        return any(_SIGNS_OF_A_RUN.fullmatch(path.name) for path in self.folder.iterdir())

    def _has_results(self) -> bool:
        """Whether the run has weights or a line of its log; one that ended before its first line, over its data, has
        none."""
        log = self.folder / "log.jsonl"
        return any(self.folder.glob(f"*{SUFFIXES[0]}")) or (log.exists() and log.stat().st_size > 0)

    def _refuse_other_files(self) -> None:
        if not self.folder.is_dir() or self._is_run():
            return
        refuse_other_files(self.folder, _is_harmless, "those of a run", "-output")

    def _delete(self, pattern: str, temporary: bool = False) -> None:
        """Delete the files whose path relative to the folder matches, or their temporary files."""
        subfolders = [self.folder / name for name in _SUBFOLDERS]
        for folder in (self.folder, *(subfolder for subfolder in subfolders if not subfolder.is_symlink())):
            for path in folder.glob("*"):
                name, is_temporary = _TEMPORARY.subn(r"\1", path.relative_to(self.folder).as_posix())
                if is_temporary == temporary and re.fullmatch(pattern, name, re.ASCII) and not path.is_dir():
                    path.unlink()

    # ---- the lock

    def _lock(self, warn: Callable[[str], None]) -> None:
        """Take a lock that the operating system releases when this process ends, however it ends.

        Reader processes do not inherit it. Opening and closing the file again in this process would release it.
        """
        if self._lock_path.is_symlink():  # to another file, which would be emptied; or the lock of an editor
            raise UserError(f"{self._lock_path} is a link; remove it, or give another -output")
        self._lock_file = self._lock_path.open("a+", encoding="utf-8", errors="replace")
        self._lock_file.seek(0)
        content = self._lock_file.read(500)
        if content and not content.startswith(_HOLDER):
            raise UserError(f"{self._lock_path} is a file of another program; give another -output")
        try:
            import fcntl  # not on Windows

            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._locked = True
        except (BlockingIOError, PermissionError) as error:
            holder = "".join(filter(str.isprintable, content))
            raise UserError(
                f"another run writes into {self.folder} ({holder}); wait for its end, stop it, or give another -output"
            ) from error
        except (ImportError, OSError) as error:
            warn(f"warning: {self.folder} cannot be locked ({error}); start no other run that writes into it")
        self._lock_file.truncate(0)
        self._lock_file.write(f"{_HOLDER}{socket.gethostname()}, process {os.getpid()}: {shlex.join(sys.argv)}\n")
        self._lock_file.flush()


def numbered_states(folder: Path, unit: str = "(?:epoch|step)") -> dict[int, Path]:
    """The numbered training states of a run, in the order of their numbers.

    Args:
        folder: of the run.
        unit: what the numbers count, ``epoch`` or ``step``; by default either, since a run has only one of them.
    """
    pattern = re.compile(rf"{unit}_({_NUMBER}){re.escape(SUFFIXES[0])}")
    found = ((pattern.fullmatch(path.name), path) for path in folder.glob("*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def _is_harmless(path: Path) -> bool:
    """Whether a new run may start beside a file, or beside a folder of such files."""
    if path.is_dir():
        return all(_HARMLESS.fullmatch(file.name) for file in path.iterdir())
    return _HARMLESS.fullmatch(path.name) is not None
