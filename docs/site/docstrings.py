"""An extension of Griffe that prepares docstrings for the reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|mod|data):`([\w.]+)`")
ARGUMENTS = re.compile(r"^( +)((?:\w+, )+\w+):(.*(?:\n\1 +.*)*)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Turns roles into links, and splits arguments that share a description (``height, width: ...``).

    The name of a role, such as :func:`common.flops.count_flops`, is resolved in the scope of the docstring. Names that
    the reference does not show, private ones and those of ``tools``, get no link. Attributes have no entry of their
    own, because the docstring of the class describes them.
    """

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a loaded package."""
        self._rewrite(pkg)

    def _rewrite(self, scope: griffe.Module | griffe.Class) -> None:
        for member in scope.members.values():
            if scope.is_class and member.is_attribute and not member.is_alias and not member.docstring:
                member.public = False
        for found in (scope, *scope.members.values()):
            if not found.is_alias and found.docstring:
                text = ROLE.sub(lambda match, at=found: _link(match[1], at), found.docstring.value)
                found.docstring.value = ARGUMENTS.sub(_separate, text)
        for member in scope.members.values():
            if not member.is_alias and (member.is_module or member.is_class):
                self._rewrite(member)


def _separate(match: re.Match[str]) -> str:
    indent, names, description = match.groups()
    return "\n".join(f"{indent}{name}:{description}" for name in names.split(", "))


def _link(name: str, at: griffe.Object) -> str:
    path = _path(name, at)
    shown = not any(part.startswith("_") for part in path.split(".")) and not path.startswith("tools.")
    return f"[`{name}`][{path}]" if shown else f"`{name}`"


def _path(name: str, at: griffe.Object) -> str:
    """The full path of a name. Unresolved names stay as they are, and are reported as broken links."""
    first, _, rest = name.partition(".")
    for scope in (at, at.parent):
        if scope and first in scope.members:
            member = scope.members[first]
            path = member.target_path if member.is_alias else member.path
            return f"{path}.{rest}".rstrip(".")
    try:
        return f"{at.resolve(first)}.{rest}".rstrip(".")
    except griffe.NameResolutionError:
        return name
