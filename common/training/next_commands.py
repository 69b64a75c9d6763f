"""The commands that a finished run prints: what to do next, to be pasted where they are printed."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

from ..layers.variants import VARIANTS
from ..runtime.distributed import world_size
from .config_values import find
from .log_format import near_path, title
from .run_folder import RunFolder
from .task import Evaluator, Task

__all__ = ["next_commands", "resume_command"]

_ROOT = Path(__file__).resolve().parents[2]


def next_commands(
    task: Task, folder: RunFolder, evaluator: Evaluator, stopped_early: bool, ends_in_warm_up: bool = False
) -> dict[str, str]:
    """Each command under its label, such as ``predict``.

    Args:
        task: of the run.
        folder: of the run, with its best weights and latest state.
        evaluator: the validation split, of which the commands take an image.
        stopped_early: the run did not reach its last step.
        ends_in_warm_up: the last learning rate is the highest, at which a cooldown would be refused.
    """
    weights = f"-pretrained {_quoted(folder.best)}"
    image = _quoted(evaluator.example) if evaluator.example else _own("docs", "digit.png")
    tool = f"{_python()} {_own('tools')}"
    commands = {
        "evaluate": f"{_python()} {_launcher(task)} -cfg {_quoted(folder.config_file)} -eval {weights}",
        "predict": f"{tool}/predict.py {image} {weights}",
        "export": f"{tool}/export.py {weights} -images {image} -out {_quoted(folder.folder / 'exported')}",
    }
    if task.backbone_name in VARIANTS:
        pictures = _quoted(folder.folder / "visualized")
        commands["visualize"] = f"{tool}/visualize.py {image} {weights} -out {pictures}"
    resume = resume_command(task, folder)
    if stopped_early:
        return commands | {"resume": f"{resume} -opts TRAIN.EARLY_STOP 0"}
    length = find(task.config, task.length_key)
    if ends_in_warm_up:
        return commands | {"resume": f"{resume} -opts {task.length_key} {2 * length}"}
    more = task.config.TRAIN.COOLDOWN + max(1, length // 2)
    note = (
        f"(at a low, constant learning rate; raising {task.length_key} instead would raise the rate again, and the "
        f"{title(task.criterion)} may fall at first)"
    )
    return commands | {"resume": f"{resume} -opts TRAIN.COOLDOWN {more}\n{note}"}


def resume_command(task: Task, folder: RunFolder) -> str:
    """Continues a run from its latest state, on as many ranks."""
    python = _python()
    if world_size() > 1:  # its log has the values of all environment variables, so it belongs to the run
        python += f" -m paddle.distributed.launch --log_dir {_quoted(folder.folder / 'log')}"
        if task.device == "cpu":  # without it, the launcher starts one rank for each GPU, and a single one on CPUs
            python += f" --nproc_per_node {os.environ.get('PADDLE_LOCAL_SIZE', world_size())}"
    return f"{python} {_launcher(task)} -cfg {_quoted(folder.config_file)} -resume {_quoted(folder.latest)}"


def _python() -> str:
    """``python`` if that is the one that runs this, which it is not while its environment is not activated."""
    return "python" if shutil.which("python") == sys.executable else shlex.quote(near_path(sys.executable))


def _launcher(task: Task) -> str:
    return _own(task.name, "main_multi_gpu.py")


def _own(*names: str) -> str:
    """A file of this checkout."""
    return shlex.quote(near_path(_ROOT.joinpath(*names)))


def _quoted(path: str | Path) -> str:
    return shlex.quote(str(path))
