"""Each README_cn.md has the same sections as README.md, with the same commands, tables, names, numbers and links."""

from __future__ import annotations

import re

import pytest

from tests.helpers.programs import ROOT

FOLDERS = ("", "image_classification/", "semantic_segmentation/", "object_detection/")
CODE = re.compile(r"```\w*\n.*?```", re.DOTALL)
COMMENT = re.compile(r"  #.*")
TABLE = re.compile(r"<!-- begin .*?<!-- end \w+ -->", re.DOTALL)


def sections(name: str) -> list[dict[str, list[str]]]:
    """What can be compared between languages, of each section."""
    text = (ROOT / name).read_text(encoding="utf-8")
    hidden = CODE.sub(lambda block: block[0].replace("\n#", "\n\0"), text)  # comments in code are not headings
    found = []
    for section in re.split(r"^(?=#+ )", hidden, flags=re.MULTILINE)[1:]:
        prose = CODE.sub(" ", section)
        without_names = re.sub(r"`[^`]*`|\]\([^)]*\)", " ", prose)
        found.append(
            {
                "level": re.findall(r"^#+", section),
                "code": [COMMENT.sub("", block) for block in CODE.findall(section)],
                "tables": re.findall("<!-- begin .* -->", section),
                "names": sorted(" ".join(name.split()) for name in re.findall(r"`[^`]+`", prose)),
                "numbers": sorted(re.findall(r"\d+(?:[.,x]\d+)*", without_names)),
                "links": sorted(link for link in re.findall(r"\]\(([^#)][^)]*)\)", section) if "README" not in link),
            }
        )
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_chinese_document_is_in_step(folder):
    english, chinese = sections(f"{folder}README.md"), sections(f"{folder}README_cn.md")
    assert len(english) == len(chinese) > 3
    for number, (expected, found) in enumerate(zip(english, chinese, strict=True)):
        assert found == expected, f"section {number}: {expected['level']}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_it_is_in_chinese(folder):
    text = TABLE.sub("", CODE.sub("", (ROOT / f"{folder}README_cn.md").read_text(encoding="utf-8")))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 500
