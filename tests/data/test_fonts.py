"""Which font draws a text, and what stands in the place of letters that no font has."""

from __future__ import annotations

import logging
import subprocess
import sys

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from common.pictures import fonts
from common.pictures.drawing import palette, with_legend
from common.pictures.fonts import choose_font, drawable
from tests.helpers.programs import ROOT


@pytest.fixture(autouse=True)
def installed(monkeypatch):
    """Paths of the fonts that are installed: none of this machine's."""
    paths = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(paths))

    def forget():
        for function in (fonts._find_font, fonts._installed_fonts, fonts._tell_missing, fonts._charmap):
            function.cache_clear()

    forget()
    yield paths
    forget()


def make_font(path, letters, style="Regular"):
    """Write a font that draws each of the letters as a box."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    names = [".notdef", *(f"glyph{ord(letter)}" for letter in letters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(letter): f"glyph{ord(letter)}" for letter in letters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": path.stem, "styleName": style})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def legend_of(name):
    return with_legend(np.zeros((200, 200, 3), np.uint8), [name], palette(1))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("天空", "??"),  # no glyphs
        ("a\nb\t", "a?b?"),
        ("\uff46\uff55\uff4c\uff4c", "full"),  # full width
        ("cafe\u0301", "caf\u00e9"),  # an accent of its own
        ("\U0001f43b bear", "? bear"),
    ],
)
def test_letters_that_no_font_has_are_replaced(name, shown):
    np.testing.assert_array_equal(legend_of(name), legend_of(shown))


@pytest.mark.parametrize("name", ["žába", "Größe", "деревья", "δέντρο"])
def test_european_letters_are_drawn(name):
    assert not np.array_equal(legend_of(name), legend_of("?" * len(name)))
    plain = {"žába": "zaba", "Größe": "Grosse"}.get(name, "a" * len(name))
    assert not np.array_equal(legend_of(name), legend_of(plain))


def test_an_installed_font_draws_what_matplotlibs_lacks(tmp_path, installed):
    question_marks = legend_of("天空")
    fonts._find_font.cache_clear()
    fonts._installed_fonts.cache_clear()
    installed.append(make_font(tmp_path / "a.ttf", "天空abc"))
    assert choose_font(["天空", "a"], 20).path == installed[0]
    assert choose_font(["Größe"], 20).path.endswith("DejaVuSans.ttf")
    assert drawable("天空, b", choose_font(["天空"], 20)) == "天空??b"
    assert not np.array_equal(legend_of("天空"), question_marks)


def test_of_several_fonts_the_plain_one_with_most_letters_is_chosen(tmp_path, installed):
    (tmp_path / "broken.ttf").write_text("no font")
    installed += [
        str(tmp_path / "broken.ttf"),
        str(tmp_path / "missing.ttf"),
        make_font(tmp_path / "a.ttf", "天空", "Black"),
        make_font(tmp_path / "b.ttf", "天"),
        make_font(tmp_path / "c.ttf", "天空"),
    ]
    assert choose_font(["天", "空"], 20).path == str(tmp_path / "c.ttf")
    assert choose_font(["天"], 20).path == str(tmp_path / "b.ttf")
    assert choose_font(["sky 天"], 20).path.endswith("DejaVuSans.ttf")  # has three of four


def test_a_font_of_fixed_size_is_not_taken(tmp_path, installed, monkeypatch):
    installed.append(make_font(tmp_path / "a.ttf", "天"))
    monkeypatch.setattr(fonts, "FT2Font", lambda path: FixedFont() if path in installed else FT2Font(path))
    assert choose_font(["天"], 20).path != installed[0]


class FixedFont:
    scalable, style_name = False, "Regular"

    def get_charmap(self):
        return {ord("天"): 1}


def test_what_to_install_is_said_once_for_each_script(caplog):
    font = choose_font([], 20)
    with caplog.at_level(logging.WARNING):
        for text in ("天空", "地", "\uff46", "a\nb", "e\u0301", "\U0001f43b", "\U0001f43c", "ก", "ข"):
            drawable(text, font)
    scripts = [record.args[0] for record in caplog.records]
    assert scripts == ["CJK", "SYMBOL", "THAI"]
    assert "install a font that has them, such as Noto Sans CJK" in caplog.text


def test_the_warning_is_one_line_on_the_terminal():
    program = "from common.pictures.fonts import choose_font, drawable; print(drawable('天空', choose_font([], 20)))"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert result.stdout == "??\n"
    assert result.stderr.startswith("no font here has all letters of the class names (CJK): pictures show ? instead; ")
    assert result.stderr.count("\n") == 1


def test_the_font_has_its_size():
    assert isinstance(choose_font(["a"], 23), ImageFont.FreeTypeFont)
    assert choose_font(["a"], 23).size == 23
