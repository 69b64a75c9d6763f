"""Drawing of label maps, fonts, and which files pictures replace."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import font_manager
from PIL import Image

from common.pictures import fonts
from common.pictures.drawing import (
    color_map,
    denormalize,
    index_png,
    overlay,
    palette,
    side_by_side,
    with_legend,
)
from common.pictures.picture_folder import PictureFolder


def random_image(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 250, (height, width, 3)).astype(np.uint8)


def colors_of(picture):
    return {tuple(color) for color in picture.reshape(-1, 3).tolist()}


# ---- colors and label maps


def test_colors_differ_and_do_not_depend_on_the_number_of_classes():
    assert len(colors_of(palette(256))) == 256
    np.testing.assert_array_equal(palette(3), palette(300)[:3])
    with pytest.raises(ValueError, match="read-only"):
        palette(5)[0] = 0


def test_color_map_paints_each_label_and_others_black():
    labels = np.array([[0, 1, 2], [2, 3, 255]], np.uint8)
    np.testing.assert_array_equal(
        color_map(labels, palette(3)), np.append(palette(3), [[0] * 3], 0)[[[0, 1, 2], [2, 3, 3]]]
    )
    assert not color_map(np.array([[-1]]), palette(3)).any()


def test_overlay_blends_colors_except_where_a_label_has_no_class():
    image = random_image(20, 30)
    labels = np.random.default_rng(1).integers(0, 4, (20, 30)).astype(np.uint8)
    labels[:5] = 255
    result = overlay(image, labels, palette(4), 0.3)
    np.testing.assert_array_equal(result[:5], image[:5])
    np.testing.assert_allclose(result[5:], 0.7 * image[5:] + 0.3 * palette(4)[labels[5:]], atol=1)
    with pytest.raises(ValueError, match="do not match"):
        overlay(image, np.zeros((5, 4), int), palette(2))


@pytest.mark.parametrize(("classes", "mode"), [(256, "P"), (1000, "I;16")])
def test_indexed_pngs_keep_the_labels(tmp_path, classes, mode):
    labels = np.random.default_rng(0).integers(0, classes, (30, 40))
    index_png(labels, palette(classes)).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode.startswith(mode)
        np.testing.assert_array_equal(np.asarray(image), labels)
        if mode == "P":
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), color_map(labels, palette(classes)))
    with pytest.raises(ValueError, match=r"-1.* do not fit"):
        index_png(np.array([[-1]]), palette(classes))


def test_denormalize():
    image = random_image(4, 5)
    mean, std = np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.5, 0.6])
    normalized = ((image / 255 - mean) / std).astype(np.float32).transpose(2, 0, 1)
    np.testing.assert_array_equal(denormalize(normalized, mean, std), image)
    assert denormalize(np.full((3, 1, 1), 99.0), mean, std).tolist() == [[[255, 255, 255]]]


# ---- legends and rows


@pytest.mark.parametrize(("height", "width", "classes"), [(40, 600, 40), (1, 1, 1)])
def test_a_legend_with_all_colors_is_below_the_unchanged_picture(height, width, classes):
    picture = random_image(height, width)
    names = [["background", "line\nbreak", "a rather long class name"][number % 3] for number in range(classes)]
    result = with_legend(picture, names, palette(classes))
    np.testing.assert_array_equal(result[:height, :width], picture)
    assert colors_of(palette(classes)) <= colors_of(result[height:])
    assert (result[-1] == 255).all()
    assert (result[height:, -1] == 255).all()
    assert with_legend(picture, [], palette(0)) is picture


def test_pictures_are_side_by_side_below_their_titles():
    pictures = [random_image(50, 70), random_image(80, 40), random_image(30, 90)]
    result = side_by_side(pictures, ["image", "a title that is wider than its picture", "truth"])
    top = result.shape[0] - 80 - 7  # the margin has 7 pixels
    found = [
        next(x for x in range(result.shape[1]) if np.array_equal(result[top : top + h, x : x + w], picture))
        for picture in pictures
        for h, w in [picture.shape[:2]]
    ]
    assert found == sorted(found)
    assert found[2] - found[1] > 150  # the wide title fits
    assert not (result[:top] == 255).all()


# ---- fonts


@pytest.fixture
def installed(monkeypatch):
    """The list of installed fonts, empty at first."""
    paths = []
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: paths)
    fonts._find_cjk_font.cache_clear()
    yield paths
    fonts._find_cjk_font.cache_clear()


def test_a_cjk_font_is_used_where_a_text_needs_one(tmp_path, installed):
    for name in ("Other.ttf", "NotoSansCJK-Bold.ttc", "NotoSansCJK-Regular.ttc"):
        (tmp_path / name).symlink_to(fonts.choose_font(["a"], 20).path)
        installed.append(str(tmp_path / name))
    font = fonts.choose_font(["天空", "a"], 23)
    assert (font.path, font.size) == (installed[2], 23)
    assert fonts.choose_font(["Größe"], 20).path.endswith("DejaVuSans.ttf")


def test_a_missing_cjk_font_is_reported_once(installed, capsys):
    for _ in range(2):
        assert fonts.choose_font(["天空"], 20).path.endswith("DejaVuSans.ttf")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: no font with Chinese, ")


# ---- files


def test_pictures_replace_those_of_the_last_run_but_no_input_and_none_of_this_run(tmp_path):
    picture = {"labels": Image.new("L", (1, 1)), "overlay": Image.new("L", (1, 1))}
    inputs = [tmp_path / "one" / "a.png", tmp_path / "two" / "a.png", tmp_path / "b.png", tmp_path / "b_overlay.png"]
    for number, file in enumerate(inputs):
        file.parent.mkdir(exist_ok=True)
        Image.new("L", (9, 9), number).save(file)
    (tmp_path / "link.png").symlink_to(inputs[3])
    before = [file.read_bytes() for file in inputs]
    for _ in range(2):
        folder = PictureFolder(tmp_path, [*map(str, inputs[:3]), str(tmp_path / "link.png")])
        paths = [folder.save(str(file), picture)["labels"] for file in inputs[:3]]
        assert paths == [str(tmp_path / f"{name}_labels.png") for name in ("a", "a_2", "b_2")]
    assert [file.read_bytes() for file in inputs] == before


def test_the_pictures_of_an_image_with_the_longest_name_have_shorter_ones(tmp_path):
    folder = PictureFolder(tmp_path, [])
    for number in ("", "_2"):  # images that differ in the last letter only
        paths = folder.save("天" * 83 + "a.png", {"receptive_field": Image.new("L", (1, 1))})
        assert paths == {"receptive_field": str(tmp_path / f"{'天' * 66}{number}_receptive_field.png")}
