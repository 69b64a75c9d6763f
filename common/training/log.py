"""The log of a run: lines on the terminal, JSON lines in a file, and VisualDL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..runtime.atomic_file import write_text
from ..runtime.distributed import is_main_process
from .loader import Loader

__all__ = ["TrainingLog"]

_INTERVALS = {"delay": 10.0, "mininterval": 10.0}  # seconds until the first line of progress, and between two
_PROGRESS = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"
_HISTOGRAM_BUCKETS = 50
_NO_CURVES = {
    "epoch",  # a straight line
    "images",  # constant; and VisualDL's server stops at a curve with the same name as a picture, val/images
}


class _ProgressLines(tqdm):
    """Prints a new line for each update instead of redrawing the bar."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # otherwise tqdm clears the bar
            print(self, file=self.fp, flush=True)


class TrainingLog:
    """Logs on rank 0 and does nothing on the other ranks; only prints until :meth:`open`.

    VisualDL shows the same names in all tasks: ``train/loss``, its parts, ``train/lr``, ``train/grad_norm``,
    ``train/images_per_second``; ``val/METRIC`` and, of the averaged weights, ``val_ema/METRIC``; the pictures
    ``train/samples`` and ``val/images`` or ``val/image N``; with ``HISTOGRAMS`` the histograms ``weights/PARAMETER``
    and ``gradients/PARAMETER``.
    """

    def __init__(self):
        self._file = self._visualdl = None

    def open(self, folder: Path, last_step: int = -1) -> None:
        """Start to write ``log.jsonl`` (one object per record: ``kind``, ``step``, then the metrics) and ``visualdl/``.

        Args:
            last_step: keep the records of an interrupted run up to this step, and drop later ones and a line that a
                kill cut in two: these steps are trained again. VisualDL shows only the newest file of a folder, so the
                kept records are written to it again.
        """
        if not is_main_process():
            return
        from visualdl import LogWriter  # takes a second to import

        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "log.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in lines if _step_of(line) <= last_step]
        write_text(path, "".join(f"{line}\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        self._visualdl = LogWriter(logdir=str(folder / "visualdl"), display_name=folder.name)
        for record in map(json.loads, kept):
            self._add_scalars(record.pop("kind"), record.pop("step"), record)

    def close(self) -> None:
        if self._file and self._visualdl:
            self._file.close()
            self._visualdl.close()

    @property
    def has_visualdl(self) -> bool:
        """Whether :meth:`picture` and :meth:`histogram` write anything."""
        return self._visualdl is not None

    def line(self, text: str) -> None:
        """Print one line, above a progress bar if there is one."""
        if is_main_process():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def record(self, kind: str, step: int, **metrics: float) -> None:
        """Write the metrics of a step; ``kind`` is ``train``, ``val`` or ``val_ema``, the prefix in VisualDL."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, "step": step, **metrics}) + "\n")
            self._file.flush()
            self._add_scalars(kind, step, metrics)

    def _add_scalars(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if self._visualdl and name not in _NO_CURVES:
                self._visualdl.add_scalar(f"{kind}/{name}", value, step)

    def histogram(self, name: str, step: int, values: np.ndarray) -> None:
        """Write the distribution of some values of a step to VisualDL."""
        if self._visualdl:
            self._visualdl.add_histogram(name, values.ravel(), step, buckets=_HISTOGRAM_BUCKETS)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Write a picture of a step, RGB uint8 ``[height, width, 3]``, to VisualDL, and the latest one to a PNG.

        Args:
            name: ``kind/what``; the file is ``pictures/kind_what.png``.
        """
        if self._file and self._visualdl:
            self._visualdl.add_image(name, pixels, step)
            file = Path(self._file.name).parent / "pictures" / f"{name.replace('/', '_').replace(' ', '_')}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(file)

    def progress(self, total: int, description: str, lines: bool = True) -> tqdm:
        """A progress bar on stderr if that is a terminal; under Paddle's launcher it is not.

        Args:
            lines: without a terminal, print a line every ten seconds instead; otherwise print nothing.
        """
        if sys.stderr.isatty():
            return tqdm(total=total, desc=description, disable=not is_main_process(), leave=False, dynamic_ncols=True)
        hidden = not (lines and is_main_process())
        return _ProgressLines(
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


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
