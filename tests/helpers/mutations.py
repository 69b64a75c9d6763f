"""Values that do not belong where they are, for files that are damaged or made by an attacker."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

PLAIN_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -6, 2**64, 10**400, 0.5, 1e300, float("nan"), float("inf")),
    *("", "text", "\x1b[2J\n\x00", "x" * 100_000, [], [7], [[1], {"a": [None]}], {}, {"a": 1}, {"": {"a": []}}),
)
ARRAYS = (
    *(np.zeros(0, np.float32), np.zeros((), np.float32), np.ones((2, 3)), np.full(3, np.nan, np.float32)),
    *(np.arange(4), np.ones(3, np.complex64), np.ones((1, 1, 1, 1), np.float16), np.ones(3, np.uint16)),
)
ODD_VALUES = (*PLAIN_VALUES, *ARRAYS)


def places_in(value: Any) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside nested dicts and lists, as the keys that lead to it."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (key,)
        yield from ((key, *rest) for rest in places_in(item))


def changed(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at one place."""
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


def without(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy without the value at one place."""
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1:
        del copy[place[0]]
    else:
        copy[place[0]] = without(value[place[0]], place[1:])
    return copy


def mutated_bytes(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """A file with one to four changes: other bytes, a part left out, repeated, or taken from another file."""
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((1, 1, 1, 2, 8, 64, 1000)))
        other = rng.choice(others)
        place = rng.randrange(len(other))
        new = rng.choice(
            (rng.randbytes(end - start), b"", 2 * data[start:end], other[place : place + end - start], b"\xff" * 8)
        )
        data = data[:start] + new + data[end:]
    return data
