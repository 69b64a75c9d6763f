"""Class names of a file or of folders: what is read, and what no table could show."""

import os
import unicodedata

import pytest

from common.data.class_names import check_class_names, distinct_names, read_class_names, renamed_classes
from common.errors import UserError


def test_names_are_lines_of_one_file(tmp_path):
    assert read_class_names(tmp_path, ["a.txt", "b.txt"]) is None
    (tmp_path / "b.txt").write_bytes("\ufeffred\r\n\n weiß\u00a0天\u3000空 \n".encode())
    assert read_class_names(tmp_path, ["a.txt", "b.txt"]) == (["red", "weiß\u00a0天\u3000空"], tmp_path / "b.txt")


def test_lines_may_begin_with_numbers(tmp_path):
    (tmp_path / "names.txt").write_text("1\tdog\n0\tred cat\n")
    assert read_class_names(tmp_path, ["names.txt"])[0] == ["red cat", "dog"]
    (tmp_path / "names.txt").write_text("9" * 5000 + " cat")
    with pytest.raises(UserError, match="has 5,004 characters"):
        read_class_names(tmp_path, ["names.txt"])


def test_two_files_must_have_the_same_names(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("red\nblue\n")
    assert read_class_names(tmp_path, ["a.txt", "b.txt"]) == (["red", "blue"], tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("blue\nred\n")
    with pytest.raises(UserError, match=r"a\.txt and .*b\.txt have different class names; remove or correct one"):
        read_class_names(tmp_path, ["a.txt", "b.txt"])


def test_names_of_another_encoding_are_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes("röt\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"the class names in .*names\.txt are not UTF-8 .*; save the file as UTF-8"):
        read_class_names(tmp_path, ["names.txt"])


def test_names_are_composed(tmp_path):
    (tmp_path / "names.txt").write_text(unicodedata.normalize("NFD", "grün"), encoding="utf-8")
    names, _ = read_class_names(tmp_path, ["names.txt"])
    assert names == ["gr\u00fcn"]


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


def test_ten_renamed_classes_are_listed_and_the_others_counted():
    numbers = [str(number) for number in range(12)]
    assert renamed_classes(numbers, [*numbers[:11], "x"]) == ["class 11 is '11' in the data and 'x' in the weights"]
    lines = renamed_classes(numbers, ["x"] * 12, "maps")
    assert (lines[9], lines[10:]) == ("class 9 is '9' in the data and 'x' in maps", ["and 2 more classes"])
    assert renamed_classes(None, numbers) == renamed_classes(numbers, None) == []
    (unknown,), (unnamed,) = renamed_classes(None, ["cat"]), renamed_classes(["cat"], None)
    assert unknown.startswith("the data names no classes, so their order cannot be compared")
    assert unnamed.startswith("the weights have no class names, so their order cannot be compared")


def test_what_is_no_file_is_not_ignored(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nothing")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "link", "pipe"):
        with pytest.raises(OSError, match=name):
            read_class_names(tmp_path, [name])
