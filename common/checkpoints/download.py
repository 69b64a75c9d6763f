"""Fetch a file whose SHA-256 is known, once, through interruptions."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from ..errors import UserError

__all__ = ["cache_folder", "download", "sha256_of", "split_hash"]

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte


def cache_folder() -> Path:
    """Where downloaded weights are kept: ``$PALE_HOME``, or ``~/.cache/pale_transformer``."""
    return Path(os.environ.get("PALE_HOME") or Path.home() / ".cache" / "pale_transformer")


def split_hash(url: str) -> tuple[str, str]:
    """Take ``https://host/name.pdparams#sha256=<64 hex digits>`` apart into address and hash.

    Raises:
        UserError: the hash is missing or no SHA-256, or the scheme is another one.
    """
    address, _, fragment = url.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise UserError(f"{address}: weights from the network need their hash; append #sha256=<64 hex digits>")
    parts = urlsplit(address)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme != "https" and not (local and parts.scheme == "http"):
        raise UserError(f"{address}: only https addresses are fetched")
    return address, match[1].lower()


def download(url: str, folder: Path | None = None) -> Path:
    """Return the local copy of a file, fetching what is missing of it, with a progress bar.

    Of several processes that ask for the same file, one fetches it and the others wait.

    Args:
        url: address and hash, see :func:`split_hash`.
        folder: where to keep it; ``None`` is :func:`cache_folder`.

    Returns:
        The file, whose hash was verified now or when it was fetched.

    Raises:
        UserError: the server cannot be reached or breaks off (what arrived is kept, and the next call goes on there),
            or the hash is wrong (what arrived is deleted).
    """
    address, expected = split_hash(url)
    name = Path(urlsplit(address).path).name or "weights"
    folder = cache_folder() if folder is None else folder
    target = folder / f"{expected[:12]}-{name}"
    if target.is_file():
        return target
    partial = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(target.name + ".lock"), target):
            if target.is_file():
                return target
            _fetch(address, partial)
            found = sha256_of(partial)
            if found == expected:
                partial.replace(target)
                return target
            partial.unlink()
    except urllib.error.HTTPError as error:
        raise UserError(f"{address}: the server answers {error.code} {error.reason}; check the address") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        reason = " ".join(str(reason).split()) or type(error).__name__
        raise UserError(f"{address}: {reason}; run the same command again to go on with the download") from error
    raise UserError(f"{address}: SHA-256 is {found}, not {expected}; the file was deleted. Check address and hash")


@contextlib.contextmanager
def _locked(lock: Path, target: Path) -> Iterator[None]:
    """Let one process or thread at a time work on a target, where the system can (Windows cannot)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        with contextlib.suppress(OSError):  # network file systems without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        if target.is_file():  # whoever still waits for this lock will see the target, too
            lock.unlink(missing_ok=True)


def _fetch(address: str, partial: Path) -> None:
    """Append the rest of the file to ``partial``, or write it anew where the server cannot continue."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing is left to send
            return
        raise
    with response:
        continued = response.status == 206
        have = have if continued else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=partial.name.removesuffix(".part"))
        with bar, partial.open("ab" if continued else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size < total:
            raise OSError("the connection broke off")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
