"""Which files and folders a program may write, and the home folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import UserError

__all__ = ["expand_home", "locked", "refuse_existing", "refuse_other_files"]


def expand_home(value: Any) -> Any:
    """Replace a leading ``~`` by the home folder, in a string or path, or in all values of a list or dict.

    Unlike ``Path.expanduser``, this leaves ``~name`` as it is if there is no such user, or no home folder.
    """
    if isinstance(value, dict):
        value.update({name: expand_home(item) for name, item in value.items()})
    elif isinstance(value, list):
        value[:] = map(expand_home, value)
    elif isinstance(value, (str, Path)) and str(value).startswith("~"):
        with contextlib.suppress(ValueError):  # a name that no user can have, out of somebody's file
            return type(value)(os.path.expanduser(value))  # noqa: PTH111 (keeps the type)
    return value


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let other programs that lock the folder wait; does nothing on a system without such locks."""
    descriptor = None
    with contextlib.suppress(ImportError, OSError):
        import fcntl  # not on Windows

        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def refuse_existing(file: Path, flag: str) -> None:
    """Refuse to replace a file, before the work for it is done.

    Args:
        flag: chooses the file, for the message.

    Raises:
        UserError: there is something with this name.
    """
    if os.path.lexists(file):
        raise UserError(f"{file} exists already; give another {flag}, or delete it")


def refuse_other_files(folder: Path, is_expected: Callable[[Path], bool], expected: str, flag: str) -> None:
    """Refuse a folder that contains unexpected files or folders. It need not exist.

    Args:
        is_expected: whether a path may be in the folder.
        expected: what may be in it, for the message, such as ``those of a run``.
        flag: chooses the folder, for the message.

    Raises:
        UserError: something else is in it; the message names up to three.
    """
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if not is_expected(path))
    if others:
        names = ", ".join(others[:3]) + ", ..." * (len(others) > 3)
        raise UserError(f"{folder} holds other files than {expected} ({names}); give another {flag}")
