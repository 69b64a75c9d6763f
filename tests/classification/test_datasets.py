"""Each kind of data set, and one case for each kind of mistake in its data."""

import gzip
import os
import struct
import tracemalloc
import unicodedata

import cv2
import numpy as np
import pytest
from PIL import Image

from common.demo_data import wheels as demo_data
from common.errors import UserError
from image_classification.datasets import FASHION_MNIST_CLASSES, KINDS, build_dataset


def save_image(path, size=(8, 6), color=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def fails(parts, *args, **kwargs):
    """Expect a one-line UserError from build_dataset whose message has all the given parts."""
    assert_refused(lambda: build_dataset(*args, **kwargs), *([parts] if isinstance(parts, str) else parts))


def assert_refused(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


# ---- common to all kinds


def test_kind_and_path_are_checked(tmp_path, monkeypatch):
    fails(["cifar", *KINDS], "cifar", tmp_path, "val")
    fails("-data_path", "folder", None, "val")
    fails([str(tmp_path / "none"), "-data_path"], "folder", tmp_path / "none", "val")
    fails("apt-get install dataset-none", "fashion_mnist", "/usr/share/datasets/none", "val")
    monkeypatch.setenv("HOME", str(tmp_path))
    fails(str(tmp_path / "none"), "folder", "~/none", "val")


# ---- list files


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
        ("val/a.png 1.0", ["'1.0'", "integer"]),
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


# ---- class folders


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
    names = train.names().tolist()
    assert names == [b"train/cat/1.JPG", b"train/cat/deep/er/2.png", b"train/dog/1.png"]
    monkeypatch.chdir(trees)
    assert build_dataset("folder", ".", "train").names().tolist() == names
    fails(["2 classes", "1000", "MODEL.NUM_CLASSES"], "folder", trees, "train", num_classes=1000)


def test_folder_mistakes(trees, tmp_path):
    save_image(trees / "val" / "horse" / "1.png")
    fails([f"class folder {trees / 'val' / 'horse'}", str(trees / "train")], "folder", trees, "val")
    (trees / "train" / "emu").mkdir()
    fails(str(trees / "train" / "emu"), "folder", trees, "train")
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


def test_folder_without_splits_holds_out_a_fixed_fifth_of_each_class(tmp_path):
    for name, count in (("many", 20), ("two", 2), ("one", 1)):
        for number in range(count):
            save_image(tmp_path / name / f"{number}.png")
    train, val = (build_dataset("folder", tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["many", "one", "two"]
    assert np.bincount(train.labels).tolist() == [16, 1, 1]
    assert np.bincount(val.labels, minlength=3).tolist() == [4, 0, 1]
    assert len({*train.names(), *val.names()}) == 23
    # Results are only comparable while the split never changes.
    assert [os.fsdecode(name) for name in val.names()[:4]] == [f"many/{number}.png" for number in (1, 16, 8, 9)]
    for name in ("cat", "dog"):
        save_image(tmp_path / "single" / name / "a.png")
    fails("too few images for the val split", "folder", tmp_path / "single", "val")


# ---- IDX files


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path, images, labels, prefix="t10k", compress=False):
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = idx_bytes(np.asarray(array, np.uint8))
        (path / f"{name}.gz").write_bytes(gzip.compress(content)) if compress else (path / name).write_bytes(content)


IDX_IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize(("split", "prefix", "compress"), [("train", "train", False), ("val", "t10k", True)])
def test_idx(tmp_path, split, prefix, compress):
    write_idx(tmp_path, IDX_IMAGES, [2, 0, 1], prefix, compress)
    dataset = build_dataset("idx", tmp_path, split)
    assert (dataset.labels.dtype, dataset.labels.tolist()) == (np.int64, [2, 0, 1])
    assert (dataset.num_classes, dataset.class_names) == (3, None)
    image = dataset.load(1, min_size=1)
    np.testing.assert_array_equal(np.asarray(image), np.repeat(IDX_IMAGES[1][:, :, None], 3, axis=2))
    assert f"{prefix}-images-idx3-ubyte" in dataset.describe(1)
    assert len({name.partition(b"-")[2] for name in dataset.names()}) == 3  # CRC-32


def test_idx_class_names(tmp_path):
    write_idx(tmp_path, IDX_IMAGES, [9, 0, 1])
    assert build_dataset("mnist", tmp_path, "val").class_names == list("0123456789")
    assert build_dataset("fashion_mnist", tmp_path, "val", num_classes=10).class_names == FASHION_MNIST_CLASSES
    fails(["10 classes", "100"], "mnist", tmp_path, "val", num_classes=100)


def test_idx_missing_or_contradictory(tmp_path):
    fails([IMAGES, f"{IMAGES}.gz"], "idx", tmp_path, "val")
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 12])
    fails([LABELS, "entry 2", "label 12", "10 classes"], "mnist", tmp_path, "val")
    write_idx(tmp_path, IDX_IMAGES, [0, 1])
    fails([IMAGES, LABELS, "3 images", "2 labels"], "idx", tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"<html>", "begins with 3c68746d"),
        (idx_bytes(IDX_IMAGES)[:-1], "59 bytes of content"),
        (idx_bytes(IDX_IMAGES) + b"x", "more bytes of content"),
        (idx_bytes(IDX_IMAGES)[:10], "its header is cut off"),
        (idx_bytes(np.zeros((3, 1, 33), np.uint8)), "33x1 pixels, and one side is more than 32 times the other"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "header"),
        (idx_bytes(IDX_IMAGES[:0]), "empty"),
    ],
)
def test_idx_malformed(tmp_path, content, part):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 2])
    (tmp_path / IMAGES).write_bytes(content)
    fails([IMAGES, part], "idx", tmp_path, "val")


@pytest.mark.parametrize("images", [3, 10**9])
def test_idx_that_unpacks_to_more_than_it_states_or_may_is_not_unpacked(tmp_path, images):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 2])
    content = struct.pack(">4B3I", 0, 0, 8, 3, images, 5, 4) + bytes(5 * 10**7)
    (tmp_path / IMAGES).unlink()
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(content, 1))
    del content
    tracemalloc.start()
    try:
        fails([f"{IMAGES}.gz", "bytes"], "idx", tmp_path, "val")
        assert tracemalloc.get_traced_memory()[1] < 2 * 10**7
    finally:
        tracemalloc.stop()


def test_idx_broken_gzip(tmp_path):
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(idx_bytes(IDX_IMAGES), mtime=0)[:-20])
    fails(["cannot read", f"{IMAGES}.gz"], "idx", tmp_path, "val")


# ---- 5,000 digits


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
