"""Values out of files, checked by type hints before they are used.

A file that somebody else wrote, or that is damaged, may have any value in any place. A type hint says what a place may
contain: ``bool``, ``int``, ``float``, ``str``, ``np.ndarray``, ``list[...]``, ``dict[str, ...]``, unions, a dataclass
for known keys, ``Annotated[..., Range(low, high)]`` for bounds, and ``Any`` for plain values of any kind.
"""

from __future__ import annotations

import functools
import json
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from .errors import UserError, one_line, printable
from .runtime.regular_file import open_regular

__all__ = ["Count", "Range", "Text", "check_value", "hints_of", "read_json"]

_MAX_DEPTH = 20  # of nested lists and dicts
_MAX_BYTES = 1 << 24  # of a JSON file


@dataclass(frozen=True)
class Range:
    """The bounds of a number, both included, or of the length of a text, which may then have several lines."""

    low: float
    high: float


Count = Annotated[int, Range(0, 2**53)]
Text = Annotated[str, Range(0, 1 << 20)]

_DEFAULT_RANGES = {
    int: Range(-(2**63), 2**63 - 1),
    float: Range(-sys.float_info.max, sys.float_info.max),  # neither NaN nor infinity
    str: Range(0, 1000),
}
_EXPECTED = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "a text of one line",
    np.ndarray: "an array of numbers",
    list: "a list",
    dict: "an object with keys and values",
    Any: "a plain value",
    NoneType: "null",
}


def check_value(value: Any, hint: Any, source: str, name: str = "") -> Any:
    """Check a value, and return it as its hint says: a dataclass, for example, of a mapping with its fields.

    NumPy's scalars become Python's. ``int`` has 64 bits, ``float`` is finite, and ``str`` has one line of at most 1,000
    characters, unless a :class:`Range` says otherwise. In ``Any``, NaN and infinity become None, as JSON has neither. A
    mapping may have more keys than the fields of a dataclass.

    Args:
        source: of the value, for messages.
        name: its place in the source, such as ``files[0].name``; empty for the whole.

    Raises:
        UserError: it is another value; the message is ``SOURCE: NAME is VALUE; it must be ...``.
    """
    bounds = None
    if get_origin(hint) is Annotated:
        hint, bounds = get_args(hint)
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if isinstance(value, np.generic):
        value = value.item()
    if kind in (Union, UnionType):
        return _check_union(value, arguments, source, name)
    if kind is Any:
        return _check_plain(value, source, name, _MAX_DEPTH)
    if kind in _DEFAULT_RANGES:
        return _check_scalar(value, kind, bounds, source, name)
    if kind is list and isinstance(value, list | tuple):
        return [check_value(item, arguments[0], source, f"{name}[{place}]") for place, item in enumerate(value)]
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _check_fields(kind, value, source, f"{name}." if name else "")
    if kind in (dict, Mapping) and isinstance(value, Mapping):
        return {
            check_value(key, arguments[0], source, f"a key of {name}"): check_value(
                item, arguments[1], source, f"{name}.{key}" if name else str(key)
            )
            for key, item in value.items()
        }
    if kind in (bool, np.ndarray, NoneType) and isinstance(value, kind):
        return value
    raise _error(value, dict if is_dataclass(kind) or kind is Mapping else kind, source, name)


@functools.cache  # Python evaluates the annotations, which are texts, at each call
def hints_of(kind: Any) -> dict[str, Any]:
    """The hint of each field of a dataclass, for :func:`check_value`."""
    return get_type_hints(kind, include_extras=True)


def _check_fields(kind: Any, values: Mapping[str, Any], source: str, prefix: str) -> Any:
    hints, found = hints_of(kind), {}
    for field in fields(kind):
        if field.name in values:
            found[field.name] = check_value(values[field.name], hints[field.name], source, f"{prefix}{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{source}: {prefix}{field.name} is missing")
    return kind(**found)


def _check_union(value: Any, kinds: tuple[Any, ...], source: str, name: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for kind in kinds[:-1]:
        try:
            return check_value(value, kind, source, name)
        except UserError:
            continue
    return check_value(value, kinds[-1], source, name)


def _check_scalar(value: Any, kind: Any, bounds: Range | None, source: str, name: str) -> Any:
    low, high = (bounds or _DEFAULT_RANGES[kind]).low, (bounds or _DEFAULT_RANGES[kind]).high
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _error(value, kind, source, name)
    size = len(value) if kind is str else value
    if not low <= size <= high:
        within = f"{_EXPECTED[kind]} from {low:g} to {high:g}" if kind is not str else f"at most {high:,} characters"
        raise _error(value, within if bounds or kind is str else kind, source, name)
    if kind is str and not bounds and printable(value) != value:
        raise _error(value, kind, source, name)
    return float(value) if kind is float else value


def _check_plain(value: Any, source: str, name: str, depth: int) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, list | tuple | dict) and not depth:
        raise UserError(f"{source}: {name} is nested more than {_MAX_DEPTH} deep")
    if isinstance(value, list | tuple):
        return [_check_plain(item, source, f"{name}[{place}]", depth - 1) for place, item in enumerate(value)]
    if isinstance(value, dict):
        return {
            check_value(key, str, source, f"a key of {name}"): _check_plain(item, source, f"{name}.{key}", depth - 1)
            for key, item in value.items()
        }
    if isinstance(value, float):
        return value if abs(value) <= sys.float_info.max else None
    if isinstance(value, int | str):
        return check_value(value, int if isinstance(value, int) else Text, source, name)
    raise _error(value, Any, source, name)


def _error(value: Any, expected: Any, source: str, name: str) -> UserError:
    if isinstance(value, np.ndarray):
        shown = f"an array of {value.dtype} {list(value.shape)}"
    elif isinstance(value, str | int | float | None):
        shown = printable(repr(value), 80)
    else:
        shown = f"a {type(value).__name__}"
    place = f"{source}: {name}" if name else source
    return UserError(f"{place} is {shown}; it must be {_EXPECTED.get(expected, expected)}")


def read_json(path: Path, source: str, max_bytes: int = _MAX_BYTES) -> Any:
    """Read a JSON file; its values have yet to be checked.

    Args:
        source: what the file is, for messages.
        max_bytes: longer files are refused.

    Raises:
        UserError: it is too long, is not JSON, or an object in it has a key twice.
        OSError: it cannot be read, see :func:`common.runtime.regular_file.open_regular`.
    """
    with open_regular(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise UserError(f"{source} has more than {max_bytes:,} bytes; give another file")
    try:
        return json.loads(data, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:  # a number of thousands of digits is a ValueError, too
        raise UserError(f"{source} is not valid JSON ({one_line(error)}); correct or restore it") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of a key that stands twice, Python would drop the first value."""
    values = dict(pairs)
    if len(values) != len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {key!r:.80} stands twice in an object")
    return values
