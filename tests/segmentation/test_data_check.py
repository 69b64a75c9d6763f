"""The look at every image and mask before training: each kind of bad data in one line, and what the masks hold."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data import check_record
from common.demo_data import wheels as demo_data
from common.errors import UserError
from common.training.sampler import SampleKey
from semantic_segmentation import data_check
from semantic_segmentation.data_check import check_dataset, check_once, fingerprint
from semantic_segmentation.datasets import EvalDataset, build_dataset
from tests.helpers.thread_ranks import run_ranks

NAMES = "abcdefg"
PLAIN = [{"type": "Normalize"}]
MODULES = [check_record, data_check]


def save_image(path, size=(30, 20), **options):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)


def save_mask(path, values=(0, 1), size=(30, 20), dtype=np.uint8, **options):
    Image.fromarray(np.resize(np.array(values, dtype), size[::-1])).save(path, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven JPEG images of 30x20 pixels; mask a holds the classes 0 and 1, the others 0, 2 and 255, half of 2 each."""
    root = tmp_path / "own"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for name in NAMES:
        save_image(root / f"images/{name}.jpg")
        save_mask(root / f"masks/{name}.png", (0, 1) if name == "a" else (0, 2, 255, 2))
    (root / "train.txt").write_text("".join(f"images/{name}.jpg masks/{name}.png\n" for name in NAMES))
    (root / "labels.txt").write_text("ground\nhouse\nsky\nsea\n")
    return root


def build(root, **changes):
    section = {"type": "Dataset", "dataset_root": str(root), "mode": "train", "train_path": "train.txt"}
    return build_dataset({**section, "num_classes": 4, "transforms": PLAIN, **changes}, "train_dataset")


def build_ade20k(root):
    section = {"type": "ADE20K", "dataset_root": str(root), "mode": "val", "transforms": PLAIN}
    return build_dataset(section, "val_dataset")


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = tmp_path / "ade"
    for part in ("images", "annotations"):
        (root / part / "validation").mkdir(parents=True)
    save_image(root / "images/validation/a.jpg")
    save_mask(root / "annotations/validation/a.png", (0, 1, 150, 1))
    return root


# ---- good data


def test_the_report_counts_pixels_and_images(folder):
    save_image(folder / "images/b.jpg", (50, 10))
    save_mask(folder / "masks/b.png", (0, 2, 255, 2), (50, 10))
    told = []
    report = check_dataset(build(folder), "train", lambda done, total: told.append((done, total)))
    # a: 300 of 0, 300 of 1; b: 125 of 0, 250 of 2; the five others 150 of 0 and 300 of 2; a quarter is ignored.
    assert report.pixels.tolist() == [300 + 125 + 5 * 150, 300, 250 + 5 * 300, 0]
    assert report.images.tolist() == [7, 1, 6, 0]
    assert report.ignored == 125 + 5 * 150
    assert (report.smallest, report.largest) == ((30, 10), (50, 20))
    assert report.problems == []
    assert told == [(done, 7) for done in range(1, 8)]
    assert report.warnings() == ["no pixel of the train data is of class 3 sea"]
    lines = str(report).splitlines()
    assert lines[0] == "train data: 7 images of 30x10 to 50x20 pixels, 21.34 % of the pixels ignored"
    assert lines[2].split() == ["0", "ground", "1,175", "28.66", "%", "7"]
    assert [line.split()[1] for line in lines[2:6]] == ["ground", "house", "sky", "sea"]
    assert lines[6:] == ["  warning: no pixel of the train data is of class 3 sea"]


@pytest.mark.parametrize("form", ["palette", "four colours", "16 bits", "32 bits"])
def test_forms_of_masks_that_paddleseg_reads(folder, form):
    expected = check_dataset(build(folder), "train").pixels
    for path in (folder / "masks").iterdir():
        values = np.asarray(Image.open(path))
        if form == "four colours":  # two bits a pixel
            values = np.where(values == 255, 3, values)
        mask = Image.fromarray(values.astype({"16 bits": np.uint16, "32 bits": np.int32}.get(form, np.uint8)))
        if form in ("palette", "four colours"):
            mask.putpalette(bytes(range(12)))
        mask.save(path, **({"format": "TIFF"} if form == "32 bits" else {}))
        assert Image.open(path).mode == {"16 bits": "I;16", "32 bits": "I"}.get(form, "P")
    pixels = check_dataset(build(folder), "train").pixels
    np.testing.assert_array_equal(pixels[:3], expected[:3])


def test_ade20k_masks_hold_the_classes_from_one_on(ade20k):
    report = check_dataset(build_ade20k(ade20k), "val")
    assert report.ignored == 150
    assert report.pixels[[0, 149]].tolist() == [300, 150]
    assert report.pixels.sum() == 450
    assert report.warnings()[0].endswith("9 grass, 10 cabinet and 138 more")


def test_images_turned_by_exif_are_measured_as_paddleseg_reads_them(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(folder / "images/c.jpg", (20, 30), exif=exif)
    check_dataset(build(folder), "train")
    save_image(folder / "images/c.jpg", (30, 20), exif=exif)
    with pytest.raises(UserError, match=r"c\.jpg has 20x30 pixels \(turned by its EXIF .*, its mask .* 30x20"):
        check_dataset(build(folder), "train")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_other_formats_of_images(folder, suffix):
    save_image(folder / f"images/a.{suffix}")
    (folder / "train.txt").write_text(f"images/a.{suffix} masks/a.png\n")
    assert check_dataset(build(folder), "train").num_images == 1
    path = folder / f"images/a.{suffix}"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"image .*a\.{suffix} "):
        check_dataset(build(folder), "train")


def test_a_jpeg_with_something_behind_its_end_is_good(folder):
    path = folder / "images/a.jpg"
    path.write_bytes(path.read_bytes() + bytes(200))
    assert check_dataset(build(folder), "train").problems == []


def test_masks_drawn_in_0_and_255_are_suspicious(folder):
    (folder / "train.txt").write_text("images/a.jpg masks/a.png\n")
    save_mask(folder / "masks/a.png", (0, 255))
    warnings = check_dataset(build(folder), "train").warnings()
    assert "1 house, 2 sky, 3 sea" in warnings[0]
    assert "drawn in 0 and 255" in warnings[1]


def test_columns_of_wide_letters_are_aligned(folder):
    names = (folder / "labels.txt").read_text()
    expected = str(check_dataset(build(folder), "train"))
    (folder / "labels.txt").write_text(names.replace("house", "房子"), encoding="utf-8")
    assert str(check_dataset(build(folder), "train")) == expected.replace("house", "房子 ")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_images_of_16_bits_are_suspicious(folder, channels, suffix, dtype):
    assert cv2.imwrite(str(folder / f"images/a.{suffix}"), np.zeros((20, 30, channels), dtype))
    (folder / "train.txt").write_text(f"images/a.{suffix} masks/a.png\nimages/b.jpg masks/b.png\n")
    text = str(check_dataset(build(folder), "train"))
    assert ("1 images of the train data have 16 bits a channel" in text) == (dtype == np.uint16)


@pytest.mark.parametrize("spelling", ["1", "L", "P", "I;16"])
def test_images_of_other_depths(folder, spelling):
    Image.new(spelling, (30, 20)).save(folder / "images/a.tif")
    Image.new(spelling, (30, 20)).save(folder / "images/b.png")
    (folder / "train.txt").write_text("images/a.tif masks/a.png\nimages/b.png masks/b.png\n")
    assert check_dataset(build(folder), "train").deep_images == 2 * (spelling == "I;16")


def test_a_name_that_is_not_utf8_is_told_instead_of_a_crash(ade20k):
    name = os.fsdecode(b"\xff")
    save_image(ade20k / f"images/validation/{name}.jpg")
    save_mask(ade20k / f"annotations/validation/{name}.png")
    dataset = build_ade20k(ade20k)
    (problem,) = check_dataset(dataset, "val", list_all=True).problems
    assert problem.endswith(r"\udcff.jpg has a name that is not UTF-8, which PaddleSeg cannot read; rename it")
    errors = [EvalDataset(dataset)[SampleKey(index, 0, index)]["error"] for index in range(2)]
    assert sorted(errors)[0] == ""
    assert "has a name that is not UTF-8" in sorted(errors)[1]


@pytest.mark.slow
def test_a_folder_of_another_projects_data(capsys):
    root = demo_data.fetch("bear")
    dataset = build(root, train_path="train_list.txt", num_classes=3)
    dataset.file_list += build(root, train_path="val_list.txt", num_classes=3).file_list
    report = check_dataset(dataset, "train")
    assert report.num_images == 3
    assert report.class_names == ["background", "xiaoduxiong", "toy"]
    assert report.smallest == report.largest == (756, 1008)
    masks = [np.asarray(Image.open(root / f"Annotations/{number}.png")) for number in (1, 2, 3)]
    np.testing.assert_array_equal(report.pixels, np.bincount(np.ravel(masks), minlength=3))
    assert report.warnings() == ["no pixel of the train data is of class 2 toy"]
    with pytest.raises(UserError, match=r"labels\.txt names 3 classes, num_classes is 2: give -num_classes 3"):
        build(root, train_path="train_list.txt", num_classes=2)


# ---- bad data


def no_image(root):
    (root / "images/c.jpg").unlink()
    return "image {}/images/c.jpg does not exist; restore it"


def no_mask(root):
    (root / "masks/c.png").unlink()
    return "mask {0}/masks/c.png of image {0}/images/c.jpg does not exist; restore it"


def empty_image(root):
    (root / "images/c.jpg").write_bytes(b"")
    return "image {}/images/c.jpg cannot be read with OpenCV"


def text_for_an_image(root):
    (root / "images/c.jpg").write_text("<html>sign in</html>")
    return "image {}/images/c.jpg cannot be read with OpenCV, as training does; replace it"


def truncated_jpeg(root):
    path = root / "images/c.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    return "image {}/images/c.jpg is damaged (image file is truncated"


def flipped_bit_in_a_png(root):
    path = root / "images/c.jpg"
    save_image(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return "image {}/images/c.jpg is damaged (broken PNG file"


def format_unknown_to_opencv(root):
    save_image(root / "images/c.jpg", format="TGA")
    return "image {}/images/c.jpg cannot be read with OpenCV"


def folder_for_an_image(root):
    (root / "images/c.jpg").unlink()
    (root / "images/c.jpg").mkdir()
    return "image {}/images/c.jpg does not exist"


def other_size(root):
    save_mask(root / "masks/c.png", size=(15, 10))
    return "image {0}/images/c.jpg has 30x20 pixels, its mask {0}/masks/c.png 15x10; make them the same size"


def turned_size(root):
    save_mask(root / "masks/c.png", size=(20, 30))
    return "image {0}/images/c.jpg has 30x20 pixels, its mask {0}/masks/c.png 20x30"


def colour_mask(root):
    save_image(root / "masks/c.png")
    return "mask {}/masks/c.png is a colour (RGB) image, not class numbers; save it as an 8-bit PNG"


def colour_mask_with_alpha(root):
    Image.new("RGBA", (30, 20)).save(root / "masks/c.png")
    return "mask {}/masks/c.png is a colour (RGBA) image"


def one_bit_mask(root):
    save_mask(root / "masks/c.png", dtype=bool)
    return "mask {}/masks/c.png has 1 bit a pixel"


def floating_point_mask(root):
    save_mask(root / "masks/c.png", dtype=np.float32, format="TIFF")
    return "mask {}/masks/c.png is a floating-point image"


def jpeg_mask(root):
    save_mask(root / "masks/c.png", format="JPEG")
    return "mask {}/masks/c.png is a JPEG, which does not keep the class numbers"


def truncated_mask(root):
    path = root / "masks/c.png"
    path.write_bytes(path.read_bytes()[:60])
    return "mask {}/masks/c.png is damaged ("


def text_for_a_mask(root):
    (root / "masks/c.png").write_text("no image")
    return "mask {}/masks/c.png is damaged (cannot identify image file"


def value_without_a_class(root):
    save_mask(root / "masks/c.png", (0, 4, 254, 4))
    return (
        "mask {}/masks/c.png holds the value 4 (300 pixels), 254 (150 pixels), but classes are 0 to 3, and 255 is "
        "ignored; correct the mask, num_classes or ignore_index"
    )


def many_values_without_a_class(root):
    save_mask(root / "masks/c.png", range(100))
    return "13 (6 pixels) and 86 more, but"


def wide_value(root):
    save_mask(root / "masks/c.png", (0, 256 + 1), dtype=np.uint16)
    return "mask {}/masks/c.png holds the value 257 (300 pixels)"


def negative_value(root):
    save_mask(root / "masks/c.png", (0, -1), dtype=np.int32, format="TIFF")
    return "mask {}/masks/c.png holds the value -1 (300 pixels)"


DAMAGES = [
    no_image,
    no_mask,
    empty_image,
    text_for_an_image,
    truncated_jpeg,
    flipped_bit_in_a_png,
    format_unknown_to_opencv,
    folder_for_an_image,
    other_size,
    turned_size,
    colour_mask,
    colour_mask_with_alpha,
    one_bit_mask,
    floating_point_mask,
    jpeg_mask,
    truncated_mask,
    text_for_a_mask,
    value_without_a_class,
    many_values_without_a_class,
    wide_value,
    negative_value,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_bad_data_is_told_in_one_line(folder, damage):
    expected = damage(folder).format(folder)
    with pytest.raises(UserError) as caught:
        check_dataset(build(folder), "train")
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message
    assert "more; -check_data" not in message


def test_the_number_of_further_problems_is_told(folder):
    for name in ("masks/c.png", "masks/f.png", "images/g.jpg"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"masks/c\.png of image .* \(and 2 more; -check_data lists them all\)$"):
        check_dataset(build(folder), "train")
    report = check_dataset(build(folder), "train", list_all=True)
    assert len(report.problems) == 3
    for problem, name in zip(report.problems, ("c.png", "f.png", "g.jpg"), strict=True):
        assert name in problem
        assert problem in str(report).splitlines()
    assert report.images.tolist() == [4, 1, 3, 0]


def test_data_without_one_class_cannot_be_learnt_from(folder):
    for path in (folder / "masks").iterdir():
        save_mask(path, (255,))
    with pytest.raises(UserError, match="every pixel of the train data is ignored"):
        check_dataset(build(folder), "train")


def test_nothing_is_left_of_a_wholly_broken_folder(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    report = check_dataset(build(folder), "train", list_all=True)
    assert len(report.problems) == 7
    assert report.smallest == report.largest == (0, 0)
    assert "0.00 % of the pixels ignored" in str(report)


@pytest.mark.parametrize(("values", "dtype"), [((0, 151), np.uint8), ((0, 255), np.uint8), ((0, 1), np.uint16)])
def test_bad_ade20k_masks(ade20k, values, dtype):
    save_mask(ade20k / "annotations/validation/a.png", values, dtype=dtype)
    expected = (
        f"a.png holds the value {values[1]} (300 pixels), but ADE20K's classes are 1 to 150, and 0 is ignored"
        if dtype == np.uint8
        else "a.png is a 16-bit image, not class numbers"
    )
    with pytest.raises(UserError) as caught:
        check_dataset(build_ade20k(ade20k), "val")
    assert expected in str(caught.value)


def test_an_ignored_class_is_no_class(folder):
    report = check_dataset(build(folder, ignore_index=0, num_classes=4, transforms=[]), "train", list_all=True)
    assert len(report.problems) == 6  # 255 is nothing then
    assert report.ignored == 300
    assert report.pixels.tolist() == [0, 300, 0, 0]


# ---- several ranks


@pytest.mark.parametrize("ranks", [2, 9])
def test_ranks_share_the_files_and_agree_on_the_report(folder, monkeypatch, ranks):
    save_image(folder / "images/b.jpg", (50, 10))
    save_mask(folder / "masks/b.png", (0, 2, 255, 2), (50, 10))
    dataset = build(folder)
    alone = str(check_dataset(dataset, "train"))
    totals = set()
    reports = run_ranks(
        monkeypatch,
        MODULES,
        lambda: check_dataset(dataset, "train", lambda _, total: totals.add(total)),
        count=ranks,
    )
    assert [str(report) for report in reports] == [alone] * ranks
    assert totals == ({3, 4} if ranks == 2 else {1})


def test_ranks_agree_on_the_first_problem(folder, monkeypatch):
    for name in ("masks/d.png", "masks/g.png", "images/e.jpg"):
        (folder / name).unlink()
    dataset = build(folder)
    with pytest.raises(UserError) as caught:
        check_dataset(dataset, "train")
    assert "d.png" in str(caught.value)
    assert run_ranks(monkeypatch, MODULES, lambda: check_dataset(dataset, "train"), 2) == [str(caught.value)] * 2


def test_ranks_agree_on_what_has_passed(folder, monkeypatch, tmp_path):
    dataset, record = build(folder), tmp_path / "out/data_check.json"
    first = run_ranks(monkeypatch, MODULES, lambda: check_once(dataset, "train", record), 2)
    assert all(report.num_images == 7 for report in first)
    again = run_ranks(monkeypatch, MODULES, lambda: check_once(dataset, "train", record), 2)
    assert again == [None, None]


# ---- what has passed before


def test_data_that_passed_is_not_checked_again_until_it_changes(folder, tmp_path):
    record = tmp_path / "out/data_check.json"
    assert check_once(build(folder), "train", record).num_images == 7
    assert check_once(build(folder), "train", record) is None
    assert check_once(build(folder), "val", record).split == "val"
    assert check_once(build(folder), "train", record) is None
    assert set(json.loads(record.read_text())) == {"train", "val"}
    assert [path.name for path in record.parent.iterdir()] == ["data_check.json"]
    save_mask(folder / "masks/c.png", (0, 9))
    for _ in range(2):
        with pytest.raises(UserError, match=r"c\.png holds the value 9"):
            check_once(build(folder), "train", record)


@pytest.mark.parametrize("content", ["{damaged", "[]", '{"train": 3}'])
def test_a_damaged_record_means_that_nothing_has_passed(folder, tmp_path, content):
    record = tmp_path / "data_check.json"
    record.write_text(content)
    assert check_once(build(folder), "train", record) is not None
    assert check_once(build(folder), "train", record) is None


def test_a_record_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*data_check\.json"):
        check_once(build(folder), "train", tmp_path / "file/data_check.json")


def test_the_fingerprint_is_of_files_and_classes(folder):
    def touch():
        os.utime(folder / "masks/c.png", ns=(0, 0))

    def lose():
        (folder / "images/c.jpg").unlink()

    def grow():
        with (folder / "masks/d.png").open("ab") as file:
            file.write(b"0")
        os.utime(folder / "masks/d.png", ns=(0, 0))

    def shorten():
        (folder / "train.txt").write_text("images/a.jpg masks/a.png\n")

    (folder / "labels.txt").unlink()
    os.utime(folder / "masks/d.png", ns=(0, 0))
    seen = [fingerprint(build(folder)), fingerprint(build(folder, num_classes=5))]
    seen.append(fingerprint(build(folder, ignore_index=9, transforms=[])))
    assert seen[0] == fingerprint(build(folder))
    for change in (touch, lose, grow, shorten):
        change()
        seen.append(fingerprint(build(folder)))
    assert len(set(seen)) == len(seen)
