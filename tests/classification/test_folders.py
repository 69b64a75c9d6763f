"""Class folders, and one case for each kind of mistake in them."""

import os
import unicodedata

import numpy as np
import pytest

from image_classification.datasets import build_dataset
from tests.helpers.dataset_cases import fails, save_image


@pytest.fixture
def trees(tmp_path):
    for name in ("train/dog/1.png", "train/cat/1.JPG", "train/cat/deep/er/2.png", "val/dog/3.png"):
        save_image(tmp_path / name)
    for name in ("train/cat/.hidden.png", "train/cat/notes.txt", "train/.cache/x.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_folder_trees(trees, monkeypatch):
    train, val = (build_dataset("folder", trees, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["cat", "dog"]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 0, 1], [1])
    assert train.describe(1) == str(trees / "train" / "cat" / "deep" / "er" / "2.png")
    assert train.load(1).size == (8, 6)
    (warning,) = train.warnings()
    assert warning.startswith("1 files are left out")
    assert f"1 .txt, such as {trees}/train/cat/notes.txt" in warning
    assert not val.warnings()
    names = train.names().tolist()
    assert names == [b"train/cat/1.JPG", b"train/cat/deep/er/2.png", b"train/dog/1.png"]
    monkeypatch.chdir(trees)
    assert build_dataset("folder", ".", "train").names().tolist() == names
    fails(["2 classes", "1000", "MODEL.NUM_CLASSES"], "folder", trees, "train", num_classes=1000)


def test_folder_mistakes(trees, tmp_path):
    save_image(trees / "val" / "horse" / "1.png")
    fails([f"class folder {trees / 'val' / 'horse'}", str(trees / "train")], "folder", trees, "val")
    (trees / "train" / "emu").mkdir()
    (trees / "train" / "fox").mkdir()
    (trees / "train" / "fox" / "1.HEIC").touch()
    fails([f"{trees / 'train' / 'emu'}, {trees / 'train' / 'fox'}", "1 .txt, 1 .heic"], "folder", trees, "train")
    (tmp_path / "flat").mkdir()
    fails([str(tmp_path / "flat"), "no class folders"], "folder", tmp_path / "flat", "train")
    save_image(tmp_path / "one" / "val" / "dog" / "1.png")
    fails(["only one class folder, dog", "train/CLASS/*.jpg"], "folder", tmp_path / "one", "val")
    fails(str(tmp_path / "one" / "train"), "folder", tmp_path / "one", "train")


@pytest.mark.parametrize("names", [("training", "validation"), ("Train", "Val"), ("TRAIN", "valid")])
def test_folders_of_splits_have_several_names(tmp_path, names):
    for tree in names:
        for class_name in ("cat", "dog"):
            save_image(tmp_path / tree / class_name / "1.png")
    assert [build_dataset("folder", tmp_path, split).class_names for split in ("train", "val")] == [["cat", "dog"]] * 2
    save_image(tmp_path / "val2" / "cat" / "1.png")
    (tmp_path / "val2").rename(tmp_path / "VALIDATION")
    fails("rename or remove one", "folder", tmp_path, "val")


def test_links_are_followed_and_files_of_the_system_ignored(tmp_path):
    for name in ("elsewhere/1.png", "data/dog/1.png", "data/cat/._1.png", "data/cat/.ipynb_checkpoints/1.png"):
        save_image(tmp_path / name)
    (tmp_path / "data" / "cat" / "Thumbs.db").touch()
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "circle").symlink_to(tmp_path / "data" / "cat")
    dataset = build_dataset("folder", tmp_path / "data", "train")
    assert dataset.names().tolist() == [b"cat/linked/1.png", b"dog/1.png"]
    assert not dataset.warnings()


def test_class_folders_of_both_unicode_forms_are_one_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "grün") for form in ("NFC", "NFD"))
    for name in (f"train/{decomposed}", "train/gru", f"val/{composed}"):
        save_image(tmp_path / name / "1.png")
    train, val = (build_dataset("folder", tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["gru", composed]
    assert (train.labels.tolist(), val.labels.tolist()) == ([0, 1], [1])
    assert train.load(1).size == (8, 6)
    save_image(tmp_path / "train" / composed / "1.png")
    fails(["two class folders", "Unicode form"], "folder", tmp_path, "train")


def test_the_classes_of_the_weights_number_the_folders(trees):
    known = ["dog", "emu", "cat"]
    (trees / "val" / "emu").mkdir()  # an empty folder of a known class
    dataset = build_dataset("folder", trees, "val", 3, known)
    assert (dataset.class_names, dataset.labels.tolist()) == (known, [0])
    save_image(trees / "val" / "horse" / "1.png")
    fails(["horse is not in the classes of the weights"], "folder", trees, "val", 3, known)


def test_folders_may_have_the_numbers_of_the_classes_as_names(tmp_path):
    known = [f"n{number:08d}" for number in range(12)]
    for number in (0, 2, 10, 11):
        save_image(tmp_path / "val" / str(number) / "1.png")
    dataset = build_dataset("folder", tmp_path, "val", 12, known)
    assert (dataset.class_names, dataset.labels.tolist()) == (known, [0, 2, 10, 11])
    assert dataset.warnings() == ["the class folders are taken as the numbers of the classes: 0 is n00000000"]
    save_image(tmp_path / "val" / "12" / "1.png")  # a number that is no class: the names are just names
    fails(["names 5 classes", "the model has 12"], "folder", tmp_path, "val", 12, known)


def test_folders_that_are_numbers_are_numbered_as_lists_number_them(tmp_path):
    names = [str(number) for number in range(11)]
    for name in names:
        save_image(tmp_path / "train" / name / "1.png")
    assert build_dataset("folder", tmp_path, "train").class_names == names
    (tmp_path / "train" / "0").rename(tmp_path / "train" / "11")  # names, of which none is 0
    assert build_dataset("folder", tmp_path, "train").class_names == sorted([*names[1:], "11"])


def test_folder_without_splits_holds_out_a_fixed_fifth_of_each_class(tmp_path):
    for name, count in (("g", 10), ("many", 100), ("two", 2), ("one", 1)):  # of g's names, 6 have a low hash
        for number in range(count):
            save_image(tmp_path / name / f"{number}.png")
    train, val = (build_dataset("folder", tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["g", "many", "one", "two"]
    assert np.bincount(train.labels).tolist() == [7, 79, 1, 1]
    assert np.bincount(val.labels, minlength=4).tolist() == [3, 21, 0, 1]
    assert [train.warnings(), *val.warnings()] == [
        [],
        f"{tmp_path} has no val folder, so about 20% of each class, always the same, are the validation split",
    ]
    assert len({*train.names(), *val.names()}) == 113
    # Results are only comparable while the split never changes.
    assert [os.fsdecode(name) for name in val.names()[3:7]] == [f"many/{number}.png" for number in (20, 25, 30, 32)]
    for number in range(100, 150):
        save_image(tmp_path / "many" / f"{number}.png")
    assert not set(train.names()) & set(build_dataset("folder", tmp_path, "val").names())
    save_image(tmp_path / "beside.png")
    assert "1 images beside the class folders" in build_dataset("folder", tmp_path, "train").warnings()[0]
    for name in ("cat", "dog"):
        save_image(tmp_path / "single" / name / "a.png")
    fails("too few images for the val split", "folder", tmp_path / "single", "val")
    for name in ("bus", "train"):
        save_image(tmp_path / "vehicles" / name / "a.png")
    fails(["if it is a class, rename it"], "folder", tmp_path / "vehicles", "train")
    for name in ("val/cat", "val/dog", "train/cat", "train/dog"):
        (tmp_path / "emptied" / name).mkdir(parents=True)
    fails("have no images: add some", "folder", tmp_path / "emptied", "val")
