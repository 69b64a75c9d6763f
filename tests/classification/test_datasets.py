"""Every kind of dataset, and every mistake in its data."""

import gzip
import io
import re
import struct

import numpy as np
import pytest
from PIL import Image

from common.demo_data import wheels as demo_data
from common.errors import UserError
from image_classification.datasets import FASHION_MNIST_CLASSES, KINDS, build_dataset, to_rgb


def save_image(path, size=(8, 6), color=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path)


def fails(match, *args, **kwargs):
    """Expect a one-line UserError from build_dataset whose message has all the given parts."""
    with pytest.raises(UserError) as caught:
        build_dataset(*args, **kwargs)
    assert_message(caught.value, match)


def assert_message(error, parts):
    message = str(error)
    assert "\n" not in message
    for part in [parts] if isinstance(parts, str) else parts:
        assert part in message


# ---- common to all kinds


def test_unknown_kind_lists_the_choices(tmp_path):
    fails(["cifar", *KINDS], "cifar", tmp_path, "val")


def test_path_is_needed_and_must_exist(tmp_path):
    fails("-data_path", "folder", None, "val")
    fails([str(tmp_path / "none"), "-data_path"], "folder", tmp_path / "none", "val")
    fails("apt-get install dataset-none", "fashion_mnist", "/usr/share/datasets/none", "val")


def test_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'test'"):
        build_dataset("folder", tmp_path, "test")


def test_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_image(tmp_path / "data" / "val" / "cat" / "a.png")
    assert len(build_dataset("folder", "~/data", "val")) == 1


# ---- conversion to RGB


def pixel(image):
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def reopened(image, kind):
    file = io.BytesIO()
    image.save(file, kind)
    return Image.open(file)


def test_grey_palette_alpha_and_bilevel():
    assert pixel(to_rgb(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert pixel(to_rgb(Image.new("RGBA", (2, 2), (1, 2, 3, 128)))) == (1, 2, 3)
    assert pixel(to_rgb(Image.new("LA", (2, 2), (9, 0)))) == (9, 9, 9)
    assert pixel(to_rgb(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert pixel(to_rgb(Image.new("RGB", (2, 2), (10, 200, 30)).quantize(4))) == (10, 200, 30)


def test_rgb_is_not_copied():
    image = reopened(Image.new("RGB", (2, 2), (10, 200, 30)), "PNG")
    assert to_rgb(image) is image
    assert pixel(image) == (10, 200, 30)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_loaded_image_outlives_its_file(listed, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    path = listed / "val" / "a.png"
    Image.fromarray(pixels).save(path, kind)
    image = build_dataset("list", listed, "val").load(0)
    path.write_bytes(b"")
    np.testing.assert_array_equal(np.asarray(image), pixels)


@pytest.mark.filterwarnings("error")
def test_palette_with_transparency():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.info["transparency"] = b"\x00\x80"
    assert pixel(to_rgb(image)) == (10, 200, 30)


def test_cmyk_jpeg():
    image = to_rgb(reopened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"))
    np.testing.assert_allclose(pixel(image), (255, 0, 0), atol=3)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_is_rescaled(kind):
    levels = np.array([[0, 128, 257 * 100, 65535]], np.uint16)
    rgb = np.asarray(to_rgb(reopened(Image.fromarray(levels), kind)))
    assert rgb.dtype == np.uint8
    assert rgb[0].tolist() == [[0] * 3, [0] * 3, [100] * 3, [255] * 3]


def test_32_bit_integers_are_taken_as_16_bit_levels():
    rgb = np.asarray(to_rgb(Image.fromarray(np.array([[-5, 257 * 100, 70000]], np.int32))))
    assert rgb[0, :, 0].tolist() == [0, 100, 255]


def test_floating_point_pixels_are_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    for name in "ab":
        Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "cat" / f"{name}.tif")
    with pytest.raises(UserError, match="floating-point"):
        build_dataset("folder", tmp_path, "train").load(0)


# ---- list files


@pytest.fixture
def listed(tmp_path):
    save_image(tmp_path / "val" / "a.png", color=(1, 2, 3))
    save_image(tmp_path / "val" / "with space.png", color=(4, 5, 6))
    (tmp_path / "val_list.txt").write_text("# images\n\nval/a.png 1\nval/with space.png\t0\n")
    return tmp_path


@pytest.mark.parametrize("kind", ["imagenet2012", "list"])
def test_list(listed, kind):
    dataset = build_dataset(kind, listed, "val", num_classes=3)
    assert len(dataset) == 2
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [1, 0]
    assert dataset.num_classes == 3
    assert dataset.class_names is None
    assert [pixel(dataset.load(index)) for index in range(2)] == [(1, 2, 3), (4, 5, 6)]
    assert dataset.describe(1) == f"{listed / 'val' / 'with space.png'} (val_list.txt line 4)"


def test_list_counts_its_own_classes(listed):
    assert build_dataset("list", listed, "val").num_classes == 2


def test_list_of_a_windows_editor(listed):
    text = (listed / "val_list.txt").read_text()
    (listed / "val_list.txt").write_bytes(b"\xef\xbb\xbf" + text[text.index("val/") :].replace("\n", "\r\n").encode())
    assert build_dataset("list", listed, "val").labels.tolist() == [1, 0]


@pytest.mark.parametrize("name", ["class_names.txt", "label_list.txt"])
def test_list_class_names(listed, name):
    (listed / name).write_text("tench, Tinca tinca\nhen\n")
    dataset = build_dataset("list", listed, "val")
    assert dataset.class_names == ["tench, Tinca tinca", "hen"]
    fails([name, "2", "1000"], "list", listed, "val", num_classes=1000)


def test_list_file_missing(tmp_path):
    fails([str(tmp_path / "train_list.txt"), "relative/path.jpg LABEL"], "list", tmp_path, "train")


@pytest.mark.parametrize("text", ["", "# nothing\n\n"])
def test_list_empty(tmp_path, text):
    (tmp_path / "val_list.txt").write_text(text)
    fails(["val_list.txt", "no images"], "list", tmp_path, "val")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("val/a.png", ["'val/a.png'", "no label"]),
        ("val/a.png cat", ["'cat'", "integer"]),
        ("val/a.png 1.0", ["'1.0'", "integer"]),
        ("val/a.png 1_0", ["'1_0'", "integer"]),
        ("val/a.png 99999999999999999999", ["integer"]),
        ("val/a.png -1", ["-1", "3 classes"]),
        ("val/a.png 3", ["label 3", "0..2", "3 classes"]),
    ],
)
def test_list_wrong_line(listed, line, parts):
    with (listed / "val_list.txt").open("a") as file:
        file.write(line + "\n")
    fails(["val_list.txt line 5", *parts], "list", listed, "val", num_classes=3)


def test_list_negative_label_without_number_of_classes(listed):
    (listed / "val_list.txt").write_text("val/a.png 1\nval/a.png -1\n")
    fails(["val_list.txt line 2", "-1"], "list", listed, "val")


def test_list_missing_image_is_found_early(listed):
    (listed / "val" / "with space.png").unlink()
    fails(["with space.png", "val_list.txt line 4"], "list", listed, "val")


def test_list_missing_image_is_found_on_loading(listed):
    dataset = build_dataset("list", listed, "val")
    (listed / "val" / "a.png").unlink()
    with pytest.raises(UserError) as caught:
        dataset.load(0)
    assert_message(caught.value, ["missing", "a.png", "val_list.txt line 3"])


def test_list_early_check_is_a_sample(tmp_path, monkeypatch):
    (tmp_path / "train_list.txt").write_text("".join(f"{number}.png 0\n" for number in range(5000)))
    looked_at = []
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: looked_at.append(path.stem) or path.suffix == ".png")
    build_dataset("list", tmp_path, "train")
    numbers = {int(stem) for stem in looked_at if stem.isdecimal()}
    assert {*range(100), *range(4900, 5000)} <= numbers
    assert 1000 <= len(numbers) <= 1200


# ---- unreadable images


def jpeg_bytes(size=(640, 480)):
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def png_with_a_wrong_checksum():
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[29] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image\n", jpeg_bytes()[:5000], jpeg_bytes()[:30], png_with_a_wrong_checksum(), b"BM" + b"\0" * 20],
)
def test_unreadable_image(listed, content):
    (listed / "val" / "a.png").write_bytes(content)
    dataset = build_dataset("list", listed, "val")
    with pytest.raises(UserError) as caught:
        dataset.load(0)
    assert_message(caught.value, ["cannot read image", "a.png", "val_list.txt line 3"])


@pytest.mark.parametrize("error", [SyntaxError, ValueError, struct.error, Image.DecompressionBombError, IndexError])
def test_whatever_the_decoder_raises(listed, monkeypatch, error):
    dataset = build_dataset("list", listed, "val")

    def broken(path):
        raise error("two\nlines")

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(UserError) as caught:
        dataset.load(0)
    assert_message(caught.value, "two lines")


def test_reduced_decoding_keeps_the_minimum_size(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "a.jpg").write_bytes(jpeg_bytes((640, 480)))
    dataset = build_dataset("folder", tmp_path, "val")
    sizes = {min_size: dataset.load(0, min_size).size for min_size in (None, 481, 240, 100, 1)}
    assert sizes == {None: (640, 480), 481: (640, 480), 240: (320, 240), 100: (160, 120), 1: (80, 60)}


def test_exif_orientation_is_not_applied(tmp_path):
    (tmp_path / "val" / "cat").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(tmp_path / "val" / "cat" / "a.jpg", exif=exif)
    assert build_dataset("folder", tmp_path, "val").load(0).size == (8, 6)


# ---- class folders


@pytest.fixture
def trees(tmp_path):
    for name in ("train/dog/1.png", "train/cat/1.JPG", "train/cat/deep/er/2.png", "val/dog/3.png"):
        save_image(tmp_path / name)
    for name in ("train/cat/.hidden.png", "train/cat/notes.txt", "train/.cache/x.png", "train/cat/.thumbs/x.png"):
        save_image(tmp_path / "some.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "some.png").rename(tmp_path / name)
    return tmp_path


def test_folder_trees(trees):
    train, val = (build_dataset("folder", trees, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["cat", "dog"]
    assert train.num_classes == val.num_classes == 2
    assert train.labels.tolist() == [0, 0, 1]
    assert val.labels.tolist() == [1]
    assert val.labels.dtype == np.int64
    assert train.describe(1) == str(trees / "train" / "cat" / "deep" / "er" / "2.png")
    assert train.load(1).size == (8, 6)


def test_folder_val_alone(tmp_path):
    save_image(tmp_path / "val" / "dog" / "1.png")
    assert build_dataset("folder", tmp_path, "val").class_names == ["dog"]
    fails(str(tmp_path / "train"), "folder", tmp_path, "train")


def test_folder_train_alone_has_no_val(tmp_path):
    save_image(tmp_path / "train" / "dog" / "1.png")
    assert len(build_dataset("folder", tmp_path, "train")) == 1
    fails(str(tmp_path / "val"), "folder", tmp_path, "val")


def test_folder_val_class_that_train_lacks(trees):
    save_image(trees / "val" / "horse" / "1.png")
    fails([str(trees / "val" / "horse"), str(trees / "train")], "folder", trees, "val")


def test_folder_number_of_classes(trees):
    fails(["2 classes", "1000", "MODEL.NUM_CLASSES"], "folder", trees, "train", num_classes=1000)


def test_folder_without_class_folders(tmp_path):
    save_image(tmp_path / "a.png")
    fails([str(tmp_path), "no class folders"], "folder", tmp_path, "train")


def test_folder_with_an_empty_class(trees):
    (trees / "train" / "emu").mkdir()
    fails(str(trees / "train" / "emu"), "folder", trees, "train")


def test_folder_held_out_split(tmp_path):
    for name, count in (("many", 20), ("two", 2), ("one", 1)):
        for number in range(count):
            save_image(tmp_path / name / f"{number}.png")
    train, val = (build_dataset("folder", tmp_path, split) for split in ("train", "val"))
    assert train.class_names == val.class_names == ["many", "one", "two"]
    assert np.bincount(train.labels).tolist() == [16, 1, 1]
    assert np.bincount(val.labels, minlength=3).tolist() == [4, 0, 1]
    files = [[dataset.describe(index) for index in range(len(dataset))] for dataset in (train, val)]
    assert len({*files[0], *files[1]}) == 23
    again = build_dataset("folder", tmp_path, "val")
    assert [again.describe(index) for index in range(len(again))] == files[1]


def test_folder_nothing_to_hold_out(tmp_path):
    save_image(tmp_path / "cat" / "a.png")
    fails("no images for the val split", "folder", tmp_path, "val")


# ---- IDX files


def idx_bytes(array):
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(path, images, labels, prefix="t10k", compress=False):
    for name, array in ((f"{prefix}-images-idx3-ubyte", images), (f"{prefix}-labels-idx1-ubyte", labels)):
        content = idx_bytes(np.asarray(array, np.uint8))
        (path / f"{name}.gz").write_bytes(gzip.compress(content)) if compress else (path / name).write_bytes(content)


IDX_IMAGES = np.random.default_rng(0).integers(0, 256, (3, 5, 4), dtype=np.uint8)
IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(("split", "prefix"), [("train", "train"), ("val", "t10k")])
def test_idx(tmp_path, compress, split, prefix):
    write_idx(tmp_path, IDX_IMAGES, [2, 0, 1], prefix, compress)
    dataset = build_dataset("idx", tmp_path, split)
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.tolist() == [2, 0, 1]
    assert (dataset.num_classes, dataset.class_names) == (3, None)
    image = dataset.load(1, min_size=1)
    assert (image.mode, image.size) == ("RGB", (4, 5))
    np.testing.assert_array_equal(np.asarray(image), np.repeat(IDX_IMAGES[1][:, :, None], 3, axis=2))
    assert re.search(rf"{prefix}-images-idx3-ubyte.* 1$", dataset.describe(1))


def test_idx_class_names(tmp_path):
    write_idx(tmp_path, IDX_IMAGES, [9, 0, 1])
    assert build_dataset("mnist", tmp_path, "val").class_names == list("0123456789")
    fashion = build_dataset("fashion_mnist", tmp_path, "val", num_classes=10)
    assert fashion.class_names == FASHION_MNIST_CLASSES
    assert fashion.num_classes == len(set(FASHION_MNIST_CLASSES)) == 10
    fails(["10 classes", "100"], "mnist", tmp_path, "val", num_classes=100)


def test_idx_missing_file(tmp_path):
    fails([IMAGES, f"{IMAGES}.gz"], "idx", tmp_path, "val")
    (tmp_path / IMAGES).write_bytes(idx_bytes(IDX_IMAGES))
    fails(LABELS, "idx", tmp_path, "val")


def test_idx_label_out_of_range(tmp_path):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 12])
    fails([LABELS, "entry 2", "label 12", "10 classes"], "mnist", tmp_path, "val")


def test_idx_counts_disagree(tmp_path):
    write_idx(tmp_path, IDX_IMAGES, [0, 1])
    fails([IMAGES, LABELS, "3 images", "2 labels"], "idx", tmp_path, "val")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "begins with"),
        (b"<html>", "begins with 3c68746d"),
        (idx_bytes(IDX_IMAGES[0]), "begins with 00000802"),
        (idx_bytes(IDX_IMAGES)[:-1], "75 bytes"),
        (idx_bytes(IDX_IMAGES) + b"\0", "77 bytes"),
        (idx_bytes(IDX_IMAGES)[:10], "10 bytes"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "header"),
        (idx_bytes(IDX_IMAGES[:0]), "empty"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_idx_malformed(tmp_path, content, part, compress):
    write_idx(tmp_path, IDX_IMAGES, [0, 1, 2])
    if compress:
        (tmp_path / IMAGES).unlink()
        (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(content))
    else:
        (tmp_path / IMAGES).write_bytes(content)
    fails([IMAGES, part], "idx", tmp_path, "val")


@pytest.mark.parametrize(
    "content",
    [b"not gzip", gzip.compress(idx_bytes(IDX_IMAGES), mtime=0)[:-20], b"\x1f\x8b\x08" + b"\xff" * 40],
    ids=["text", "truncated", "damaged"],
)
def test_idx_broken_gzip(tmp_path, content):
    (tmp_path / f"{IMAGES}.gz").write_bytes(content)
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
    assert val.load(1).size == (28, 28)
    assert pixel(val.load(1)) == (5, 5, 5)
    assert val.describe(1) == "mnist5k val image 1"
    fails("mnist5k", "mnist5k", None, "train", num_classes=1000)
