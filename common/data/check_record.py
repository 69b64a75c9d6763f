"""A record of data that has passed a check, which is then skipped until the data changes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from .. import __version__
from ..errors import UserError
from ..runtime.atomic_file import write_text
from ..runtime.distributed import is_main_process, sum_over_ranks
from ..schema import check_value, read_json

__all__ = ["CheckRecord", "fingerprint"]


def fingerprint(rules: str, paths: Iterable[str]) -> str:
    """Compute the SHA-256 of everything that the result of a check depends on.

    Args:
        rules: settings of the check.
        paths: of the checked files; their sizes and modification times are included. They need not exist.
    """
    digest = hashlib.sha256(f"{__version__} {rules}\n".encode(errors="surrogatepass"))
    for path in paths:
        try:
            status = os.stat(path)  # noqa: PTH116  (a Path for each of 40,000 files takes longer than the call)
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"{path} {state}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


class CheckRecord:
    """A JSON file ``{split: fingerprint}`` of data that has passed. All ranks create it; rank 0 reads and writes.

    Args:
        path: the file; it need not exist.
        split: ``"train"`` or ``"val"``.
        key: returns the fingerprint of the data; called on rank 0 only.

    Attributes:
        has_passed: whether this data is in the record.
    """

    def __init__(self, path: Path, split: str, key: Callable[[], str]):
        self.path, self.split = path, split
        self._key = key() if is_main_process() else ""
        passed = is_main_process() and self._read().get(split) == self._key
        self.has_passed = bool(sum_over_ranks([float(passed)])[0])

    def add(self) -> None:
        """Record that the data has passed.

        Raises:
            UserError: the file cannot be written.
        """
        if not is_main_process():
            return
        passed = {**self._read(), self.split: self._key}
        try:
            write_text(self.path, json.dumps(passed, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}); choose a writable -output folder") from error

    def _read(self) -> dict[str, str]:
        try:
            return check_value(read_json(self.path, str(self.path)), dict[str, str], str(self.path))
        except (OSError, UserError):  # missing or damaged
            return {}
