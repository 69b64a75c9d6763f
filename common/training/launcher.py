"""What the launchers of all tasks, ``main_multi_gpu.py``, do."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from ..errors import StoppedBySignal
from ..runtime.command_line import ArgumentParser, run
from ..tasks import TASKS
from .log_format import near_path

__all__ = ["launch"]

_BRACKETS = """In brackets: the key of the configuration that a flag sets, and its value in the default file. The file
of -cfg may set another; flags override files, and -opts overrides flags."""


def launch(documentation: str, name: str) -> None:
    """Run a task as the command line says, then exit; see :func:`common.runtime.command_line.run`.

    Args:
        documentation: the launcher's docstring, see :class:`common.runtime.command_line.ArgumentParser`.
        name: of the task in :data:`common.tasks.TASKS`. Its class is imported after the flags were read, so that ``-h``
            and wrong flags answer at once.
    """
    config_spec = TASKS[name].config()

    def main(argv: Sequence[str]) -> None:
        parser = ArgumentParser(
            f"{documentation.rstrip()}\n\n{_BRACKETS}",
            "0 success, 2 invalid input, 128 + signal number after saving because of a signal, 1 other errors",
            usage=f"python [-m paddle.distributed.launch] {name}/main_multi_gpu.py [flags]",
        )
        config_spec.add_flags(parser)
        arguments = parser.parse_args(argv)
        config = config_spec.load(arguments)
        settings = "\n".join([near_path(arguments.cfg), *config_spec.changes(config, arguments.cfg)])
        from .run import run_task  # imports Paddle

        task = TASKS[name].task()(config)
        run_task(task, settings)
        if task.log.reader_is_gone:
            raise StoppedBySignal(signal.SIGPIPE)

    run(main)
