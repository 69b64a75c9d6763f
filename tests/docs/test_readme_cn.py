"""The Chinese README says what the English one says: the same commands, tables, numbers and links in each section."""

from __future__ import annotations

import re
from itertools import zip_longest

import pytest

from tests.helpers.programs import ROOT

CODE = re.compile(r"```\w*\n.*?```", re.DOTALL)


def sections(name: str) -> list[tuple[str, str]]:
    """Level of the heading, and the text below it, of each section."""
    text = (ROOT / name).read_text(encoding="utf-8")
    hidden = CODE.sub(lambda block: block[0].replace("\n#", "\n\0"), text)  # comments in code are no headings
    parts = re.split(r"^(#+) .*\n", hidden, flags=re.MULTILINE)[1:]
    return [(level, body.replace("\0", "#")) for level, body in zip(parts[::2], parts[1::2], strict=True)]


PAIRS = list(zip_longest(sections("README.md"), sections("README_cn.md"), fillvalue=("", "")))


def numbers(text: str) -> list[str]:
    """Every figure outside of code, names and addresses; words for numbers are not compared."""
    text = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", CODE.sub(" ", text))
    return sorted(re.findall(r"\d+(?:[.,x]\d+)*", text))


def test_the_sections_are_the_same():
    assert len(PAIRS) > 10
    assert [english[0] for english, _ in PAIRS] == [chinese[0] for _, chinese in PAIRS]


@pytest.mark.parametrize(("english", "chinese"), [(e[1], c[1]) for e, c in PAIRS], ids=range(len(PAIRS)))
def test_a_section_has_the_same_commands_tables_numbers_and_links(english, chinese):
    assert CODE.findall(chinese) == CODE.findall(english)
    tables = re.compile(r"<!-- begin .*?<!-- end \w+ -->", re.DOTALL)
    assert tables.findall(chinese) == tables.findall(english)
    names, own_names = (sorted(re.findall(r"`[^`\n]+`", CODE.sub("", text))) for text in (english, chinese))
    assert own_names == names
    assert numbers(chinese) == numbers(english)
    links, own_links = (
        [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")]
        for text in (english, chinese)
    )
    assert sorted(own_links) == sorted(links)


def test_the_text_is_chinese_and_each_leads_to_the_other():
    text = (ROOT / "README_cn.md").read_text(encoding="utf-8")
    prose = CODE.sub("", re.sub(r"<!-- begin .*?<!-- end \w+ -->", "", text, flags=re.DOTALL))
    assert len(re.findall(r"[\u4e00-\u9fff]", prose)) > 1500
    assert "[English](README.md)" in text
    assert "[简体中文](README_cn.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
