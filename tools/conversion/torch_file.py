"""Read the files that ``torch.save`` writes, without PyTorch and without running what is in them.

Such a file is a zip of a pickle, ``data.pkl``, and one uncompressed entry of raw numbers for each storage, which the
pickle names by persistent ids. The pickle is read by ``common.checkpoints.safe_pickle``, which runs nothing.
"""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from common.checkpoints.safe_pickle import Dialect, UnsafePickleError, load_arrays
from common.errors import UserError, one_line

__all__ = ["load_torch_file"]

_DTYPES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "u2",  # NumPy has no bfloat16; its bits are the upper half of a float32's
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def load_torch_file(path: Path) -> dict[str, Any]:
    """Read a ``.pth`` or ``.pt`` file of a state dict, also inside dicts, as NumPy arrays.

    Tensors that share a storage share memory here, too. bfloat16 becomes float32, which holds it exactly.

    Raises:
        UserError: the file cannot be read, is damaged, or holds something other than tensors, plain values and
            containers.
    """
    try:
        with path.open("rb") as file:
            state = _Reader(file, path.stat().st_size).load()
        if not isinstance(state, dict):
            raise UnsafePickleError(f"it holds a {type(state).__name__}, not a dict of weights")
        return state
    except UnsafePickleError as error:
        raise UserError(
            f"refused to load {path}: {error}; save the state dict alone, by torch.save(model.state_dict(), PATH)"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


class _Reader:
    """One file. It hands out no more bytes than the file is long, however often its directory names them."""

    def __init__(self, file: BinaryIO, size: int):
        self._left = size
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise UnsafePickleError(f"it is no zip as PyTorch writes since version 1.6 ({one_line(error)})") from error
        pickles = [name for name in self._zip.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise UnsafePickleError("it is no file of torch.save: it has no data.pkl")
        self._folder = pickles[0].removesuffix("data.pkl")
        self._order = ">" if self._is_big_endian() else "<"
        self._storages: dict[tuple[str, str], np.ndarray] = {}

    def load(self) -> Any:
        constructors = {("torch._utils", "_rebuild_tensor_v2"): _tensor, ("torch._utils", "_rebuild_parameter"): _first}
        constructors |= {("torch", name): _refuse_call for name in _DTYPES}
        pickle = self._read("data.pkl")
        return load_arrays(io.BytesIO(pickle), len(pickle), Dialect(constructors, self._storage))

    def _is_big_endian(self) -> bool:
        return f"{self._folder}byteorder" in self._zip.namelist() and self._read("byteorder") == b"big"

    def _read(self, name: str) -> bytes:
        try:
            entry = self._zip.getinfo(self._folder + name)
        except KeyError:
            raise UnsafePickleError(f"it is damaged: the entry {name[:40]!a} is missing") from None
        if entry.compress_type != zipfile.ZIP_STORED:
            raise UnsafePickleError("it is compressed, as torch.save never does")
        self._left -= entry.file_size
        if self._left < 0:
            raise UnsafePickleError("it is damaged: its entries are longer than the file")
        try:
            return self._zip.read(entry)
        except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:  # such as a wrong checksum
            raise UnsafePickleError(f"it is damaged ({one_line(error)})") from error

    def _storage(self, identity: Any) -> np.ndarray:
        """The numbers of ``("storage", type, name of the entry, device, count)``."""
        if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
            raise UnsafePickleError("it names data that are no storage")
        kind, key = getattr(identity[1], "name", "").removeprefix("torch."), identity[2]
        if kind not in _DTYPES or not isinstance(key, str):
            raise UnsafePickleError("it holds a storage of a type that no weights have")
        if (kind, key) not in self._storages:
            data, dtype = self._read(f"data/{key}"), np.dtype(self._order + _DTYPES[kind])
            if len(data) % dtype.itemsize:
                raise UnsafePickleError(f"it is damaged: {len(data)} bytes are no whole number of values")
            numbers = np.frombuffer(data, dtype)
            if kind == "BFloat16Storage":
                numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
            self._storages[kind, key] = numbers.astype(numbers.dtype.newbyteorder("="), copy=False)
        return self._storages[kind, key]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> np.ndarray:
    """View a part of a storage, after checking that it lies within; strides and offset count values."""
    if not isinstance(storage, np.ndarray):
        raise UnsafePickleError("it holds a tensor without a storage")
    for numbers in ((offset,), shape, strides):
        if not isinstance(numbers, tuple) or not all(isinstance(n, int) and 0 <= n < 1 << 63 for n in numbers):
            raise UnsafePickleError("it holds a tensor of an impossible shape")
    if len(shape) != len(strides) or len(shape) > 32:
        raise UnsafePickleError("it holds a tensor of an impossible shape")
    # An expanded tensor repeats its numbers, and a small file could so stand for terabytes.
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True))
    size = math.prod(shape)
    if size > storage.size or (size and last >= storage.size):
        raise UnsafePickleError(f"it holds a tensor of shape {shape} in a storage of {storage.size} values")
    if not size:
        return np.empty(shape, storage.dtype)
    byte_strides = [stride * storage.itemsize for stride in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, byte_strides, writeable=False)


def _first(value: Any, *_: Any) -> Any:
    """A parameter is its tensor."""
    return value


def _refuse_call(*_: Any) -> None:
    raise UnsafePickleError("it calls a storage type itself")
