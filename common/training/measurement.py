"""What an evaluation measured, as lines of a table of results."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..checkpoints.download import sha256_of
from ..checkpoints.released import local_path
from ..runtime.machine import code_version, describe_device
from .paper_figures import find_figure
from .results import Result

__all__ = ["Measurement", "make_results", "unlike_defaults"]

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Measurement:
    """What an evaluation was of, and what it gave.

    Attributes:
        model: what to call the model.
        data_set: the validation data.
        figures: the metrics, in percent.
        paper_model: the row of the paper that was measured, such as ``pale_tiny``; empty where model, data or setting
            are not the paper's.
    """

    model: str
    data_set: str
    figures: Mapping[str, float]
    paper_model: str = ""


def unlike_defaults(values: Mapping[str, Any], defaults: Mapping[str, Any], *without: str) -> list[str]:
    """``key=value`` for each value that is not the default, in the order of the values; ``without`` the given keys."""
    missing = object()
    return [
        f"{key}={value}" for key, value in values.items() if key not in without and value != defaults.get(key, missing)
    ]


def make_results(measurement: Measurement, task: str, source: str | Path, device: str) -> list[Result]:
    """The lines for an evaluation that this process has just made.

    Args:
        source: the weights that were evaluated, a path or an address.
        device: that computed.
    """
    common = {
        "model": measurement.model,
        "data_set": measurement.data_set,
        "checkpoint_sha256": sha256_of(local_path(source)),
        "command": _command(),
        "code_version": code_version(),
        "machine": describe_device(device),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    }
    results = []
    for metric, value in measurement.figures.items():
        figure = find_figure(task, measurement.paper_model, metric)
        paper_value = figure.text if figure else ""
        results.append(Result(metric=metric, value=f"{value:.6g}", paper_value=paper_value, **common))
    return results


def _command() -> str:
    """What was typed, with the program's path seen from the project's folder."""
    program = Path(sys.argv[0]).resolve()
    name = program.relative_to(_ROOT) if program.is_relative_to(_ROOT) else program.name
    launcher = ["-m", "paddle.distributed.launch"] if "PADDLE_TRAINER_ID" in os.environ else []
    return shlex.join(["python", *launcher, str(name), *sys.argv[1:]])
