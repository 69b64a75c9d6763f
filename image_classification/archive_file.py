"""Tar and zip archives whose images are read where they lie: the archive is listed once, then each image is a read.

Nothing is unpacked, so the name of a member is only a name. An archive may be anybody's: every position and size is
checked before it is used, and no more is unpacked than the archive states.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from common.data.image_file import IMAGE_SUFFIXES, is_ignored
from common.errors import UserError, one_line
from common.runtime.regular_file import is_regular

__all__ = ["ARCHIVE_SUFFIXES", "Member", "list_archive", "read_member"]

_BLOCK = 512  # bytes, of which a tar is made
_MAX_HEADER = 2**13  # bytes of a tar's extended header: a path has 4,096, and old tarfiles take the square of it
_MAX_SIZE = 2**30  # bytes of an image
_LOCAL_HEADER = 30  # bytes before the name of a zip's member (APPNOTE.TXT, 4.3.7)
_IS_UTF8, _UNIX = 0x800, 3  # of the flags, and of the systems that make zips (4.4.4 and 4.4.2)
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class Member(NamedTuple):
    """An image in an archive.

    Attributes:
        name: parts joined by ``/``, without ``.`` and a leading ``/``.
        offset: of its content in a tar, of its local header in a zip; in bytes.
        stored: bytes in the archive.
        size: bytes of the image file.
        crc: CRC-32 of the image file, or -1 in a tar, which has none.
        is_deflated: whether ``stored`` bytes are compressed.
    """

    name: str
    offset: int
    stored: int
    size: int
    crc: int
    is_deflated: bool


def list_archive(path: Path) -> Iterator[Member]:
    """List the images of an archive in its own order.

    They are the regular files with one of ``IMAGE_SUFFIXES`` and no part that :func:`is_ignored` names, as in a folder.

    Raises:
        UserError: the archive is damaged, cut off or compressed as a whole, or has an image that cannot be read in
            place.
    """
    try:
        if not is_regular(path):
            raise UserError(f"cannot read the archive {path}: it is not a regular file")
        yield from ARCHIVE_SUFFIXES[path.suffix.lower()](path)
    except UserError:
        raise
    except Exception as error:  # both modules raise nearly any type on damaged files
        kind = path.suffix[1:].lower()
        remedy = "an intact and uncompressed tar, as tar cf makes it" if kind == "tar" else "an intact zip"
        raise UserError(f"cannot read the archive {path} ({one_line(error)}): it must be {remedy}") from error


def _list_tar(path: Path) -> Iterator[Member]:
    with _Headers(path) as file, tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
        while (info := tar.next()) is not None:
            tar.members.clear()  # which keeps a million objects otherwise
            if info.issparse():
                raise UserError(f"{path}: {info.name!r} is stored as a sparse file; make the archive without --sparse")
            if info.size < 0:  # some versions of tarfile then go back, for ever
                raise UserError(f"{path}: {info.name!r} is damaged; copy or make the archive again")
            name = _clean(info.name)
            if name is None or info.isdir():
                continue
            if info.issym() or info.islnk():
                raise UserError(f"{path}: {name!r} is a link; make the archive with tar -h --hard-dereference")
            if not info.isreg() or not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            _check_size(path, name, info.size)
            yield Member(name, info.offset_data, info.size, info.size, -1, False)
        # tarfile takes any damaged header for the end.
        file.seek(tar.offset)
        end = file.read(_BLOCK)
        if len(end) < _BLOCK or any(end):
            raise UserError(f"{path} is cut off or damaged at byte {tar.offset}; copy or make the archive again")
        while block := file.read(_MAX_HEADER):
            if any(block):
                raise UserError(f"{path} goes on after its end; join several tars with tar -A, not with cat")


class _Headers(io.FileIO):
    """A file of which tarfile reads headers, whatever size they state."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_HEADER:
            raise tarfile.ReadError("a header is too long")
        return super().read(size)


def _list_zip(path: Path) -> Iterator[Member]:
    length = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _clean(_zip_name(info))
            if name is None or info.is_dir():
                continue
            if stat.S_ISLNK(info.external_attr >> 16):
                raise UserError(f"{path}: {name!r} is a link; make the archive without zip -y")
            if not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            if info.flag_bits & 1:
                raise UserError(f"{path}: {name!r} is encrypted; make the archive without a password")
            if info.compress_type not in _METHODS:
                method = zipfile.compressor_names.get(info.compress_type, str(info.compress_type))
                raise UserError(f"{path}: {name!r} is compressed by {method}; make the archive with zip -0")
            if not 0 <= info.header_offset <= length - _LOCAL_HEADER - info.compress_size:
                raise UserError(f"{path}: {name!r} is cut off or damaged; copy or make the archive again")
            _check_size(path, name, max(info.file_size, info.compress_size))
            is_deflated = info.compress_type == zipfile.ZIP_DEFLATED
            yield Member(name, info.header_offset, info.compress_size, info.file_size, info.CRC, is_deflated)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name; of one that was zipped on Unix, its bytes there, which zip does not mark as UTF-8."""
    if info.flag_bits & _IS_UTF8 or info.create_system != _UNIX:
        return info.filename
    return os.fsdecode(info.orig_filename.encode("cp437"))


ARCHIVE_SUFFIXES: dict[str, Callable[[Path], Iterator[Member]]] = {".tar": _list_tar, ".zip": _list_zip}


def _clean(name: str) -> str | None:
    """A member's name without what changes no path; None if a part of it is ignored, as ``..`` is."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    return None if any(map(is_ignored, parts)) else "/".join(parts)


def _check_size(path: Path, name: str, size: int) -> None:
    if size > _MAX_SIZE:
        raise UserError(f"{path}: {name!r} has {size:,} bytes, more than {_MAX_SIZE:,}; shrink or remove it")


def read_member(file: int, member: Any) -> bytes:
    """Read the bytes of an image. Processes that share the open file do not disturb each other.

    Args:
        file: descriptor of the archive.
        member: has the values of :class:`Member` by name; its own name is not used.

    Raises:
        UserError: the archive has changed since it was listed, or is damaged. The message does not name it.
        OSError: it cannot be read.
    """
    offset, stored, size, crc = (int(member[key]) for key in ("offset", "stored", "size", "crc"))
    if crc >= 0:
        header = os.pread(file, _LOCAL_HEADER, offset)
        if header[:4] != zipfile.stringFileHeader or len(header) < _LOCAL_HEADER:
            raise UserError("it has no header at its place in the archive, which is damaged; make the archive again")
        # The lengths of the name and of the extra field, which the table of contents may have otherwise.
        offset += _LOCAL_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    content = os.pread(file, stored, offset)
    is_whole = len(content) == stored
    if is_whole and member["is_deflated"]:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = unpacker.decompress(content, size + 1)  # at most: what states less than it has is no image
        except zlib.error:
            is_whole = False
        is_whole &= unpacker.eof
    if not is_whole or len(content) != size or (crc >= 0 and zlib.crc32(content) != crc):
        raise UserError("its bytes in the archive are damaged, or not as many as stated; make the archive again")
    return content
