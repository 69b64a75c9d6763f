"""Where a run's figures go: one line on the terminal, a JSON-lines file, and VisualDL."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from paddle.io import DataLoader
from PIL import Image
from tqdm import tqdm

from ..runtime.distributed import is_main_process
from ..runtime.text_file import write_text

__all__ = ["TrainingLog"]

_INTERVALS = {"delay": 10.0, "mininterval": 10.0}  # seconds to the first line, and between two
_BUCKETS = 50  # of a histogram
_NO_CURVES = {
    "epoch",  # a straight line
    "images",  # never changes; and VisualDL's server stops at a curve with the name of the pictures, val/images
}
_LINE = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"


class _ProgressLines(tqdm):
    """A line each time in place of a bar that is drawn over."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None:  # else the bar is to be wiped out
            print(self, file=self.fp, flush=True)


class TrainingLog:
    """Writes on rank 0 and does nothing on the others.

    What VisualDL shows has the same names in all tasks: ``train/loss``, its parts, ``train/lr``, ``train/grad_norm``,
    ``train/images_per_second``; ``val/FIGURE`` and, of the averaged weights, ``val_ema/FIGURE``; the pictures
    ``train/samples`` and ``val/images`` or ``val/image N``; on request the histograms ``weights/PARAMETER`` and
    ``gradients/PARAMETER``.

    Args:
        folder: gets ``log.jsonl`` (one object a record: ``kind``, ``step``, then the figures) and ``visualdl/``.
            ``None`` only prints.
    """

    def __init__(self, folder: Path | None):
        self._file = self._visualdl = None
        if folder and is_main_process():
            from visualdl import LogWriter  # takes a second, and only rank 0 needs it

            folder.mkdir(parents=True, exist_ok=True)
            self._file = (folder / "log.jsonl").open("a", encoding="utf-8")
            self._visualdl = LogWriter(logdir=str(folder / "visualdl"), display_name=folder.name)

    @property
    def has_visualdl(self) -> bool:
        """Whether this process writes for VisualDL; without, :meth:`picture` and :meth:`histogram` do nothing."""
        return self._visualdl is not None

    def line(self, text: str) -> None:
        """Print one line, above a progress bar if there is one."""
        if is_main_process():
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def record(self, kind: str, step: int, **figures: float) -> None:
        """Keep figures of a step: ``kind`` is ``train``, ``val`` or the like, and the prefix in VisualDL."""
        if self._file:
            self._file.write(json.dumps({"kind": kind, "step": step, **figures}) + "\n")
            self._file.flush()
            self._add_scalars(kind, step, figures)

    def _add_scalars(self, kind: str, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            if self._visualdl and name not in _NO_CURVES:
                self._visualdl.add_scalar(f"{kind}/{name}", value, step)

    def histogram(self, name: str, step: int, values: np.ndarray) -> None:
        """Keep the distribution of some values of a step in VisualDL."""
        if self._visualdl:
            self._visualdl.add_histogram(name, values.ravel(), step, buckets=_BUCKETS)

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Keep a picture of a step, RGB uint8 ``[height, width, 3]``, in VisualDL, and the last one as a PNG, too.

        Args:
            name: ``kind/what``; the file is ``pictures/kind_what.png``.
        """
        if self._file and self._visualdl:
            self._visualdl.add_image(name, pixels, step)
            file = Path(self._file.name).parent / "pictures" / f"{name.replace('/', '_').replace(' ', '_')}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(pixels).save(file)

    def progress(self, total: int, description: str, lines: bool = True) -> tqdm:
        """A bar on stderr where that is a terminal; it is none under Paddle's launcher, which copies a file.

        Args:
            lines: elsewhere, print a line every ten seconds; else show nothing.
        """
        if sys.stderr.isatty():
            return tqdm(total=total, desc=description, disable=not is_main_process(), leave=False, dynamic_ncols=True)
        hidden = not (lines and is_main_process())
        return _ProgressLines(
            total=total, desc=description, disable=hidden, leave=False, file=sys.stdout, **_INTERVALS, bar_format=_LINE
        )

    def over(self, batches: DataLoader, description: str) -> Iterator[Any]:
        """Go through a loader under a bar; see :meth:`progress`."""
        with self.progress(len(batches), description) as bar:
            for batch in batches:
                yield batch
                bar.update(1)

    def rewind(self, step: int) -> None:
        """Drop the records of ``log.jsonl`` after a step, which is written again, and a line that a kill cut in two.

        VisualDL shows the newest of a folder's files alone, so it gets the others again.
        """
        if self._file:
            self._file.close()
            path = Path(self._file.name)
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")
            for record in map(json.loads, kept):
                self._add_scalars(record.pop("kind"), record.pop("step"), record)

    def close(self) -> None:
        if self._file and self._visualdl:
            self._file.close()
            self._visualdl.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return float("inf")
