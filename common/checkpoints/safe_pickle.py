"""Read pickled weights without executing code.

A ``.pdparams`` file is a pickle, and a pickle is a program: ``pickle.load`` and ``paddle.load`` run whatever code an
untrusted file contains. This reader executes only the opcodes that build numbers, strings, lists, tuples, dicts and
NumPy arrays. It knows only the few constructors that NumPy and ``paddle.save`` write, each replaced by a function here
that checks its arguments, and refuses everything else. It copies no more bytes than the file has, and creates no more
than ``_MAX_VALUES`` values.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from ..errors import one_line

__all__ = ["UnsafePickleError", "load_arrays"]

_MAX_DEPTH = 100  # of nested containers; weights have two or three levels
_MAX_VALUES = 1_000_000  # and operations; an array takes about 40, a training state of Pale-B 100,000
_MAX_SHARED = 4  # times the size of the file, of all arrays with each use counted; users of the arrays copy them
_MAX_NUMBER_KEYS = 1_000  # per dict; unlike those of strings, the hashes of numbers can be made to collide


class UnsafePickleError(Exception):
    """The file contains something other than weights, or is damaged; the message says which."""


def load_arrays(file: IO[bytes], size: int) -> Any:
    """Read one pickle of containers, numbers, strings, ``None`` and numeric NumPy arrays.

    Args:
        file: the open file, at the start of the pickle. Bytes after the pickle are left unread.
        size: number of bytes in the file; nothing larger is ever allocated.

    Returns:
        The object. Arrays share the memory that was read and are not writable. ``(name, array)``, as ``paddle.save``
        writes tensors in nested containers, becomes the array.

    Raises:
        UnsafePickleError: the file contains anything else, or is damaged.
        MemoryError, OSError: it cannot be read, and may be intact.
    """
    if not size:
        raise UnsafePickleError("it is empty")
    try:
        return _resolve(_Unpickler(file, size).load(), _MAX_SHARED * size)
    except (UnsafePickleError, MemoryError, OSError):
        raise
    except Exception as error:  # a damaged stream fails anywhere in the reader, with almost any type
        raise UnsafePickleError(
            f"it is damaged or not a pickle ({one_line(error)}); copy it again, or give weights that paddle.save wrote"
        ) from error


class _Bounded(io.RawIOBase):
    """A file that refuses to read more bytes than it has, before memory is allocated for them."""

    def __init__(self, file: IO[bytes], size: int):
        self._file, self._left = file, size

    def read(self, count: int = -1) -> bytes:
        if count < 0 or count > self._left:
            raise UnsafePickleError(f"it is truncated: {count} bytes should follow, {self._left} are left")
        self._left -= count
        return self._file.read(count)

    def readline(self, limit: int = -1) -> bytes:
        line = self._file.readline(min(self._left, 1000))
        self._left -= len(line)
        return line

    def readinto(self, buffer: memoryview) -> int:
        buffer[:] = self.read(len(buffer))
        return len(buffer)


class _Constructor:
    """The replacement of a constructor that a pickle names. REDUCE may call it, and no opcode can change it."""

    __slots__ = ("_build", "name")

    def __init__(self, name: str, build: Callable[..., Any]):
        self.name, self._build = name, build

    def __call__(self, *arguments: Any) -> Any:
        return self._build(*arguments)


class _Dtype:
    """A numeric dtype. BUILD sets its byte order."""

    def __init__(self, code: Any, *_: Any):
        numeric = isinstance(code, str) and len(code) <= 4 and code.lstrip("<>=|")[:1] in tuple("biufc?")
        if not numeric or np.dtype(code).kind not in "biufc":  # "i,i" is a structured dtype
            raise UnsafePickleError(f"it contains an array of dtype {_shorten(code)}, not of numbers")
        self.dtype = np.dtype(code)

    def set_state(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) >= 2 else None
        if order not in ("<", ">", "=", "|") or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("it contains an array of a structured dtype, not of numbers")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """An unfinished array: created by ``_reconstruct``, filled by BUILD."""

    def __init__(self, *_: Any):
        self.array: np.ndarray | None = None

    def set_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise UnsafePickleError("it contains an array of unknown layout")
        _, shape, dtype, fortran, data = state
        self.array = _make_array(data, dtype, shape, "F" if fortran else "C")


def _shorten(value: Any) -> str:
    """Show a string of the file in a message. Other values are not shown: nested ones may be endless."""
    return ascii(value[:80]) if isinstance(value, str) else f"a {type(value).__name__}"


def _make_array(data: Any, dtype: Any, shape: Any, order: str = "C") -> np.ndarray:
    """View bytes as an array, after checking that their number fits the shape."""
    if not isinstance(dtype, _Dtype):
        raise UnsafePickleError("it contains an array without a numeric dtype")
    if not isinstance(data, (bytes, bytearray)):
        raise UnsafePickleError("it contains an array of Python objects, not of numbers")
    if not isinstance(shape, tuple) or len(shape) > 32:
        raise UnsafePickleError("it contains an array of unknown shape")
    if not all(isinstance(side, int) and 0 <= side < 1 << 63 for side in shape):
        raise UnsafePickleError("it contains an array of an impossible shape")
    expected = math.prod(shape) * dtype.dtype.itemsize
    if expected != len(data):
        raise UnsafePickleError(
            f"it contains an array of shape {shape} ({expected} bytes) with {len(data)} bytes of data"
        )
    return np.frombuffer(data, dtype.dtype).reshape(shape, order=order)


def _array_from_buffer(data: Any, dtype: Any, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    """NumPy's ``_frombuffer``, used by protocol 5."""
    if order not in ("C", "F", "K"):
        raise UnsafePickleError(f"it contains an array with the unsupported memory order {_shorten(order)}")
    if axes is None:
        return _make_array(data, dtype, shape, "F" if order == "F" else "C")
    if not isinstance(axes, tuple) or not all(isinstance(axis, int) for axis in axes):
        raise UnsafePickleError("it contains an array with an unsupported order of axes")
    return _make_array(data, dtype, shape).transpose(axes)


def _scalar(dtype: Any, data: Any) -> Any:
    return _make_array(data, dtype, ())[()]


def _tuple(items: Any = ()) -> tuple:
    """``tuple``, as ``paddle.save`` writes tensors."""
    if not isinstance(items, (tuple, list)):
        raise UnsafePickleError("it calls tuple with invalid arguments")
    return tuple(items)


def _evaluate(expression: Any, names: Any = None) -> Any:
    """``eval``, which ``paddle.save`` writes for one kind of tensor, as ``eval('data', {'data': array})``."""
    if expression != "data" or not isinstance(names, dict) or list(names) != ["data"]:
        raise UnsafePickleError(f"it would execute eval({_shorten(expression)})")
    return names["data"]


def _encode(text: Any, encoding: Any) -> bytes:
    """``_codecs.encode``, as protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise UnsafePickleError("it uses an unsupported text encoding")
    return text.encode("latin1")


def _ordered_dict(*items: Any) -> dict:
    if items:
        raise UnsafePickleError("it calls OrderedDict with invalid arguments")
    return {}


def _class_only(*_: Any) -> None:
    raise UnsafePickleError("it calls numpy.ndarray directly")


_NDARRAY = _Constructor("numpy.ndarray", _class_only)  # an argument of _reconstruct, never called
_CONSTRUCTORS: dict[tuple[str, str], _Constructor] = {
    (module, name): _Constructor(f"{module}.{name}", build)
    for modules, name, build in (
        # NumPy 1 and NumPy 2 have different private modules.
        (("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct", _Array),
        (("numpy.core.multiarray", "numpy._core.multiarray"), "scalar", _scalar),
        (("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer", _array_from_buffer),
        (("numpy",), "dtype", _Dtype),
        (("collections",), "OrderedDict", _ordered_dict),
        (("_codecs",), "encode", _encode),
        (("builtins", "__builtin__"), "tuple", _tuple),
        (("builtins", "__builtin__"), "eval", _evaluate),
        (("builtins", "__builtin__"), "bytes", lambda: b""),  # as protocol 2 writes an empty one
    )
    for module in modules
} | {("numpy", "ndarray"): _NDARRAY}


class _Operations(dict):
    """The function of each opcode. Raises an error after ``_MAX_VALUES`` operations."""

    _left = _MAX_VALUES

    def __getitem__(self, opcode: int) -> Callable[[_Unpickler], None]:
        self._left -= 1
        if self._left < 0:
            raise UnsafePickleError(f"it has more than the allowed {_MAX_VALUES:,} operations")
        return super().__getitem__(opcode)


class _Unpickler(pickle._Unpickler):
    """The standard library's reader in Python, reduced to the opcodes of weights.

    The reader in C allocates its memo up to any index that a file names, and opcodes cannot be removed from it.
    """

    def __init__(self, file: IO[bytes], size: int):
        super().__init__(_Bounded(file, size))
        self.dispatch = _Operations(_Unpickler.dispatch)
        self._copies_left = size

    def find_class(self, module: str, name: str) -> _Constructor:
        try:
            return _CONSTRUCTORS[module, name]
        except KeyError:
            raise UnsafePickleError(
                f"it refers to {_shorten(f'{module}.{name}')}, which is not allowed in weights"
            ) from None

    def load_reduce(self) -> None:
        arguments = self.stack.pop()
        constructor = self.stack[-1]
        if not isinstance(constructor, _Constructor) or not isinstance(arguments, tuple):
            raise UnsafePickleError("it calls a function that is not allowed in weights")
        built = constructor(*arguments)
        if isinstance(built, (bytes, tuple)):  # a copy of something that the file may name many times
            self._copies_left -= len(built)
            if self._copies_left < 0:
                raise UnsafePickleError("its copies are larger than the file")
        self.stack[-1] = built

    def load_build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], (_Array, _Dtype)):
            raise UnsafePickleError(f"it sets the state of a {type(self.stack[-1]).__name__}")
        self.stack[-1].set_state(state)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_items([key, value])

    def load_setitems(self) -> None:
        self._set_items(self.pop_mark())

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set_items(items)

    def _set_items(self, items: list) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise UnsafePickleError(f"it sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Hashing a tuple of tuples of the same tuple takes exponential time.
            if not isinstance(key, (str, int, float, bytes, type(None))):
                raise UnsafePickleError(f"it has a {type(key).__name__} as a key")
            if len(target) >= _MAX_NUMBER_KEYS and not isinstance(key, str):
                raise UnsafePickleError(f"it has more than {_MAX_NUMBER_KEYS:,} keys that are not strings")
            target[key] = value

    def load_append(self) -> None:
        value = self.stack.pop()
        self._extend([value])

    def load_appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, values: list) -> None:
        if not isinstance(self.stack[-1], list):
            raise UnsafePickleError(f"it appends to a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(values)

    def load_bytearray8(self) -> None:
        (length,) = np.frombuffer(self.read(8), "<u8").tolist()
        self.append(self.read(length))


_STANDARD_OPCODES = """
    PROTO FRAME STOP MARK POP POP_MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING
    SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT GLOBAL STACK_GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE
"""
_OWN_OPCODES = "REDUCE BUILD SETITEM SETITEMS DICT APPEND APPENDS BYTEARRAY8"


def _refuse(opcode: int) -> Callable[[_Unpickler], None]:
    def load(self: _Unpickler) -> None:
        if not self.proto:  # a pickle begins with its protocol
            raise UnsafePickleError(
                "it is not a pickle file; give weights that paddle.save wrote, or a .safetensors file"
            )
        raise UnsafePickleError(f"it uses the pickle opcode {bytes([opcode])!r}, which is not allowed in weights")

    return load


def _code(name: str) -> int:
    return getattr(pickle, name)[0]


_Unpickler.dispatch = {
    **{opcode: _refuse(opcode) for opcode in range(256)},
    **{_code(name): pickle._Unpickler.dispatch[_code(name)] for name in _STANDARD_OPCODES.split()},
    **{_code(name): getattr(_Unpickler, f"load_{name.lower()}") for name in _OWN_OPCODES.split()},
}


def _resolve(root: Any, most_bytes: int) -> Any:
    """Replace unfinished arrays by finished ones. A shared container is visited once.

    Args:
        most_bytes: in all arrays, where one counts at each place that it is in.
    """
    done: dict[int, tuple[Any, int] | None] = {}  # result and number of values in it; None while visiting
    kept = []  # keeps the originals alive, so that no id is reused

    def visit(value: Any, depth: int) -> tuple[Any, int]:
        nonlocal most_bytes
        if isinstance(value, _Array):
            value = value.array
            if value is None:
                raise UnsafePickleError("it contains an array without data")
        if isinstance(value, np.ndarray):  # protocol 5 finishes them at once
            most_bytes -= value.nbytes
            if most_bytes < 0:
                raise UnsafePickleError("it uses the same arrays so often that they would not fit into memory")
            return value, 1
        if isinstance(value, (_Dtype, _Constructor)):
            raise UnsafePickleError(f"it contains a {getattr(value, 'name', 'dtype')} in place of a value")
        if not isinstance(value, (dict, list, tuple)):
            return value, 1
        if depth > _MAX_DEPTH:
            raise UnsafePickleError(f"its containers are nested more than {_MAX_DEPTH} deep")
        if id(value) not in done:
            kept.append(value)
            done[id(value)] = None
            visited = [visit(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
            seen = 1 + sum(count for _, count in visited)
            if seen > _MAX_VALUES:
                raise UnsafePickleError(f"its nested references expand to more than {_MAX_VALUES:,} values")
            done[id(value)] = _rebuild(value, [item for item, _ in visited]), seen
        finished = done[id(value)]
        if finished is None:
            raise UnsafePickleError(f"it contains a {type(value).__name__} that contains itself")
        return finished

    return visit(root, 0)[0]


def _rebuild(container: dict | list | tuple, items: list) -> Any:
    """The container with other items; ``(name, array)`` becomes the array."""
    if isinstance(container, dict):
        return dict(zip(container, items, strict=True))
    if isinstance(container, list):
        return items
    if len(items) == 2 and isinstance(items[0], str) and isinstance(items[1], np.ndarray):
        return items[1]
    return tuple(items)
