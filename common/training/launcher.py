"""What the launchers of all tasks, ``main_multi_gpu.py``, do."""

from __future__ import annotations

from collections.abc import Sequence

from ..runtime.command_line import ArgumentParser, run
from ..tasks import TASKS

__all__ = ["launch"]

_BRACKETS = """In brackets: the key of the configuration that a flag sets, and its value in the default file. The file
of -cfg may have another; flags override files, and -opts flags."""


def launch(documentation: str, task: str) -> None:
    """Run a task as the command line says, then exit; see :func:`common.runtime.command_line.run`.

    Args:
        documentation: what the launcher says of itself, see :class:`common.runtime.command_line.ArgumentParser`.
        task: one of :data:`common.tasks.TASKS`. Its class is imported after the flags were read, so that ``-h`` and
            mistakes answer at once.
    """

    form = TASKS[task].config()

    def main(argv: Sequence[str]) -> None:
        parser = ArgumentParser(
            f"{documentation.rstrip()}\n\n{_BRACKETS}",
            "0 done, 2 wrong input, 128 + signal when one made it save and leave, 1 anything else",
            usage=f"python -m paddle.distributed.launch {task}/main_multi_gpu.py [flags]",
        )
        form.add_flags(parser)
        config = form.load(parser.parse_args(argv))
        TASKS[task].task()(config).run()

    run(main)
