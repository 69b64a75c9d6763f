"""Yaml that a mistake or an attack may have written."""

from __future__ import annotations

import re

import pytest

from common.errors import UserError
from common.runtime.yaml_text import parse, read_yaml


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: 1\nb: 2\na: 3", "the key 'a' appears twice, in line 1, column 1 and line 3, column 1"),
        ("a: {b: 1,\n  b: 2}", "the key 'b' appears twice, in line 1, column 5 and line 2, column 3"),
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [{f'*a{i - 1},' * 9}]\n" for i in range(1, 40)), "values"),
        ("&a {b: *a}", "contains itself"),
        ("a: " + "[" * 100_000, "nested more than"),
        ("a: " + "9" * 5000, "a number has 5000 characters"),
        ("a: " + "x" * 10**6, "characters"),
        ("a: !!timestamp 2026-01-01", "timestamp"),
        ("a: !!python/name:os.system", "python/name"),
        ("a: !!bool maybe", "maybe"),
        ("? [a]\n: 1", "a key is not a name"),
        ("a: \udce9", "is not UTF-8; save it as UTF-8"),
        (f'a: !!int {{=: "0x{"f" * 5000}"}}', "keys and values have the tag"),
    ],
    ids=range(13),
)
def test_yaml_that_is_a_mistake_or_an_attack_is_refused(text, part):
    with pytest.raises(UserError, match=f"^here.*{re.escape(part)}"):
        read_yaml(text, "here")


def test_lists_may_be_repeated_and_dates_are_text():
    assert read_yaml("a: &a [1, 2]\nb: *a\nc: {<<: {d: 2026-01-01}}", "here") == {
        "a": [1, 2],
        "b": [1, 2],
        "c": {"d": "2026-01-01"},
    }


def test_a_key_that_stands_twice_on_the_command_line_is_an_error():
    with pytest.raises(UserError, match="the key 'a' appears twice"):
        parse("{a: 1, a: 2}")
