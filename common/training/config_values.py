"""Values of a configuration: read from yaml files, found by dotted keys, and converted to the right type."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ..errors import UserError, one_line
from ..runtime.regular_file import open_regular
from ..schema import check_value

__all__ = [
    "coerce",
    "find",
    "keys_of",
    "merge_open",
    "parse",
    "plain",
    "read_yaml",
    "read_yaml_with_bases",
    "set_open",
    "similar",
]


_MOST_CHARACTERS = 2**17
_MOST_LEVELS = 32
_MOST_VALUES = 10_000  # where a value that is repeated by an alias counts each time
_LONGEST_NUMBER = 100  # characters


class _Refused(yaml.YAMLError):
    """A yaml text that is valid, but dangerous or a mistake."""


class _Loader(yaml.SafeLoader):
    """Reads text, numbers, booleans, nulls, lists and mappings; other types are errors, and dates are text.

    1e-3 is a number; in YAML 1.1, which PyYAML follows, a number with an exponent needs a point.
    """

    # None stands for all other tags.
    yaml_constructors = {  # noqa: RUF012 (as in PyYAML)
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (
            *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")),
            None,
        )
    }
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [pair for pair in pairs if pair[0] != "tag:yaml.org,2002:timestamp"]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str):
        if len(text) > _MOST_CHARACTERS:
            raise _Refused(f"it has more than {_MOST_CHARACTERS} characters")
        super().__init__(text)
        self._level = 0
        self._values: dict[yaml.Node, int] = {}  # in each finished node, itself included

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Compose a node within the limits, before any value is made of it."""
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise _Refused(f"it is nested more than {_MOST_LEVELS} levels deep, in {_line(self.peek_event())}")
        event = self.peek_event()
        node = super().compose_node(parent, index)
        self._level -= 1
        if node not in self._values:
            if isinstance(event, yaml.AliasEvent):
                raise _Refused(f"a value contains itself, in {_line(event)}")
            self._values[node] = 1 + sum(map(self._values.__getitem__, self._check(node)))
        if self._values[node] > _MOST_VALUES:
            raise _Refused(f"it has more than {_MOST_VALUES} values")
        return node

    @staticmethod
    def _check(node: yaml.Node) -> list[yaml.Node]:
        """The nodes below a node; refuses long numbers and keys that appear twice."""
        if isinstance(node, yaml.SequenceNode):
            return node.value
        if isinstance(node, yaml.MappingNode):
            if node.tag != "tag:yaml.org,2002:map":  # PyYAML makes a number of any length of !!int {=: "0xff"}
                raise _Refused(f"keys and values have the tag {node.tag!r:.80}, in {_line(node)}")
            lines: dict[tuple[str, str], str] = {}
            for key, _ in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise _Refused(f"a key is not a name, in {_line(key)}")
                if (first := lines.setdefault((key.tag, key.value), _line(key))) != _line(key):
                    raise _Refused(f"the key {key.value!r:.80} appears twice, in {first} and {_line(key)}; remove one")
            return [child for pair in node.value for child in pair]
        if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
            raise _Refused(f"a number has {len(node.value)} characters, in {_line(node)}")
        return []


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _line(item: yaml.Node | yaml.Event) -> str:
    mark = item.start_mark
    return f"line {mark.line + 1}, column {mark.column + 1}"


def read_yaml(text: str, source: str) -> dict[str, Any]:
    """Read a yaml text of keys and values: text, numbers, booleans, nulls, lists and mappings.

    Raises:
        UserError: it is something else, has a key twice, or is larger than any configuration; the message names
            ``source``.
    """
    try:
        values = yaml.load(text, _Loader) or {}
    except _Refused as error:
        raise UserError(f"{source}: {error}") from error
    except (
        yaml.YAMLError,
        ValueError,
        LookupError,
        AttributeError,
    ) as error:  # all but the first: wrong values of tags
        raise UserError(f"{source} is not a yaml file: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{source} is a {type(values).__name__}, not keys and values")
    return values


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
            values = read_yaml(file.read(_MOST_CHARACTERS + 1), str(path))
    except OSError as error:
        raise UserError(f"cannot read the configuration {path}: {error.strerror}; give an existing -cfg") from error
    bases = [values.pop(key, None) for key in ("BASE", "_base_", "_BASE_")]
    bases = next(filter(None, bases), [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from read_yaml_with_bases(path.parent / str(base), (*including, path))
    yield values, str(path)


def parse(text: str) -> Any:
    """Read a command-line value as yaml does: lists, numbers, booleans.

    Raises:
        UserError: it has a key twice, or is larger than any configuration.
    """
    try:
        return yaml.load(text, _Loader)
    except _Refused as error:
        raise UserError(f"{text[:80]}: {error}") from error
    except (yaml.YAMLError, ValueError, LookupError, AttributeError):
        return text


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


def similar(config: CfgNode, key: str) -> str:
    """A suggestion for a mistyped key, or nothing."""
    known = {name.upper(): name for name in keys_of(config)}
    close = difflib.get_close_matches(str(key).upper(), known, n=1)
    return f"; did you mean {known[close[0]]}?" if close else ""


def coerce(value: Any, default: Any, key: str, source: str) -> Any:
    """Convert ``value`` to the type of ``default``, such as the integer 5 to a float.

    A list keeps its length; if it is empty by default, it takes any number of integers.

    Raises:
        UserError: the value has another type; the message names the key and ``source``.
    """
    if isinstance(default, float) and type(value) in (int, float):
        return check_value(value, float, source, key)
    if isinstance(default, list) and default and isinstance(value, (list, tuple)) and len(value) == len(default):
        return [coerce(item, like, key, source) for item, like in zip(value, default, strict=True)]
    if default == [] and isinstance(value, (list, tuple)) and all(type(item) is int for item in value):
        return check_value(value, list[int], source, key)
    if isinstance(default, str) and value is None:
        return ""
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{source}: {key} is {value!r}; no path or name has NUL characters")
    if type(value) is type(default) and not isinstance(default, list):
        return check_value(value, int, source, key) if type(value) is int else value
    expected = f"of type {type(default).__name__}"
    if isinstance(default, list):
        expected = f"a list of {len(default) or 'whole'} numbers"
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
