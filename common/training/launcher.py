"""What the launchers of all tasks, ``main_multi_gpu.py``, do."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence

from ..runtime.command_line import ArgumentParser, run
from .config import TaskConfig

__all__ = ["launch"]

_BRACKETS = """In brackets: the key of the configuration that a flag sets, and its value in the default file. The file
of -cfg may have another; flags override files, and -opts flags."""


def launch(documentation: str, form: TaskConfig, task: str) -> None:
    """Run a task as the command line says, then exit; see :func:`common.runtime.command_line.run`.

    Args:
        documentation: what the launcher says of itself, see :class:`common.runtime.command_line.ArgumentParser`.
        form: the task's flags and configuration.
        task: ``package.module:Class`` of a :class:`common.training.task.Task`, which is imported after the flags were
            read, so that ``-h`` and mistakes answer at once.
    """

    def main(argv: Sequence[str]) -> None:
        parser = ArgumentParser(
            f"{documentation.rstrip()}\n\n{_BRACKETS}",
            "0 done, 2 wrong input, 128 + signal when one made it save and leave, 1 anything else",
            usage=f"python -m paddle.distributed.launch {form.default_file.parents[1].name}/main_multi_gpu.py [flags]",
        )
        form.add_flags(parser)
        config = form.load(parser.parse_args(argv))
        pkgutil.resolve_name(task)(config).run()

    run(main)
