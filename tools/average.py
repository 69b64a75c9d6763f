"""Average the weights of several checkpoints of one run, or of runs with the same settings, into one weights file.

    python tools/average.py -last 3 output/pale_nano_mnist5k -out average.pdparams
    python tools/average.py first.pdparams second.pdparams -out average.pdparams

Averages often generalize better than single checkpoints (SWA, arXiv 1803.05407; model soups, arXiv 2203.05482). The
result has the configuration and the class names of the checkpoints, for tools/predict.py and -eval. BatchNorm's running
statistics are averaged like weights, which only approximates those of the averaged model.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])  # where common/ and the folders of the tasks are

from common.errors import UserError, printable  # noqa: E402
from common.runtime.command_line import ArgumentParser, run  # noqa: E402
from common.runtime.folders import refuse_existing  # noqa: E402
from common.tasks import TASKS  # noqa: E402
from common.training.config import WEIGHTS  # noqa: E402

if TYPE_CHECKING:
    from common.checkpoints.loading import Checkpoint


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    from common.checkpoints.file_format import SUFFIXES, save_file

    out: Path = arguments.out
    if out.suffix not in SUFFIXES:
        raise UserError(f"-out is {out}; give a name that ends in {' or '.join(SUFFIXES)}")
    refuse_existing(out, "-out")
    files = arguments.checkpoints
    if arguments.last is not None:
        files = _last_states(files, arguments.last)
    if len(files) < 2:
        raise UserError("give at least two checkpoints, or -last N and the folder of a run")
    save_file(average(files, WEIGHTS[arguments.weights]), out, new=True)
    print(printable(f"{out}: the average of {len(files)} checkpoints, {', '.join(map(str, files))}"))


def average(files: Sequence[str | Path], ema: bool | None = None) -> dict[str, Any]:
    """Average the weights of checkpoints, which may be anybody's files; two of them are in memory at a time.

    Floating-point arrays, also BatchNorm's running statistics, are averaged in float64 and rounded to their type;
    others, such as counters, are those of the last file.

    Args:
        files: the checkpoints, at least one.
        ema: see :func:`common.checkpoints.loading.read_checkpoint`.

    Returns:
        The content of a weights file: ``model`` and the metadata of the first file; or, if that has no metadata, the
        weights alone.

    Raises:
        UserError: a file cannot be read, or differs from the first one in its task, classes, configuration or arrays.
    """
    import numpy as np

    from common.checkpoints.loading import read_checkpoint

    first = checkpoint = read_checkpoint(files[0], ema=ema)
    sums = {name: array.astype(np.float64) for name, array in first.weights.items() if array.dtype.kind == "f"}
    seen = {first.sha256: files[0]}
    for file in files[1:]:
        checkpoint = read_checkpoint(file, ema=ema)
        if checkpoint.sha256 in seen:
            raise UserError(f"{file} has the content of {seen[checkpoint.sha256]}; give each checkpoint once")
        seen[checkpoint.sha256] = file
        _check_alike(first, checkpoint)
        for name, total in sums.items():
            total += checkpoint.weights[name]
    weights = dict(checkpoint.weights)
    for name, total in sums.items():
        if not np.isfinite(total).all():
            raise UserError(f"{name} has NaN or infinity in one of the files; give those of runs that did not diverge")
        weights[name] = (total / len(files)).astype(first.weights[name].dtype)
    names = ("task", "config", "attention", "class_names", "versions")
    metadata = {name: value for name in names if (value := getattr(first, name))}
    return {"model": weights, **metadata} if metadata else weights


def _check_alike(first: Checkpoint, other: Checkpoint) -> None:
    """Refuse a checkpoint that is not one of the same model with the same classes and settings."""

    def refuse(difference: str) -> UserError:
        return UserError(f"{first.source} and {other.source} cannot be averaged: {difference}")

    if bool(first.config) != bool(other.config):
        raise refuse("only one of them contains its configuration")
    for name in ("task", "class_names", "attention"):
        ours, theirs = getattr(first, name), getattr(other, name)
        if ours != theirs:
            raise refuse(f"their {name.replace('_', ' ')} differ: {ours!r:.200} and {theirs!r:.200}")
    if first.config and other.config and first.config != other.config:
        if first.task not in TASKS:
            raise refuse(f"their configurations differ, and their task {first.task!r:.80} is unknown")
        spec = TASKS[first.task].config()
        ours, theirs = (spec.from_text(checkpoint.config, checkpoint.source) for checkpoint in (first, other))
        if differences := spec.differences(ours, theirs):
            raise refuse(f"they were trained with other settings: {differences[0]}")
    if only := sorted(first.weights.keys() ^ other.weights.keys()):
        raise refuse(f"only one of them has {only[0]} (and {len(only) - 1} more)")
    for name, array in first.weights.items():
        ours, theirs = (f"{weights.dtype} {list(weights.shape)}" for weights in (array, other.weights[name]))
        if ours != theirs:
            raise refuse(f"{name} is {ours} in the one and {theirs} in the other")


def _last_states(folders: Sequence[str], count: int) -> list[Path]:
    """The last numbered states of a run, in the order of their numbers."""
    from common.training.run_folder import numbered_states

    if len(folders) != 1 or not Path(folders[0]).is_dir():
        raise UserError(f"-last takes the folder of one run, not {' '.join(folders)}")
    states = _states_before_latest(Path(folders[0]), numbered_states(Path(folders[0])))
    if not 2 <= count <= len(states):
        raise UserError(
            f"-last is {count}; {folders[0]} has {len(states)} numbered states, of which at least 2 can be averaged "
            "(KEEP_CHECKPOINTS sets how many a run keeps)"
        )
    return states[-count:]


def _states_before_latest(folder: Path, states: Mapping[int, Path]) -> list[Path]:
    """Without those that a run has left behind, which was continued from an older state."""
    from common.checkpoints.loading import read_state

    latest = folder / "latest.pdparams"
    if not states or not latest.is_file():
        return list(states.values())
    saved = read_state(latest)
    step, steps_per_epoch = saved.get("step"), saved.get("steps_per_epoch")
    if not isinstance(step, int) or not isinstance(steps_per_epoch, int):  # no training state
        return list(states.values())
    steps = steps_per_epoch if next(iter(states.values())).name.startswith("epoch") else 1
    return [state for number, state in states.items() if number * steps <= step]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "checkpoints", nargs="+", metavar="CHECKPOINT", help="file, as for -pretrained; with -last the folder of a run"
    )
    parser.add_flag("last", type=int, metavar="N", help="average the last N numbered states in the folder of a run")
    parser.add_flag(
        "weights",
        default="",
        choices=[name for name in WEIGHTS if name],
        help="of files with both: the trained weights or their moving average (default: model_ema)",
    )
    parser.add_flag("out", type=Path, required=True, metavar="FILE", help="file to write; it must not exist")
    return parser


if __name__ == "__main__":
    run(main)
