"""List files, and one case for each kind of mistake in them."""

import cv2
import numpy as np
import pytest

from image_classification.datasets import build_dataset
from tests.helpers.dataset_cases import assert_refused, fails, save_image


@pytest.fixture
def listed(tmp_path):
    save_image(tmp_path / "val" / "a.png", color=(1, 2, 3))
    save_image(tmp_path / "val" / "with space.png", color=(4, 5, 6))
    (tmp_path / "val_list.txt").write_text("# images\n\nval/a.png 1\nval/with space.png\t0\n")
    return tmp_path


def test_list(listed):
    dataset = build_dataset("list", listed, "val", num_classes=3)
    assert (dataset.labels.dtype, dataset.labels.tolist()) == (np.int64, [1, 0])
    assert (dataset.num_classes, dataset.class_names) == (3, None)
    assert [dataset.load(index).getpixel((0, 0)) for index in range(2)] == [(1, 2, 3), (4, 5, 6)]
    assert dataset.describe(1) == f"{listed / 'val' / 'with space.png'} (val_list.txt line 4)"
    assert dataset.names().tolist() == [b"val/a.png", b"val/with space.png"]
    assert build_dataset("imagenet2012", listed, "val").num_classes == 2


def test_a_mistyped_label_does_not_make_a_model_that_cannot_be_loaded(listed):
    (listed / "train_list.txt").write_text("val/a.png 1\nval/a.png 100000\n")
    fails(["100,001 classes, more than 65,536", "correct the largest label"], "list", listed, "train")


def test_list_with_byte_order_mark_and_windows_line_ends(listed):
    text = (listed / "val_list.txt").read_text()
    (listed / "val_list.txt").write_bytes(b"\xef\xbb\xbf" + text[text.index("val/") :].replace("\n", "\r\n").encode())
    assert build_dataset("list", listed, "val").labels.tolist() == [1, 0]


def test_list_class_names(listed):
    (listed / "label_list.txt").write_text("tench, Tinca tinca\nhen\n")
    assert build_dataset("list", listed, "val").class_names == ["tench, Tinca tinca", "hen"]
    fails(["label_list.txt", "2", "1000"], "list", listed, "val", num_classes=1000)
    (listed / "label_list.txt").write_text("1 hen\n0 tench, Tinca tinca\n")  # as PaddleClas writes it
    assert build_dataset("list", listed, "val").class_names == ["tench, Tinca tinca", "hen"]
    (listed / "label_list.txt").write_text("101 dalmatians\n7 dwarfs\n")
    assert build_dataset("list", listed, "val").class_names == ["101 dalmatians", "7 dwarfs"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("val/a.png", ["'val/a.png'", "no label"]),
        ("val/a.png 1.0", ["'1.0'", "integer", "relative/path.jpg LABEL"]),
        ("val/a.png -1", ["-1", "3 classes"]),
        ("val/a.png 3", ["label 3", "0..2", "3 classes"]),
    ],
)
def test_list_wrong_line(listed, line, parts):
    with (listed / "val_list.txt").open("a") as file:
        file.write(line + "\n")
    fails(["val_list.txt line 5", *parts], "list", listed, "val", num_classes=3)


def test_list_missing_or_empty(tmp_path):
    fails([str(tmp_path / "train_list.txt"), "relative/path.jpg LABEL"], "list", tmp_path, "train")
    (tmp_path / "val_list.txt").write_text("# nothing\n\n")
    fails(["val_list.txt", "no images"], "list", tmp_path, "val")


def test_only_a_sign_with_a_blank_begins_a_comment(listed):
    save_image(listed / "#1" / "b.png")
    (listed / "train_list.txt").write_text("# images\n#1/b.png 0\nval/a.png 1\n")
    assert len(build_dataset("list", listed, "train", num_classes=2)) == 2


def test_missing_and_unreadable_images(listed):
    dataset = build_dataset("list", listed, "val")
    (listed / "val" / "a.png").write_bytes(b"not an image\n")
    assert_refused(lambda: dataset.load(0), "cannot read image", "a.png (val_list.txt line 3): its content is none of")
    (listed / "val" / "a.png").unlink()
    assert_refused(lambda: dataset.load(0), "missing", "a.png", "val_list.txt line 3")
    fails(["a.png", "val_list.txt line 3"], "list", listed, "val")


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3)])
def test_images_of_16_bits_give_a_warning(listed, shape):
    assert build_dataset("list", listed, "val").warnings() == []
    assert cv2.imwrite(str(listed / "val" / "a.png"), np.full(shape, 4095, np.uint16))
    (warning,) = build_dataset("list", listed, "val").warnings()
    assert warning.startswith("1 of 2 inspected images have more than 8 bits per channel")
    (listed / "val" / "a.png").write_bytes(b"not an image")
    assert build_dataset("list", listed, "val").warnings() == []


def test_list_early_check_is_a_sample(tmp_path, monkeypatch):
    (tmp_path / "train_list.txt").write_text("".join(f"{number}.png 0\n" for number in range(5000)))
    checked = []
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: checked.append(path.stem) or path.suffix == ".png")
    build_dataset("list", tmp_path, "train")
    numbers = {int(stem) for stem in checked if stem.isdecimal()}
    assert {*range(100), *range(4900, 5000)} <= numbers
    assert 1000 <= len(numbers) <= 1200
