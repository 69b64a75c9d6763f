"""The log of a run: lines on the terminal, JSON lines in a file, and VisualDL."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import printable
from ..runtime.atomic_file import replace_file, write_text
from ..runtime.distributed import is_main_process
from ..runtime.regular_file import open_regular
from ..runtime.verbosity import is_quiet
from .loader import Loader

__all__ = ["CURVES_FILE", "Position", "TrainingLog"]

CURVES_FILE = r"vdlrecords\.[0-9]{10}\.log"  # what VisualDL calls its files

_INTERVALS = {"delay": 10.0, "mininterval": 10.0}  # seconds until the first line of progress, and between two
_PROGRESS = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"
_HISTOGRAM_BUCKETS = 50
_KINDS = "train", "val", "val_ema"
_NO_CURVES = {
    "epoch",  # a straight line
    "images",  # constant; and VisualDL's server stops at a curve with the same name as a picture, val/images
}


class _ProgressLines(tqdm):
    """Prints a new line for each update instead of redrawing the bar."""

    def __init__(self, log: TrainingLog, **options: Any):
        self._log = log
        super().__init__(**options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # otherwise tqdm clears the bar
            with self._log.printing():
                print(self, file=self.fp, flush=True)


class Position(NamedTuple):
    """How far a run has come.

    Attributes:
        step: optimizer steps done.
        steps_per_epoch: in this run; another number of ranks or another batch size may have counted otherwise before.
        is_validated: the validation after this step is complete, if one was due.
    """

    step: int
    steps_per_epoch: int
    is_validated: bool

    def includes(self, record: Mapping[str, Any]) -> bool:
        """Whether a record will not be written again when the run continues here."""
        recorded, done = record["step"], float(self.step)
        if "epoch" in record:
            recorded, done = record["epoch"], self.step / self.steps_per_epoch
        return recorded < done or (recorded == done and (self.is_validated or record["kind"] == "train"))

    def step_of(self, record: Mapping[str, Any]) -> int:
        """The step of a record as this run counts."""
        return round(record["epoch"] * self.steps_per_epoch) if "epoch" in record else record["step"]


_START = Position(0, 1, is_validated=False)


class TrainingLog:
    """Logs on rank 0 and does nothing on the other ranks; only prints until :meth:`open`.

    VisualDL shows the same names in all tasks: ``train/loss``, its parts, ``train/lr``, ``train/grad_norm``,
    ``train/images_per_second``; ``val/METRIC`` and, of the averaged weights, ``val_ema/METRIC``; the pictures
    ``train/samples`` and ``val/images`` or ``val/image N``; with ``HISTOGRAMS`` the histograms ``weights/PARAMETER``
    and ``gradients/PARAMETER``.

    Attributes:
        reader_is_gone: nobody reads the lines any more, because a program after ``|`` or the terminal has ended, or the
            disk or the quota of the file after ``>`` is full. After :meth:`open`, when there is something to lose, this
            is no error.
    """

    def __init__(self):
        self.reader_is_gone = False
        self._file = self._visualdl = None

    def open(self, folder: Path, done: Position = _START) -> None:
        """Start to write ``log.jsonl`` (one object per record: ``kind``, ``step``, then the metrics) and ``visualdl/``.

        Args:
            done: keep the records of a resumed run up to here. Later ones are dropped, because these steps are
                trained again, and so is what is no record, such as a line that a kill cut in two. VisualDL shows only
                the newest file of a folder, so the kept records are written into a new one, which replaces the others.
        """
        if not is_main_process():
            return
        from visualdl import LogWriter  # takes a second to import

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        kept = [record for record in _read_records(path) if done.includes(record)]
        write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))
        self._file = path.open("a", encoding="utf-8")
        curves = folder / "visualdl"
        for older in () if curves.is_symlink() else curves.glob("vdlrecords.*.log"):  # a link may lead to other runs
            if re.fullmatch(CURVES_FILE, older.name):
                older.unlink()
        self._visualdl = LogWriter(logdir=str(curves), display_name=printable(folder.name))
        for record in kept:
            metrics = {name: value for name, value in record.items() if name not in ("kind", "step")}
            self._add_scalars(record["kind"], done.step_of(record), metrics)

    def close(self) -> None:
        if self._file and self._visualdl:
            self._file.close()
            self._visualdl.close()

    @property
    def has_visualdl(self) -> bool:
        """Whether :meth:`picture` and :meth:`histogram` write anything."""
        return self._visualdl is not None

    def line(self, text: str) -> None:
        """Print a line, or several; with ``-quiet`` only those that begin with ``warning: ``."""
        if is_quiet():
            text = "\n".join(line for line in text.split("\n") if line.startswith("warning: "))
            if not text:
                return
        self.result(text)

    def result(self, text: str) -> None:
        """Print a line, or a table of several, above a progress bar if there is one."""
        if is_main_process():
            with self.printing():
                tqdm.write("\n".join(map(printable, text.split("\n"))), file=sys.stdout)
                sys.stdout.flush()

    @contextlib.contextmanager
    def printing(self) -> Iterator[None]:
        """Around all that prints during training: from when nobody reads it, print to the null device."""
        try:
            yield
        except OSError:
            if self._file is None:
                raise
            self.reader_is_gone = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def record(self, kind: str, step: int, **metrics: float) -> None:
        """Write the finite metrics of a step; ``kind`` is ``train``, ``val`` or ``val_ema``, the prefix in VisualDL."""
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}  # JSON has no others
        if self._file:
            self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
            self._file.flush()
            self._add_scalars(kind, step, metrics)

    def _add_scalars(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if self._visualdl and name not in _NO_CURVES:
                self._visualdl.add_scalar(f"{kind}/{name}", value, step)

    def histogram(self, name: str, step: int, values: np.ndarray) -> None:
        """Write the distribution of some values of a step to VisualDL, unless there are no buckets between them."""
        if self._visualdl:
            with contextlib.suppress(ValueError):  # equal values above 2**53; float64 divides all ranges of float32
                self._visualdl.add_histogram(name, values.ravel().astype(float), step, buckets=_HISTOGRAM_BUCKETS)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Write a picture of a step, RGB uint8 ``[height, width, 3]``, to VisualDL, and the latest one to a PNG.

        Args:
            name: ``kind/what``; the file is ``pictures/kind_what.png``.
        """
        if self._file and self._visualdl:
            self._visualdl.add_image(name, pixels, step)
            file = Path(self._file.name).parent / "pictures" / f"{name.replace('/', '_').replace(' ', '_')}.png"
            with replace_file(file) as stream:
                Image.fromarray(pixels).save(stream, format="PNG")

    def progress(self, total: int, description: str, lines: bool = True) -> tqdm:
        """A progress bar on stderr if that is a terminal; under Paddle's launcher it is not.

        Args:
            lines: without a terminal, print a line every ten seconds instead; otherwise print nothing.
        """
        if sys.stderr.isatty():
            hidden = is_quiet() or not is_main_process()
            return tqdm(total=total, desc=description, disable=hidden, leave=False, dynamic_ncols=True)
        hidden = is_quiet() or not (lines and is_main_process())
        return _ProgressLines(
            self,
            total=total,
            desc=description,
            disable=hidden,
            leave=False,
            file=sys.stdout,
            **_INTERVALS,
            bar_format=_PROGRESS,
        )

    def batches(self, loader: Loader, description: str) -> Iterator[Any]:
        """Iterate over a loader under a progress bar; see :meth:`progress`."""
        with self.progress(len(loader), description) as bar:
            for batch in loader:
                yield batch
                bar.update(1)


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a ``log.jsonl``, without lines that this class has not written."""
    text = ""
    if path.exists():
        with open_regular(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    for line in text.splitlines():
        try:
            record = json.loads(line)
            if _is_record(record):
                yield record
        except (ValueError, RecursionError):  # no JSON
            continue


def _is_record(value: Any) -> bool:
    """Whether a value has the form of a record, and names and numbers that VisualDL accepts."""
    if not isinstance(value, dict) or value.get("kind") not in _KINDS:
        return False
    numbers = {name: number for name, number in value.items() if name != "kind"}
    return (
        all(type(number) is float or (type(number) is int and abs(number) < 2**63) for number in numbers.values())
        and all(name.isprintable() and "%" not in name for name in numbers)
        and type(value.get("step")) is int
        and value["step"] > 0
        and 0 < value.get("epoch", 1) < math.inf
    )
