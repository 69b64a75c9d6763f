"""A record of data that has passed a check, which is then skipped until the data changes, but for its warnings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from .. import __version__
from ..errors import UserError, printable
from ..runtime.atomic_file import write_text
from ..runtime.distributed import gather_objects, is_main_process
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
        except (OSError, ValueError):  # the latter for names that no file can have
            state = "missing"
        digest.update(f"{path} {state}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()


@dataclass(frozen=True)
class _Passed:
    fingerprint: str
    warnings: list[str]


class CheckRecord:
    """A JSON file of data that has passed, with the warnings. All ranks create it; rank 0 reads and writes.

    Args:
        path: the file; it need not exist.
        split: ``"train"`` or ``"val"``.
        key: returns the fingerprint of the data; called on rank 0 only.

    Attributes:
        has_passed: whether this data is in the record.
        warnings: about the data that has passed.
    """

    def __init__(self, path: Path, split: str, key: Callable[[], str]):
        self.path, self.split = path, split
        self._key = key() if is_main_process() else ""
        found = self._read().get(split) if is_main_process() else None
        passed = found if found and found.fingerprint == self._key else None
        passed = gather_objects(passed)[0]
        self.has_passed = passed is not None
        self.warnings = passed.warnings if passed else []

    def add(self, warnings: Iterable[str]) -> None:
        """Record that the data has passed, with warnings.

        Raises:
            UserError: the file cannot be written.
        """
        if not is_main_process():
            return
        own = _Passed(self._key, [printable(line, 1000) for line in warnings])
        passed = {split: asdict(entry) for split, entry in {**self._read(), self.split: own}.items()}
        try:
            write_text(self.path, json.dumps(passed, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {self.path} ({error.strerror}); choose a writable -output folder") from error

    def _read(self) -> dict[str, _Passed]:
        try:
            return check_value(read_json(self.path, str(self.path)), dict[str, _Passed], str(self.path))
        except (OSError, UserError):  # missing or damaged
            return {}
