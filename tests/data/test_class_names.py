"""Class names of a file or of folders: what is read, and what no table could show."""

import pytest

from common.data.class_names import check_class_names, distinct_names, read_class_names
from common.errors import UserError


def test_names_are_lines_and_the_first_file_counts(tmp_path):
    assert read_class_names(tmp_path, ["a.txt", "b.txt"]) is None
    (tmp_path / "b.txt").write_bytes("\ufeffred\r\n\n weiß\u00a0天\u3000空 \n".encode())
    assert read_class_names(tmp_path, ["a.txt", "b.txt"]) == (["red", "weiß\u00a0天\u3000空"], tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["red", "x" * 201], r"^f: the name of class 1 has 201 characters; give it at most 200$"),
        (["\x1b[2Jred"], r"^f: the name of class 0, '\\x1b\[2Jred', cannot be printed"),
        (["a\nb"], r"cannot be printed"),
        (["\udcff"], r"'\\udcff', cannot be printed"),
        (["a"] * 65537, r"^f has 65,537 class names; give at most 65,536$"),
    ],
    ids=["long", "escape", "newline", "surrogate", "many"],
)
def test_names_that_cannot_be_shown_are_refused(names, told):
    with pytest.raises(UserError, match=told):
        check_class_names(names, "f")


def test_a_file_of_any_size_is_refused_in_one_short_line(tmp_path):
    (tmp_path / "names.txt").write_text("x" * 2 * 10**7)
    with pytest.raises(UserError, match="has 13,107,200 characters"):
        read_class_names(tmp_path, ["names.txt"])


def test_distinct_names_are_printable_and_number_what_has_no_name_or_that_of_another():
    assert distinct_names(["crane", "a\x1bb", "crane"], 4) == ["crane (0)", "a\\x1bb", "crane (2)", "3"]
    assert distinct_names(None, 2) == ["0", "1"]
