"""Tables of results: CSV files, one per task, that ``-eval -record`` appends to."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ..runtime.machine import code_version, describe_device

__all__ = ["Result", "make_results", "results_file"]

_ROOT = Path(__file__).resolve().parents[2]
_NO_RESULTS = ("loss", "images", "skipped")  # metrics of an evaluation that do not go into the table


@dataclass(frozen=True)
class Result:
    """A row of a table. Unknown values are empty.

    Attributes:
        value: in percent, with six digits.
        checkpoint_sha256: of the evaluated file; empty for the last weights of a training run.
        command: what was run, in the project's folder.
        code_version: see :func:`common.runtime.machine.code_version`.
        machine: see :func:`common.runtime.machine.describe_device`.
        date: of the measurement, in UTC.
    """

    model: str
    data_set: str
    metric: str
    value: float
    checkpoint_sha256: str
    command: str
    code_version: str
    machine: str
    date: str


def results_file(task: str) -> Path:
    """The table of a task, relative to the project's folder.

    Args:
        task: folder of its launcher.
    """
    return Path("results") / f"{task}.csv"


def make_results(
    model: str, data_set: str, metrics: Mapping[str, float], suffix: str, sha256: str, device: str
) -> list[Result]:
    """The rows for an evaluation that this process has just made.

    Args:
        metrics: of the evaluation, in percent; the loss and the counts of images are left out.
        suffix: appended to their names.
        sha256: of the file with the evaluated weights.
        device: the device of the evaluation.
    """
    common = {
        "model": model,
        "data_set": data_set,
        "checkpoint_sha256": sha256,
        "command": _command(),
        "code_version": code_version(),
        "machine": describe_device(device),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }
    return [
        Result(metric=f"{metric}{suffix}", value=float(f"{value:.6g}"), **common)
        for metric, value in metrics.items()
        if metric not in _NO_RESULTS
    ]


def _command() -> str:
    """The command line of this process, with the program relative to the project's folder."""
    program = Path(sys.argv[0]).resolve()
    name = program.relative_to(_ROOT) if program.is_relative_to(_ROOT) else program.name
    launcher = ["-m", "paddle.distributed.launch", "--log_dir", "output/log"]
    is_launched = "PADDLE_TRAINER_ID" in os.environ
    return shlex.join(["python", *launcher * is_launched, str(name), *sys.argv[1:]])
