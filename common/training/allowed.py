"""What the configuration inside a file of somebody else may say: values of these kinds, and nothing else.

Weights and exported models contain the configuration of their training. The toolkits build what it names, and some of
their components evaluate their arguments as Python, or load files that contain code. So each task has a table of what
it builds from such a configuration: :attr:`common.training.config.TaskConfig.allowed`. A component is entered there
after its code was read: none of its arguments may be evaluated, imported or opened. Sizes are limited to what memory
can hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..data.channel_image import MAX_CHANNELS
from ..layers.variants import ATTENTIONS, POSITION_ENCODINGS, VARIANTS

__all__ = [
    "BACKBONE",
    "Kind",
    "NotAllowedError",
    "component",
    "either",
    "flag",
    "integer",
    "list_of",
    "not_read",
    "nothing",
    "number",
    "section",
    "word",
]

# Checks a value; the text says where it stands, for the message. Raises NotAllowedError.
Kind = Callable[[Any, str], None]


class NotAllowedError(ValueError):
    """A value that a configuration inside a file of somebody else may not have."""


def number(low: float, high: float) -> Kind:
    """A number from ``low`` to ``high``."""

    def check(value: Any, where: str) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            raise _not_allowed(value, where, f"a number from {low:g} to {high:g}")

    return check


def integer(low: int, high: int) -> Kind:
    """An integer from ``low`` to ``high``."""

    def check(value: Any, where: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _not_allowed(value, where, f"an integer from {low} to {high}")

    return check


def flag(value: Any, where: str) -> None:
    """True or false."""
    if type(value) is not bool:
        raise _not_allowed(value, where, "true or false")


def nothing(value: Any, where: str) -> None:
    """Null."""
    if value is not None:
        raise _not_allowed(value, where, "null")


def not_read(value: Any, where: str) -> None:
    """Anything: nothing is built from it, and nothing reads it."""


def word(*words: str) -> Kind:
    """One of the given words."""

    def check(value: Any, where: str) -> None:
        if value not in words:
            raise _not_allowed(value, where, " or ".join(words))

    return check


def list_of(kind: Kind, most: int = 16) -> Kind:
    """A list of at most so many values of one kind."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, list) or len(value) > most:
            raise _not_allowed(value, where, f"a list of at most {most} values")
        for index, item in enumerate(value):
            kind(item, f"{where}[{index}]")

    return check


def either(*kinds: Kind) -> Kind:
    """A value of one of the kinds; the message is that of the last."""

    def check(value: Any, where: str) -> None:
        for kind in kinds[:-1]:
            try:
                return kind(value, where)
            except NotAllowedError:
                pass
        return kinds[-1](value, where)

    return check


def section(kinds: Mapping[str, Kind], others: Kind | None = None) -> Kind:
    """Keys and values, each of its kind; other keys are of the kind ``others``, or not allowed."""

    def check(value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _not_allowed(value, where, "a section with keys and values")
        for key, item in value.items():
            kind = kinds.get(key, others)
            if kind is None:
                raise _not_listed(key, where)
            kind(item, f"{where}.{key}")

    return check


def component(table: Mapping[str, Mapping[str, Kind]], name_key: str) -> Kind:
    """A section that names one of the components of the table, and has arguments of these kinds."""

    def check(value: Any, where: str) -> None:
        name = value.get(name_key) if isinstance(value, Mapping) else value
        if not isinstance(name, str) or name not in table:
            raise _not_listed(name, where)
        section({name_key: word(name), **table[name]})(value, where)

    return check


def _not_allowed(value: Any, where: str, rule: str) -> NotAllowedError:
    return NotAllowedError(f"{where} is {value!r:.80}; it must be {rule}")


def _not_listed(name: Any, where: str) -> NotAllowedError:
    return NotAllowedError(f"{where} names {name!r:.80}, which is not on the list of what weights may configure")


# The arguments of our backbone in both toolkits.
BACKBONE: dict[str, Kind] = {
    "variant": lambda value, where: word(*VARIANTS)(value, where),  # those that are registered then
    "drop_path_rate": number(0, 1),
    "pretrained": not_read,  # the weights of the file take its place
    "in_channels": integer(1, MAX_CHANNELS),
    "recompute": flag,
    "num_heads": either(nothing, list_of(integer(1, 256), 4)),
    "pale_size": either(nothing, integer(1, 64), list_of(either(integer(1, 64), list_of(integer(1, 64), 2)), 4)),
    "attention": word(*ATTENTIONS),
    "parallel": flag,
    "position_encoding": word(*POSITION_ENCODINGS),
    "image_size": either(nothing, integer(32, 2048), list_of(integer(32, 2048), 2)),
    "stage_norms": flag,
}
