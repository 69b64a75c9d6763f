"""Values out of files are what their hints say, or an error that names their place; messages are safe to print."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest

from common.errors import UserError, one_line, printable
from common.schema import Range, Text, check_value, read_json


@dataclass
class Part:
    size: Annotated[int, Range(1, 9)]


@dataclass
class Whole:
    name: str
    share: float
    parts: list[Part]
    shape: list[int | str] = field(default_factory=list)
    note: Text | None = None
    sums: dict[str, Part] = field(default_factory=dict)
    others: Any = None


RIGHT = {"name": "玫瑰 花", "share": 1, "parts": [{"size": 3}], "unknown": object()}


def test_right_values_become_a_dataclass():
    found = check_value({**RIGHT, "shape": ("a", np.int64(2)), "note": "a\nb"}, Whole, "file")
    assert found == Whole("玫瑰 花", 1.0, [Part(3)], ["a", 2], "a\nb")
    assert type(found.share) is float
    others = {"a": [np.float32(0.5), math.nan, -math.inf, None, {"b": (True,)}]}
    assert check_value(others, Any, "file") == {"a": [0.5, None, None, None, {"b": [True]}]}


DEEP: list = []
for _ in range(50):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": 5}, "file: name is 5; it must be a text of one line"),
        ({"name": "a\x1b[2J"}, r"file: name is 'a\x1b[2J'; it must be a text of one line"),
        ({"name": "a" * 1001}, "it must be at most 1,000 characters"),
        ({"share": math.nan}, "file: share is nan; it must be a finite number"),
        ({"share": 10**400}, "it must be a finite number"),
        ({"share": True}, "file: share is True; it must be a finite number"),
        ({"parts": {}}, "file: parts is a dict; it must be a list"),
        ({"parts": [{"size": 3}, {"size": 10}]}, "file: parts[1].size is 10; it must be a whole number from 1 to 9"),
        ({"parts": [{}]}, "file: parts[0].size is missing"),
        ({"parts": [np.zeros((2, 3))]}, "file: parts[0] is an array of float64 [2, 3]; it must be an object with keys"),
        ({"shape": [None]}, "file: shape[0] is None; it must be a text of one line"),
        ({"note": 1.5}, "file: note is 1.5; it must be a text"),
        ({"sums": {"a": {"size": 2.0}}}, "file: sums.a.size is 2.0; it must be a whole number"),
        ({"sums": {3: {"size": 2}}}, "file: a key of sums is 3; it must be a text"),
        ({"others": [2**63]}, "file: others[0] is 9223372036854775808; it must be a whole number"),
        ({"others": {"a": np.zeros(2)}}, "file: others.a is an array of float64 [2]; it must be a plain value"),
        ({"others": DEEP}, "is nested more than 20 deep"),
    ],
)
def test_a_wrong_value_is_named_with_its_place(changes, message):
    with pytest.raises(UserError) as caught:
        check_value({**RIGHT, **changes}, Whole, "file")
    assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[" * 200_000, "9" * 5000, "\xff", '{"a": 1, "a": 2}', "[" + "1, " * 40 + "1]"])
def test_json_that_cannot_be_read_is_named(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text, encoding="latin1")
    with pytest.raises(UserError, match=r"^the file (is not valid JSON|has more than 100 bytes)"):
        read_json(path, "the file", max_bytes=100 if text.startswith("[1") else 1 << 20)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(OSError, match="Not a regular file"):
        read_json(tmp_path / "a.json", "the file")


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"a": [1]}))
    assert read_json(tmp_path / "a.json", "the file") == {"a": [1]}


# ---- what is printed


@pytest.mark.parametrize(
    "text", ["two  blanks", r"C:\new\table", "玫瑰\u3000花", "\U0001f469\u200d\U0001f33e", "a-----b (at x)"]
)
def test_messages_quote_harmless_texts_as_they_are(text):
    assert printable(text) == str(UserError(text)) == one_line(ValueError(text)) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\0", r"a\nb\tc\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("next\u2028line", r"next\u2028line"),
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("\udcff", r"\udcff"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert str(UserError(text)) == shown


def test_long_messages_lose_their_middle():
    message = str(UserError("start " + "\x1b" * 1_000_000 + " end"))
    assert len(message) <= 2000
    assert message.startswith("start ")
    assert message.endswith(" end")


def test_the_lines_of_an_exception_are_joined_and_blanks_within_them_stay():
    assert one_line(ValueError("'two  blanks'\n    is wrong\n")) == "'two  blanks' is wrong"
