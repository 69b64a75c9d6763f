"""Values of a configuration: read from yaml files, found by dotted keys, and converted to the right type."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from ..errors import UserError
from ..runtime.folders import expand_home
from ..runtime.regular_file import open_regular
from ..runtime.yaml_text import read_yaml
from ..schema import check_value

__all__ = [
    "coerce",
    "find",
    "keys_of",
    "largest",
    "merge_open",
    "plain",
    "read_yaml_with_bases",
    "set_open",
    "similar",
]


def read_yaml_with_bases(path: Path, including: tuple[Path, ...] = ()) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the values of a yaml file and its path, those of its bases first.

    Bases are named by ``BASE`` or, as in the toolkits, ``_base_`` or ``_BASE_``; a later base overrides an earlier one.

    Raises:
        UserError: a file is missing, is not yaml, or is its own base.
    """
    path = Path(os.path.realpath(path))  # resolve() raises for a link to itself
    if path in including:
        raise UserError(
            f"BASE of {including[-1]} is {path}, which includes {including[-1].name} itself; remove this BASE"
        )
    try:
        with open_regular(path, encoding="utf-8", errors="surrogateescape") as file:
            values = read_yaml(file.read(), str(path))
    except OSError as error:
        remedy = "give an existing -cfg"
        if including:
            remedy = f"BASE of {including[-1]} names it: write a path that is relative to this file, or an absolute one"
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; {remedy}") from error
    bases = [values.pop(key, None) for key in ("BASE", "_base_", "_BASE_")]
    bases = next(filter(None, bases), [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from read_yaml_with_bases(path.parent / expand_home(str(base)), (*including, path))
    yield values, str(path)


def plain(node: Any) -> Any:
    """A section as plain dicts and lists, which the toolkits expect."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(item) for item in node] if isinstance(node, (list, tuple)) else node


def find(config: CfgNode, key: str) -> Any:
    """The value of a dotted key, or ``None``."""
    node = config
    for part in str(key).split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return None
        node = node[part]
    return node


def keys_of(node: CfgNode, prefix: str = "") -> list[str]:
    """All dotted keys."""
    return [
        full
        for name, value in node.items()
        for full in (keys_of(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else [f"{prefix}{name}"])
    ]


def largest(value: Any) -> float:
    """The largest of one or more numbers; 0 if it is something else, which somebody else complains of."""
    try:
        return float(np.max(np.asarray(value, np.float64)))
    except (TypeError, ValueError):
        return 0.0


def similar(config: CfgNode, key: str) -> str:
    """A suggestion for a mistyped key, or nothing."""
    known = {name.upper(): name for name in keys_of(config)}
    close = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Convert ``value`` to the type of ``default``, such as the integer 5 to a float.

    A list keeps its length; if it is empty by default, it takes any number of integers. An empty tuple takes any number
    of texts.

    Raises:
        UserError: the value has another type; the message names the key and ``source``.
    """
    if isinstance(default, float) and type(value) in (int, float):
        return check_value(value, float, source, key)
    if isinstance(default, list) and default and isinstance(value, (list, tuple)) and len(value) == len(default):
        return [coerce(item, like, key, source) for item, like in zip(value, default, strict=True)]
    if default == [] and isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        return check_value(value, list[int], source, key)
    if default == () and isinstance(value, (list, tuple)) and all(type(item) is str for item in value):
        return tuple(check_value(list(value), list[str], source, key))
    if isinstance(default, str) and value is None:
        return ""
    if isinstance(value, str) and re.search("[\0\ud800-\udc7f\udd00-\udfff]", value):
        raise UserError(f"{source}: {key} is {value!r}; no path or name has NUL characters or lone surrogates")
    if type(value) is type(default) and not isinstance(default, (list, tuple)):
        return check_value(value, int, source, key) if type(value) is int else value
    expected = f"of type {type(default).__name__}"
    if isinstance(default, list):
        expected = f"a list of {len(default) or 'whole'} numbers"
    if default == ():
        expected = "a list of names"
    raise UserError(f"{source}: {key} is {value!r}; it must be {expected}")


# ---- sections of the toolkits: any keys and any types


def merge_open(old: Mapping[str, Any], new: Mapping[str, Any]) -> CfgNode:
    """``new`` over ``old``, dict by dict; PaddleSeg's ``_inherited_: False`` drops the old values."""
    merged = CfgNode(dict(old)) if new.get("_inherited_", True) else CfgNode()
    for key, value in new.items():
        if isinstance(value, dict):
            below = merged.get(key)
            merged[key] = merge_open(below if isinstance(below, CfgNode) else {}, value)
        elif key != "_inherited_":
            merged[key] = value
    return merged


def set_open(config: CfgNode, key: str, value: Any, source: str) -> None:
    """Set a dotted key of an open section; a number in it is an index of a list, from 0. Dicts are merged.

    Raises:
        UserError: the key leads nowhere.
    """
    parts: list[Any] = key.split(".")
    node: Any = config
    for depth, part in enumerate(parts):
        parent, node = node, None
        name = ".".join(key.split(".")[:depth])
        if isinstance(parent, list):
            if not part.isdecimal() or int(part) >= len(parent):
                raise UserError(
                    f"{source}: {key}: {name} is a list of {len(parent)} items, with indices from 0; "
                    f"it has no item {part}"
                )
            parts[depth] = int(part)
            node = parent[int(part)]
        elif isinstance(parent, dict):
            node = parent.get(part)
        else:
            raise UserError(
                f"{source}: {key} cannot be set to {value!r}, because {name} is neither a section nor a list"
                f"{similar(config, key)}"
            )
    if isinstance(value, dict):
        value = merge_open(node if isinstance(node, dict) else {}, value)
    parent[parts[-1]] = value if isinstance(parent, CfgNode) else plain(value)
