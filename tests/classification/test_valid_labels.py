"""Files with several valid labels for an image."""

from __future__ import annotations

import json

import numpy as np
import pytest

from image_classification.dataset_types import ArrayDataset
from image_classification.datasets import build_dataset
from image_classification.valid_labels import read_valid_labels
from tests.helpers.dataset_cases import assert_refused, save_image


@pytest.fixture
def images(tmp_path):
    """Three images, whose file names have another order than their classes."""
    for name in ("cat/3.png", "dog/1.png", "dog/2.png"):
        save_image(tmp_path / "val" / name)
    return build_dataset("folder", tmp_path, "val")


def write(tmp_path, content):
    path = tmp_path / "real.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_file_names_order_the_labels(tmp_path, images):
    labels = read_valid_labels(write(tmp_path, [[1], [], [0, 1]]), images)
    assert labels.dtype == np.int64
    assert labels.tolist() == [[0, 1], [1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("[[1]", ["real.json", "not valid JSON"]),
        ({"a": 1}, ["real.json", "labels", "a list"]),
        ([[1], [0], [2]], ["labels[2][0] is 2", "from 0 to 1"]),
        ([[1], [0], [-1]], ["labels[2][0] is -1"]),
        ([[1], [0], [0.5]], ["labels[2][0] is 0.5"]),
        ([[1], [0]], ["labels of 2 images, but there are 3"]),
        ([[], [], []], ["has no label"]),
        ([[], [0] * 101, []], ["has 101 labels for an image", "more than 100"]),
    ],
)
def test_wrong_labels_are_named(tmp_path, images, content, parts):
    assert_refused(lambda: read_valid_labels(write(tmp_path, content), images), *parts)


def test_images_that_names_do_not_order_are_refused(tmp_path, images):
    path = write(tmp_path, [[0], [0], [0], [0]])
    save_image(tmp_path / "val" / "cat" / "1.png")
    twice = build_dataset("folder", tmp_path, "val")
    assert_refused(lambda: read_valid_labels(path, twice), "cat/1.png and ", "dog/1.png have the same name")
    digits = ArrayDataset(np.zeros((4, 28, 28), np.uint8), np.zeros(4, np.int64), None, 10, "digits")
    assert_refused(lambda: read_valid_labels(path, digits), "images in files")
    assert_refused(lambda: read_valid_labels(tmp_path / "none.json", twice), "none.json", "DATA.LABELS_JSON")
