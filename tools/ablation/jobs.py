"""The runs of an ablation: processes of the classification launcher, several at a time."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from common.errors import StoppedBySignal, UserError
from tools.ablation.rows import Row
from tools.plot_curves import read_records

__all__ = ["Job", "exclusive", "work"]

_ROOT = Path(__file__).resolve().parents[2]
_LAUNCHER = _ROOT / "image_classification" / "main_multi_gpu.py"
_PAUSE = 0.2  # seconds between two looks at the processes


class Job:
    """One row with one seed.

    Args:
        options: ``KEY VALUE ...``, which the row's configuration already has in it.
        output: folder of all runs. The run's own has the row's fingerprint in its name, so that no run goes on with the
            state of another configuration.

    Attributes:
        folder: what the launcher writes into.
        log: file that keeps what it prints.
    """

    def __init__(self, row: Row, seed: int, output: Path, options: Sequence[str] = ()):
        self.row, self.seed = row, seed
        self.folder = output / f"{row.name}_{row.fingerprint}" / f"seed{seed}"
        self.log = self.folder.with_suffix(".log")
        self._options = options
        self._process: subprocess.Popen | None = None

    def __str__(self) -> str:
        return f"{self.row.name} seed {self.seed}"

    def start(self) -> None:
        """Start, or go on after an interruption, on one thread."""
        from common.runtime.signals import PR_SET_PDEATHSIG  # imports paddle, as below

        command = [
            *(sys.executable, str(_LAUNCHER)),
            *("-cfg", str(self.row.file.resolve()), "-seed", str(self.seed)),
            *("-output", str(self.folder.resolve()), "-resume", "auto"),
            *(("-opts", *self._options) if self._options else ()),
        ]
        # If this program is killed, its runs are told to save and leave.
        tied = partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM) if sys.platform == "linux" else None
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this program alone, which passes it on once
                preexec_fn=tied,
            )

    def exit_code(self) -> int | None:
        """How the process ended, or ``None`` while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask the process to save and leave."""
        self._process.terminate()

    def wait(self) -> None:
        self._process.wait()

    def share(self) -> float:
        """How much of the run is behind it, from 0 to 1, by the last figures that it wrote."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            last = (self.folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]
            return json.loads(last)["epoch"] / self.row.config.TRAIN.EPOCHS
        return 0.0

    def failure(self) -> str:
        """The last thing that the process said."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or [line for line in lines if line.strip()] or ["it printed nothing"])[-1]

    def figures(self) -> dict[str, float]:
        """``top1``, ``best_top1`` and ``seconds`` of a finished run; see :class:`tools.ablation.results.Result`.

        A run that averages its weights is judged by the averaged ones.

        Raises:
            UserError: the run's log does not reach the last epoch, or is damaged.
        """
        train = self.row.config.TRAIN
        evaluations = read_records(self.folder, "val_ema" if train.EMA_DECAY else "val")
        last = evaluations[-1]
        if last["epoch"] != train.EPOCHS:
            raise UserError(f"{self.folder} ends with epoch {last['epoch']:g} of {train.EPOCHS}")
        batches = last["step"] * train.ACCUM_ITER
        pace = statistics.median(record["seconds_per_batch"] for record in read_records(self.folder, "train"))
        best = max(record["top1"] for record in evaluations)
        return {"top1": round(last["top1"], 4), "best_top1": round(best, 4), "seconds": round(pace * batches, 1)}


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep a second program from the same folder: the runs of both would write the same files.

    Raises:
        UserError: there is one.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another ablation runs in {folder}; wait for it, or give another -output") from error
        yield


def work(waiting: Sequence[Job], at_once: int, tick: Callable[[], None]) -> Iterator[Job]:
    """Job all, and yield each as it ends, well or not.

    Args:
        at_once: how many at a time.
        tick: is called several times a second.

    Raises:
        StoppedBySignal: SIGINT or SIGTERM came; the runs under way have saved their states.
    """
    from common.runtime.signals import StopRequest

    queue, running, told = list(waiting), [], False
    with StopRequest() as stop:
        try:
            while running or (queue and not stop.signal_number):
                while queue and len(running) < at_once and not stop.signal_number:
                    queue[0].start()
                    running.append(queue.pop(0))
                if stop.signal_number and not told:
                    told = True
                    for job in running:
                        job.stop()
                time.sleep(_PAUSE)
                tick()
                for job in [job for job in running if job.exit_code() is not None]:
                    running.remove(job)
                    if not (stop.signal_number and job.exit_code()):
                        yield job
        finally:  # running is empty unless an exception came between
            for job in running:
                job.stop()
            for job in running:
                job.wait()
    if stop.signal_number:
        raise StoppedBySignal(stop.signal_number)
