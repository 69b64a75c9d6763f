"""Files that are written atomically."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["copy_file", "replace_file", "write_text"]


@contextlib.contextmanager
def replace_file(
    path: Path, verify: Callable[[Path], None] = lambda temporary: None, new: bool = False
) -> Iterator[BinaryIO]:
    """Yield a temporary file beside ``path``; at the end of the block, flush it to the disk, and rename it.

    The folder is created if need be. After an error the temporary file is removed, and an existing file is unchanged.

    Args:
        verify: called with the temporary file before the renaming; may raise.
        new: keep a file of this name, which another program may have written meanwhile.

    Raises:
        FileExistsError: there is a file that is to be kept.
        OSError: the file cannot be written, or ``path`` is a device or a pipe, such as ``/dev/null``, which the
            renaming would replace.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        verify(temporary)
        if new:
            _rename_to_new(temporary, path)
        else:
            temporary.replace(path)
        with contextlib.suppress(OSError):  # Windows cannot open folders
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)  # so that the renaming survives a power failure
            finally:
                os.close(folder)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Make ``target`` the same file as ``source``, or a copy of it where the file system has no hard links.

    Both must only ever be replaced, not changed in place. Raises ``OSError``.
    """
    temporary = _temporary(target)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            with source.open("rb") as old, temporary.open("wb") as new:
                shutil.copyfileobj(old, new)
                new.flush()
                os.fsync(new.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _rename_to_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a renaming, it fails if the file exists
    except FileExistsError:
        raise
    except OSError:  # no hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "File exists", str(path)) from None
        temporary.replace(path)


def _temporary(path: Path) -> Path:
    """A name for a new file. In a container, a killed process may have had this number, and left a link to a file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    return temporary


def write_text(path: Path, text: str) -> None:
    """Replace a UTF-8 file atomically; raises ``OSError``."""
    with replace_file(path) as file:
        file.write(text.encode())
