"""What all kinds of data sets share, and the digits."""

import numpy as np
import pytest

from common.demo_data import wheels as demo_data
from common.errors import UserError
from image_classification.datasets import KINDS, build_dataset
from tests.helpers.dataset_cases import fails


def test_kind_and_path_are_checked(tmp_path, monkeypatch):
    fails(["cifar", *KINDS], "cifar", tmp_path, "val")
    fails("-data_path", "folder", None, "val")
    fails([str(tmp_path / "none"), "-data_path"], "folder", tmp_path / "none", "val")
    fails("apt-get install dataset-none", "fashion_mnist", "/usr/share/datasets/none", "val")
    monkeypatch.setenv("HOME", str(tmp_path))
    fails(str(tmp_path / "none"), "folder", "~/none", "val")


def test_mnist5k(tmp_path, monkeypatch):
    roots = []

    def load_mnist5k(*root):
        roots.append(root)
        images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1).repeat(28, 1).repeat(28, 2)
        labels = np.array([3, 1, 4, 1, 5, 9])
        return (images[:4], labels[:4]), (images[4:], labels[4:])

    monkeypatch.setattr(demo_data, "load_mnist5k", load_mnist5k)
    train = build_dataset("mnist5k", None, "train")
    val = build_dataset("mnist5k", str(tmp_path), "val", num_classes=10)
    assert roots == [(), (tmp_path,)]
    assert (train.labels.tolist(), val.labels.tolist()) == ([3, 1, 4, 1], [5, 9])
    assert (val.num_classes, val.class_names) == (10, list("0123456789"))
    assert val.load(1).getpixel((0, 0)) == (5, 5, 5)
    assert val.describe(1) == "mnist5k val image 1"


def test_a_file_in_place_of_the_folder_is_told(tmp_path):
    (tmp_path / "list.txt").touch()
    with pytest.raises(UserError, match=r"list\.txt is not a folder; give the folder of the data as -data_path"):
        build_dataset("folder", tmp_path / "list.txt", "train")
