"""What every command-line program of this project does first and last: device, process group, errors, exit codes."""

from __future__ import annotations

import argparse
import copy
import io
import multiprocessing
import os
import signal
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..errors import StoppedBySignal, UserError
from .cpu_settings import keep_freed_memory, use_fast_gemm

os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's C++ side reports every connection otherwise
use_fast_gemm()

EXIT_USER_ERROR = 2

__all__ = ["EXIT_USER_ERROR", "ArgumentParser", "run", "select_device"]


class _HelpFormatter(argparse.HelpFormatter):
    """Indented paragraphs, examples, stay as they are; a flag is shown with one dash alone."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.split("\n\n")
        return "\n\n".join(part if "\n    " in f"\n{part}" else textwrap.fill(part, width) for part in paragraphs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy.copy(action)
        if f"-{action.dest}" in action.option_strings:
            shown.option_strings = [f"-{action.dest}"]
        return super()._format_action_invocation(shown)


class ArgumentParser(argparse.ArgumentParser):
    """argparse with this project's manners: a wrong flag is one line, and flags take one dash or two.

    Every program has ``-debug``, which :func:`run` acts on.

    Args:
        documentation: of the program, its module's docstring: a summary, then indented examples and other paragraphs.
        exit_codes: what its exit codes mean.
        options: argparse's own.
    """

    def __init__(
        self, documentation: str = "", exit_codes: str = "0 done, 2 wrong input, 1 anything else", **options: Any
    ):
        summary, *paragraphs = documentation.strip().split("\n\n")
        examples = [f"examples:\n{part}" for part in paragraphs if part.startswith("    ")]
        notes = [part for part in paragraphs if not part.startswith("    ")]
        epilog = [*examples, *notes, "Flags may be written with two dashes as well.", f"Exit codes: {exit_codes}."]
        super().__init__(description=summary, epilog="\n\n".join(epilog), formatter_class=_HelpFormatter, **options)
        self.add_flag("debug", action="store_true", help="show the traceback of an error")

    def add_flag(self, name: str, group: argparse._ArgumentGroup | None = None, **options: Any) -> None:
        """Add ``-name`` and ``--name``, under the heading of a group if one is given."""
        (group or self).add_argument(f"-{name}", f"--{name}", dest=name, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; -h lists the flags")


def run(main: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> None:
    """Run a program: ``main(arguments)``, then exit with 0, or with 2 and one line for a mistake of the user's.

    ``-debug`` among the arguments shows the traceback as well. When several ranks were launched and one of them fails,
    all exit with its code and rank 0 prints its line. A run that saved and left because of a signal exits with 128 plus
    the signal's number.
    """
    warnings.filterwarnings("ignore", message="No ccache found")
    warnings.filterwarnings("ignore", message="When training, we now always track global mean")
    warnings.filterwarnings("ignore", message="Tensor do not have 'place' interface")  # while a model is traced
    argv = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names may have letters that the terminal has not
    watch, exit_code = None, 0
    try:
        if _has_several_ranks():  # else -h and mistakes need not wait for Paddle
            from ..runtime import distributed

            watch = distributed.init_process_group()
        main(argv)
    except UserError as error:
        if _wants_traceback(argv):
            traceback.print_exc()
        _fail(watch, str(error), EXIT_USER_ERROR)
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(128 + signal.SIGPIPE)
    except OSError as error:
        if _wants_traceback(argv):
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        _fail(watch, f"{where}{error.strerror or error}; check path, permissions and free space", EXIT_USER_ERROR)
    except KeyboardInterrupt:
        _fail(watch, "interrupted", 128 + signal.SIGINT)
    except StoppedBySignal as stop:
        exit_code = stop.exit_code
    except Exception as error:
        lost = watch and distributed.is_lost_connection(error)
        if not lost or _wants_traceback(argv):
            traceback.print_exc()
        if lost:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _fail(watch, watch.explain_loss() if watch and lost else f"{type(error).__name__}: {error}", 1)
    if watch:
        distributed.barrier()
        watch.close()
    if exit_code:
        _leave(exit_code)


def _has_several_ranks() -> bool:
    return int(os.environ.get("PADDLE_TRAINERS_NUM", 1)) > 1


def _wants_traceback(argv: Sequence[str]) -> bool:
    return bool({"-debug", "--debug"} & set(argv))


def _fail(watch, message: str, exit_code: int) -> NoReturn:
    """Print the message where the user sees it and end all ranks."""
    if watch:
        watch.take_over()
    message = " ".join(message.encode(errors="backslashreplace").decode().split())
    if watch is None or os.environ["PADDLE_TRAINER_ID"] == "0":
        print(f"error: {message}", file=sys.stderr, flush=True)
    if watch:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher sends it as soon as another rank is gone
        watch.announce(message, exit_code)
    _leave(exit_code)


def _leave(exit_code: int) -> NoReturn:
    """Exit without waiting for reader processes or for a collective operation that will never end."""
    for reader in multiprocessing.active_children():
        reader.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)


def select_device(name: str = "") -> str:
    """Choose where to compute and return it as Paddle spells it.

    Args:
        name: ``"cpu"``, ``"gpu"`` or ``"gpu:N"``; empty takes a GPU when Paddle was compiled for GPUs and sees one.

    Raises:
        UserError: a GPU was asked for and this Paddle or this machine has none.
    """
    import paddle

    gpus = paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0
    if name not in ("", "cpu", "gpu") and not name.startswith("gpu:"):
        raise UserError(f"unknown device {name!r}; choose cpu, gpu or gpu:N")
    if name.startswith("gpu") and not gpus:
        reason = "sees no GPU" if paddle.is_compiled_with_cuda() else "was compiled without GPU support"
        raise UserError(f"-device {name}: this Paddle {paddle.__version__} {reason}; use -device cpu")
    if _has_several_ranks() and (name.startswith("gpu:") or (name == "cpu" and gpus)):
        raise UserError(
            f"-device {name} with several ranks: the launcher gives each its own; choose with its --devices"
        )
    if not name:
        name = "gpu" if gpus else "cpu"
    launched_on = os.environ.get("FLAGS_selected_gpus")  # noqa: SIM112 (Paddle's launcher spells it so)
    if name == "gpu" and launched_on:
        name = f"gpu:{launched_on.split(',')[0]}"
    if name == "cpu":
        # Strided views save copies on GPUs; on CPUs the copies behind them are up to 40 times slower than a transpose.
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
        keep_freed_memory()
    return paddle.set_device(name) and name
