"""Which folders a program may write into."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import UserError

__all__ = ["refuse_other_files"]


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
