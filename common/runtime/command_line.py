"""The command line of all programs: flags, help, the process group, error messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import multiprocessing
import os
import re
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import StoppedBySignal, UserError, one_line, printable
from .folders import expand_home
from .signals import clean_up_on_signals, received_signal, stop_with_launcher
from .verbosity import choose_verbosity

if TYPE_CHECKING:
    from .failure_watch import FailureWatch

EXIT_USER_ERROR = 2

__all__ = ["EXIT_USER_ERROR", "ArgumentParser", "run"]


class _HelpFormatter(argparse.HelpFormatter):
    """Keeps the line breaks of indented paragraphs, and shows flags with one dash only."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n    " in f"\n{part}" else textwrap.fill(part, width) for part in paragraphs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if f"-{action.dest}" in action.option_strings:
            shown.option_strings = [f"-{action.dest}"]
        return super()._format_action_invocation(shown)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors, flags with one dash or two, and ``-debug``, which :func:`run` reads.

    Args:
        documentation: the program's docstring: a summary, then indented examples and other paragraphs.
        exit_codes: what its exit codes mean.
        options: further arguments of argparse.
    """

    def __init__(
        self, documentation: str = "", exit_codes: str = "0 success, 2 invalid input, 1 other errors", **options: Any
    ):
        summary, *paragraphs = documentation.strip().split("\n\n")
        examples = [f"examples:\n{part}" for part in paragraphs if part.startswith("    ")]
        notes = [part for part in paragraphs if not part.startswith("    ")]
        epilog = [*examples, *notes, "Flags may be written with two dashes as well.", f"Exit codes: {exit_codes}."]
        super().__init__(
            description=summary, epilog="\n\n".join(epilog), formatter_class=_HelpFormatter, add_help=False, **options
        )
        self.register("type", Path, _path)
        self.add_argument("-h", "-help", "--help", action="help", help="show this message and exit")
        self.add_flag("debug", action="store_true", help="show the traceback of an error")

    def add_flag(self, name: str, group: argparse._ArgumentGroup | None = None, **options: Any) -> None:
        """Add ``-name`` and ``--name``, under the heading of a group if one is given."""
        (group or self).add_argument(f"-{name}", f"--{name}", dest=name, **options)

    def add_opts(self, group: argparse._ArgumentGroup | None = None) -> None:
        """Add ``-opts KEY VALUE ...``, which may stand anywhere, and several times."""
        help_text = "any key of the configuration; several -opts add up"
        self.add_flag("opts", group, nargs="*", action="extend", default=[], metavar="KEY VALUE", help=help_text)

    def add_verbosity(self, group: argparse._ArgumentGroup) -> None:
        """Add ``-quiet`` and ``-verbose``, of which :meth:`parse_args` tells the process."""
        either: Any = group.add_mutually_exclusive_group()
        self.add_flag("quiet", either, action="store_true", help="print only warnings, errors and results")
        more = "print the whole configuration, all metrics, and what the toolkits log"
        self.add_flag("verbose", either, action="store_true", help=more)

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Parse as argparse does, and expand ``~`` at the beginning of values, as in ``-data_path=~/photos``."""
        arguments = list(sys.argv[1:] if args is None else args)
        if any(not action.option_strings for action in self._actions):
            arguments = _files_first(arguments)
        parsed = super().parse_args(arguments, namespace)
        choose_verbosity(getattr(parsed, "quiet", False), getattr(parsed, "verbose", False))
        expand_home(vars(parsed))
        return parsed

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; -h lists the flags")


def _files_first(arguments: list[str]) -> list[str]:
    """Move the files of ``-opts KEY VALUE FILE`` to the front: argparse takes all that follows ``-opts`` as options.

    A file is what exists or is no name of a key; a folder only where no value follows, since keys are called alike.
    """
    files: list[str] = []
    others: list[str] = []
    rest, after_opts = list(arguments), False
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            files, rest = [*files, *rest], []
        elif argument.startswith("-"):
            after_opts = argument.lstrip("-") == "opts"
            others.append(argument)
        elif not after_opts:
            others.append(argument)
        else:
            value = [] if not rest or re.match("--?[a-z]", rest[0]) else rest[:1]
            is_file = Path(argument).is_file() or (not value and Path(argument).exists())
            if is_file or not re.fullmatch(r"[A-Za-z]\w*(\.\w+)*", argument):
                files.append(argument)
            else:
                others += [argument, *value]
                rest = rest[len(value) :]
    return [*files, *others]


def _path(text: str) -> Path:
    if not text:  # as of a shell variable that is not set; Path would make the current folder of it
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run ``main(arguments)``, then exit with 0, or with 2 and one line for an error that the user can correct.

    ``-debug`` among the arguments prints the traceback as well. If one of several ranks fails, all exit with its code
    and print its line. A program that a signal ends removes its unfinished files, or a run saves its state; the exit
    code is then 128 plus the signal's number.
    """
    stop_with_launcher()
    _ignore_current_folder()
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = bool({"-debug", "--debug"} & set(argv))
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by >&-; the next file would get its descriptor
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 (stays open)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have characters the terminal cannot print
    watch, exit_code = None, 0
    try:
        if int(os.environ.get("PADDLE_TRAINERS_NUM", 1)) > 1:  # else -h and wrong flags need not wait for Paddle
            from . import failure_watch

            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the handler that Paddle's import has set can hang
            watch = failure_watch.FailureWatch()
            failure_watch.init_process_group()
        else:
            clean_up_on_signals()
        try:
            main(argv)
        except SystemExit as end:  # of -h, too
            exit_code = int(end.code or 0)
        sys.stdout.flush()  # an error of the disk or the reader is caught here, but not when the interpreter ends
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(128 + signal.SIGPIPE)
    except (UserError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        message = str(error)
        if isinstance(error, MemoryError):
            message = f"there is not enough memory ({one_line(error)}); use smaller images, models or batches"
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}; check path, permissions and free space"
        _fail(watch, message, EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _fail(watch, "interrupted", 128 + signal.SIGINT)
    except StoppedBySignal as stop:
        exit_code = stop.exit_code
    except Exception as error:
        if watch:  # the error may be what a collective operation makes of a lost rank; the watch then ends this process
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as another rank is gone
            time.sleep(5)
        if not received_signal():  # else Paddle has made this error of it
            traceback.print_exc()
        _fail(watch, f"{type(error).__name__}: {one_line(error)}", 1)
    if watch:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # this rank has done its work; those that have not answer
        watch.close()
        _leave(exit_code)  # with Paddle's threads between ranks, the end of the interpreter can crash
    if exit_code:
        _leave(exit_code)


def _ignore_current_folder() -> None:
    """Let libraries read nothing from the current folder, which may be data of somebody else.

    OpenCV writes its folder and a colon before ``LD_LIBRARY_PATH``. If that is empty, what stands behind the colon is
    the current folder, for all programs that Paddle's import starts. matplotlib reads ``matplotlibrc`` there: before
    3.10.9 it runs code in it, and others start LaTeX at its demand.
    """
    libraries = [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(":") if path]
    os.environ["LD_LIBRARY_PATH"] = ":".join(libraries or [str(Path(__file__).parent)])  # which has none
    here = Path.cwd() if os.path.lexists("matplotlibrc") else None
    if here:
        os.chdir("/")
        with contextlib.suppress(ImportError):
            import matplotlib  # noqa: F401
        os.chdir(here)


def _fail(watch: FailureWatch | None, message: str, exit_code: int) -> NoReturn:
    """Print the message where the user sees it, and end all ranks."""
    if signal_number := received_signal():
        message, exit_code = "interrupted", 128 + signal_number
    message = printable(message)
    if watch:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as another rank is gone
        watch.announce(message, exit_code)
    with contextlib.suppress(OSError):  # nobody reads it
        print(f"error: {message}", file=sys.stderr, flush=True)
    _leave(exit_code)


def _leave(exit_code: int) -> NoReturn:
    """Exit without waiting for reader processes or an unfinished collective operation."""
    for reader in multiprocessing.active_children():
        reader.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads it, or its disk is full
            stream.flush()
    os._exit(exit_code)
