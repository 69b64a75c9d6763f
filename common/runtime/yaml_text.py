"""Reading yaml that somebody else may have written."""

from __future__ import annotations

import re
from typing import Any

import yaml

from ..errors import UserError, one_line

__all__ = ["parse", "read_yaml"]

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
            raise _Refused(f"it has {len(text)} characters; at most {_MOST_CHARACTERS} are allowed")
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
        text.encode()
        values = yaml.load(text, _Loader) or {}
    except UnicodeEncodeError as error:
        raise UserError(f"{source} is not UTF-8; save it as UTF-8") from error
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
