"""Opens files that other people may have made: only regular ones, and no line without end."""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["is_regular", "open_regular", "read_lines"]

_LONGEST_LINE = 2**16  # characters


def is_regular(path: str | Path) -> bool:
    """Whether a path leads to a file on a disk: no folder, pipe or device, and none of ``/proc``, where some never end.

    Raises:
        OSError: there is no such file.
    """
    status = os.stat(path)  # noqa: PTH116
    return stat.S_ISREG(status.st_mode) and status.st_dev != _device_of_proc()


@functools.cache
def _device_of_proc() -> int | None:
    try:
        return os.stat("/proc/self").st_dev  # noqa: PTH116
    except OSError:  # other systems have none
        return None


def open_regular(path: Path, mode: str = "r", **options: Any) -> IO[Any]:
    """Open a file for reading, unless it is a pipe or a device: one may never begin, the other never end.

    So may a file of ``/proc``, see :func:`is_regular`.

    Args:
        options: further arguments of ``open``.

    Raises:
        OSError: it is one of these, or cannot be opened.
    """
    if not is_regular(path) and not path.is_dir():  # open() says what is wrong with a folder
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return path.open(mode, **options)


def read_lines(path: Path, encoding: str = "utf-8", errors: str = "strict") -> Iterator[str]:
    """The lines of a text file without their ends; a last one that is empty is left out.

    Raises:
        OSError: it cannot be opened, see :func:`open_regular`, or a line has more than 65,536 characters.
        UnicodeDecodeError: it has another encoding.
    """
    with open_regular(path, encoding=encoding, errors=errors) as file:
        while line := file.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise OSError(errno.EFBIG, f"A line has more than {_LONGEST_LINE:,} characters", str(path))
            yield line.removesuffix("\n")
