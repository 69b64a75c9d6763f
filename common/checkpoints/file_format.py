"""Checkpoint files: untrusted files are read safely, and files are written atomically."""

from __future__ import annotations

import errno
import os
import pickle
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import UserError, missing_hint, one_line
from ..runtime.atomic_file import replace_file
from ..runtime.folders import expand_home
from ..runtime.regular_file import open_regular
from .safe_pickle import UnsafePickleError, load_arrays

__all__ = ["SUFFIXES", "DamagedFileError", "float32_of_bfloat16", "load_file", "locate_file", "save_file"]

SUFFIXES = (".pdparams", ".safetensors")

# After the pickle, where pickle readers have stopped: the CRC-32 of all bytes before this trailer.
_TRAILER = struct.Struct("<8sI")
_MAGIC = b"PALE-CRC"
_CHUNK = 1 << 22  # bytes

_SAFETENSORS_TYPES = {
    **{"BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8"},
    **{"I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8"},
}


class DamagedFileError(UserError):
    """A file is damaged, or contains something other than what it should."""


def locate_file(path: str | Path) -> Path:
    """Find a checkpoint named with or without its suffix.

    Raises:
        UserError: there is none.
    """
    path = Path(expand_home(path))
    for candidate in (path, *(Path(f"{path}{suffix}") for suffix in SUFFIXES)):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it, such as {path / 'best.pdparams'}")
    raise UserError(
        f"checkpoint {path} does not exist; give the path of a {' or '.join(SUFFIXES)} file{missing_hint(path)}"
    )


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a ``.pdparams`` or ``.safetensors`` file as nested dicts of NumPy arrays, without executing code.

    Raises:
        DamagedFileError: the file is damaged, or contains something other than weights.
        UserError: there is no such file, or it cannot be read.
    """
    path = locate_file(path)
    try:
        if path.suffix == ".safetensors":
            return _load_safetensors(path)
        return _load_pickle(path)
    except UnsafePickleError as error:
        raise DamagedFileError(f"refused to load {path}: {error}") from error
    except MemoryError as error:
        raise UserError(f"cannot read {path}: there is not enough memory for it") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def save_file(state: Mapping[str, Any], path: str | Path, new: bool = False) -> None:
    """Write a nested dict of NumPy arrays and plain values as ``.pdparams``, or a flat one as ``.safetensors``.

    The bytes are written to a temporary file beside the target, flushed to the disk, read back and compared with their
    checksum; then the file is renamed atomically. ``paddle.load`` can read it, too.

    Args:
        new: keep a file of this name, which another program may have written meanwhile.

    Raises:
        UserError: the file cannot be written; an older file of that name is unchanged.
    """
    path = Path(path)

    def verify(temporary: Path) -> None:
        with temporary.open("rb") as file:
            if _checksum(file, temporary.stat().st_size) != writer.checksum:
                raise OSError("the data read back differs from the data written; the disk may be defective")

    try:
        with replace_file(path, verify, new) as file:
            writer = _ChecksumWriter(file)
            if path.suffix == ".safetensors":
                writer.write(_safetensors_bytes(state))
            else:
                pickle.dump(dict(state), writer, protocol=4)
                writer.write(_TRAILER.pack(_MAGIC, writer.checksum))
    except FileExistsError as error:
        raise UserError(f"{path} exists already; choose another name") from error
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        space = "it needs space in addition to the old file: free disk space, or " if is_full else ""
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; {space}choose another folder. Earlier checkpoints are "
            "intact"
        ) from error


class _ChecksumWriter:
    """A file with the CRC-32 of the written bytes."""

    def __init__(self, file: IO[bytes]):
        self._file, self.checksum = file, 0

    def write(self, data: Any) -> int:
        self.checksum = zlib.crc32(data, self.checksum)
        return self._file.write(data)


def _checksum(file: IO[bytes], size: int) -> int:
    """CRC-32 of the next ``size`` bytes."""
    checksum = 0
    while size > 0 and (chunk := file.read(min(_CHUNK, size))):
        checksum = zlib.crc32(chunk, checksum)
        size -= len(chunk)
    return checksum


def _load_pickle(path: Path) -> dict[str, Any]:
    with open_regular(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, size - _TRAILER.size))
        trailer = file.read()
        file.seek(0)
        if len(trailer) == _TRAILER.size and trailer.startswith(_MAGIC):
            size -= _TRAILER.size
            if _checksum(file, size) != _TRAILER.unpack(trailer)[1]:
                raise UnsafePickleError("its checksum is wrong: it is damaged; use an older checkpoint or a new copy")
            file.seek(0)
        state = load_arrays(file, size)
        if file.tell() != size:
            raise UnsafePickleError(f"it is damaged: {size - file.tell()} bytes follow the end of the data")
        if not isinstance(state, dict):
            raise UnsafePickleError(f"it is a {type(state).__name__}, not a dict of weights")
        return _join_slices(state)


def _join_slices(state: dict[str, Any]) -> dict[str, Any]:
    """Join the slices in which ``paddle.save`` writes arrays above 1 GiB with protocols 2 and 3; drop its names."""
    state.pop("StructuredToParameterName@@", None)
    try:
        for name, entry in state.pop("UnpackBigParamInfor@@", {}).items():
            parts = [state.pop(part) for part in entry["slices"] if isinstance(part, str)]
            if any(part.dtype != parts[0].dtype for part in parts):
                raise ValueError("slices of different arrays")
            state[name] = np.concatenate(parts).reshape(entry["OriginShape"])
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UnsafePickleError("its table of sliced arrays is damaged") from error
    return state


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError, deserialize, safe_open

    try:
        with safe_open(path, "numpy"):  # reads the header only
            pass
        tensors = deserialize(path.read_bytes())
        return {name: _safetensors_array(name, **tensor) for name, tensor in tensors}
    except (SafetensorError, ValueError) as error:  # the second of NumPy, for a shape that it cannot have
        raise UnsafePickleError(f"it is damaged or not a safetensors file ({one_line(error)})") from error


def _safetensors_array(name: str, dtype: str, shape: list[int], data: bytes) -> np.ndarray:
    """An array of a type that NumPy has; those of deep learning become float32, which has all their values."""
    if dtype in _SAFETENSORS_TYPES:
        array = np.frombuffer(data, _SAFETENSORS_TYPES[dtype])
    elif dtype == "BF16":
        array = float32_of_bfloat16(np.frombuffer(data, "<u2"))
    elif dtype == "F8_E5M2":  # the upper byte of a float16
        array = (np.frombuffer(data, np.uint8).astype("<u2") << 8).view("<f2").astype(np.float32)
    elif dtype == "F8_E4M3":  # as a float16, it lacks a bit of the exponent, whose bias is 7 instead of 15
        bits = np.frombuffer(data, np.uint8).astype("<u2")
        magnitudes = ((bits & 0x7F) << 7).view("<f2").astype(np.float32) * 2.0 ** (15 - 7)
        magnitudes[(bits & 0x7F) == 0x7F] = np.nan
        array = np.where(bits & 0x80, -magnitudes, magnitudes)
    else:
        raise UnsafePickleError(f"its array {name[:80]!a} has the type {dtype}; convert it to float32")
    return array.reshape(shape)


def float32_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 numbers, which are the upper halves of their bits, given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _safetensors_bytes(state: Mapping[str, Any]) -> bytes:
    from safetensors import SafetensorError
    from safetensors.numpy import save

    others = [name for name, value in state.items() if not isinstance(value, np.ndarray)]
    if others:
        raise UserError(f"a .safetensors file can only contain arrays, not {others[0]!r}; save as .pdparams")
    try:
        return save({name: np.asarray(array, order="C") for name, array in state.items()})
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"a .safetensors file cannot contain these arrays ({error}); save as .pdparams") from error
