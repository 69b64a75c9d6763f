"""Download a file with a known SHA-256 once, and resume after interruptions."""

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
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from ..errors import UserError
from ..runtime.regular_file import open_regular

__all__ = ["download", "sha256_of", "split_hash"]

_CHUNK = 1 << 18  # bytes
_TIMEOUT = 30  # seconds without a byte
_DIGITS = 32  # of the hash in the name of the copy; of fewer, somebody could find another file with the same ones
_MAX_NAME = 100  # characters of a file name
_MAX_SIZE = 1 << 32  # bytes, of a file whose size is not known; Pale-B's training state has a third of it


def split_hash(url: str) -> tuple[str, str]:
    """Split ``https://host/name.pdparams#sha256=<64 hex digits>`` into address and hash.

    Raises:
        UserError: the hash is missing or not a SHA-256, or the scheme is not https.
    """
    address, _, fragment = url.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise UserError(f"{address}: downloads need a hash; append #sha256=<64 hex digits>")
    if not _is_secure(address):
        raise UserError(f"{address}: only https addresses are supported")
    return address, match[1].lower()


def _is_secure(address: str) -> bool:
    """Whether an address is encrypted, or of this machine."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return parts.scheme == "https" or (local and parts.scheme == "http")


class _SecureRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not _is_secure(newurl) or (req.type == "https" and urlsplit(newurl).scheme != "https"):
            raise UserError(f"{req.full_url} redirects to {newurl}: only https addresses are supported")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, folder: Path | None = None, size: int | None = None) -> Path:
    """Return the local copy of a file, downloading it or its missing part with a progress bar.

    If several processes need the same file, one downloads it and the others wait.

    Args:
        url: address and hash, see :func:`split_hash`.
        folder: target folder; ``None`` is ``$PALE_HOME``, or ``~/.cache/pale_transformer``.
        size: of the file in bytes, if it is known; otherwise it may have 4 GiB.

    Returns:
        The file. Its hash was verified when it was downloaded.

    Raises:
        UserError: the server cannot be reached or the connection is lost (the next call resumes the download), or the
            hash is wrong or the file is too long (it is deleted).
    """
    address, expected = split_hash(url)
    name = Path(urlsplit(address).path).name or "weights"
    folder = folder or _default_folder()
    target = folder / f"{expected[:_DIGITS]}-{name[-_MAX_NAME:]}"
    partial = target.with_name(target.name + ".part")
    try:
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(target.name + ".lock")
        for path in (lock, partial):
            if path.is_symlink() or (path.exists() and not path.is_file()):  # a pipe would be waited for
                raise UserError(f"{path} is not a regular file; delete it, or set $PALE_HOME to another folder")
        with _locked(lock, target):
            if target.is_file():
                return target
            _fetch(address, partial, size or _MAX_SIZE)
            found = sha256_of(partial)
            if found == expected:
                partial.replace(target)
                return target
            partial.unlink()
    except urllib.error.HTTPError as error:
        status = " ".join(f"{error.code} {error.reason}".split())
        raise UserError(f"{address}: the server returned {status}; check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # the last of an address that cannot be encoded
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        reason = " ".join(str(reason).split()) or type(error).__name__
        raise UserError(f"{address}: {reason}; run the same command again to resume the download") from error
    raise UserError(
        f"{address}: the SHA-256 is {found}, but {expected} was expected; the file was deleted. "
        "Check the address and the hash"
    )


def _default_folder() -> Path:
    if home := os.environ.get("PALE_HOME"):
        return Path(home)
    try:
        return Path.home() / ".cache" / "pale_transformer"
    except RuntimeError as error:  # as in a container with a user id that has no name
        raise UserError("there is no home folder for downloads; set $PALE_HOME to a folder") from error


@contextlib.contextmanager
def _locked(lock: Path, target: Path) -> Iterator[None]:
    """Let one process or thread at a time download a file (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with lock.open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
        if target.is_file():  # processes that still wait will find the target
            lock.unlink(missing_ok=True)


def _fetch(address: str, partial: Path, most: int) -> None:
    """Append the rest of the file to ``partial``, or download the whole file if the server cannot resume.

    Raises:
        UserError: it has more bytes than ``most``, or redirects to an address without encryption.
    """
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.build_opener(_SecureRedirects).open(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the file is complete
            return
        raise
    with response:
        continued = response.status == 206
        have = have if continued else 0
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=partial.name.removesuffix(".part"))
        with bar, partial.open("ab" if continued else "wb") as file:
            while chunk := response.read(_CHUNK):
                have += len(chunk)
                if max(have, total or 0) > most:
                    partial.unlink()
                    raise UserError(f"{address} has more than the expected {most:,} bytes; check the address")
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and partial.stat().st_size < total:
            raise OSError("the connection was lost")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    with open_regular(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
