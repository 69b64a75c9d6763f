"""Charts: their size, and what they show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.legend import Legend
from PIL import Image

from common.pictures.charts import draw_confusion, draw_precision_recall


def draw(function, *arguments) -> Image.Image:
    file = io.BytesIO()
    function(file, *arguments)
    picture = Image.open(file)
    assert picture.format == "PNG"
    assert picture.info["dpi"] == pytest.approx((150, 150), abs=1)
    return picture.convert("RGB")


@pytest.fixture
def shown(monkeypatch):
    """The matrices that are drawn."""
    matrices, imshow = [], Axes.imshow

    def record(axes, matrix, *arguments, **options):
        matrices.append(matrix)
        return imshow(axes, matrix, *arguments, **options)

    monkeypatch.setattr(Axes, "imshow", record)
    return matrices


def test_a_confusion_matrix_is_in_percent_of_each_true_class(shown):
    matrix = np.array([[3, 1], [0, 0]])
    picture = draw(draw_confusion, matrix, ["no $math$", "never seen"])
    np.testing.assert_array_equal(shown[0], [[75, 25], [np.nan, np.nan]])
    assert 2.4 * 150 < min(picture.size) < max(picture.size) < 6 * 150
    assert picture.getpixel((2, 2)) == (255, 255, 255)


def test_of_many_classes_those_with_the_most_confusions_are_drawn(shown):
    matrix = 50 * np.eye(40, dtype=np.int64)
    matrix[12, 3], matrix[7, 35] = 9, 5
    picture = draw(draw_confusion, matrix, [f"a name that is far too long {number}" for number in range(40)])
    assert shown[0].shape == (30, 30)
    classes = sorted({12, 3, 7, 35, *range(29)})[:30]  # the four, and the first of those without confusions
    np.testing.assert_allclose(shown[0], (100 * matrix / matrix.sum(1, keepdims=True))[np.ix_(classes, classes)])
    assert 9 * 150 < min(picture.size) < max(picture.size) < 14 * 150


def test_each_kind_of_precision_recall_curves_has_a_panel(monkeypatch):
    texts, get_texts = [], Legend.get_texts
    monkeypatch.setattr(Legend, "get_texts", lambda legend: texts.append(get_texts(legend)) or texts[-1])
    recall, classes = np.linspace(0, 100, 101), 12
    curves = np.linspace(100, 0, 101)[:, None] * np.linspace(0.5, 1, classes)
    curves[:, 3] = np.nan
    names = [f"_{number}" for number in range(classes)]
    one, two = (draw(draw_precision_recall, recall, dict.fromkeys(kinds, curves), names) for kinds in ("a", "ab"))
    assert [text.get_text().partition(":")[0] for text in texts[0]] == [
        *(f" _{number}" for number in range(11) if number != 3),
        "mean",
    ]
    assert two.size == (2 * one.width, one.height) == (2 * 870, 570)
    colors = set(map(tuple, np.asarray(one).reshape(-1, 3).tolist()))
    assert {(0, 0, 0), (204, 204, 204)} <= colors  # the mean, and the curve that is not among the lowest
