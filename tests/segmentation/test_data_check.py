"""The check of images and masks: one line for each kind of bad data, and the counts of classes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from common.data import check_record
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
    """Seven JPEG images of 30x20 pixels; mask a has the classes 0 and 1, the others 0, 2 (half of the pixels), 255."""
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


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    root = tmp_path / "ade"
    for part in ("images", "annotations"):
        (root / part / "validation").mkdir(parents=True)
    save_image(root / "images/validation/a.jpg")
    save_mask(root / "annotations/validation/a.png", (0, 1, 150, 1))
    return root


def build_ade20k(root):
    section = {"type": "ADE20K", "dataset_root": str(root), "mode": "val", "transforms": PLAIN}
    return build_dataset(section, "val_dataset")


# ---- good data


def test_the_report_counts_pixels_and_images(folder):
    progress = []
    report = check_dataset(build(folder), "train", lambda *numbers: progress.append(numbers))
    assert report.pixels.tolist() == [300 + 6 * 150, 300, 6 * 300, 0]
    assert report.images.tolist() == [7, 1, 6, 0]
    assert (report.ignored, report.problems) == (6 * 150, [])
    assert progress == [(done, 7) for done in range(1, 8)]
    lines = str(report).splitlines()
    assert lines[0] == "train data: 7 images of 30x20 to 30x20 pixels, 21.43 % of the pixels ignored"
    assert lines[2].split() == ["0", "ground", "1,200", "28.57", "7"]
    assert lines[6:] == ["warning: no pixel of the train data is of class 3 sea"]


@pytest.mark.parametrize(("kind", "dtype"), [("palette", np.uint8), ("32 bits", np.int32)])
def test_kinds_of_masks_that_paddleseg_reads(folder, kind, dtype):
    expected = check_dataset(build(folder), "train").pixels
    for path in (folder / "masks").iterdir():
        mask = Image.fromarray(np.asarray(Image.open(path)).astype(dtype))
        if kind == "palette":
            mask.putpalette(bytes(768))
        mask.save(path, format="TIFF" if kind == "32 bits" else "PNG")
    np.testing.assert_array_equal(check_dataset(build(folder), "train").pixels, expected)


def test_ade20k_masks_count_classes_from_one(ade20k):
    report = check_dataset(build_ade20k(ade20k), "val")
    assert report.ignored == 150
    assert report.pixels[[0, 149]].tolist() == [300, 150]
    assert report.warnings()[0].endswith("9 grass, 10 cabinet and 138 more")
    save_mask(ade20k / "annotations/validation/a.png", (0, 151))
    with pytest.raises(UserError, match=r"has the value 151 .*ADE20K's classes are 1 to 150, and 0 is ignored"):
        check_dataset(build_ade20k(ade20k), "val")


def test_images_are_measured_after_their_exif_orientation_as_paddleseg_reads_them(folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    save_image(folder / "images/c.jpg", (20, 30), exif=exif)
    check_dataset(build(folder), "train")
    save_image(folder / "images/c.jpg", (30, 20), exif=exif)
    with pytest.raises(UserError, match=r"c\.jpg has 20x30 pixels \(turned by its EXIF .*, its mask .* 30x20"):
        check_dataset(build(folder), "train")


def test_every_turned_image_is_counted(folder):
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in "cd":
        save_image(folder / f"images/{name}.jpg", exif=exif)
    expected = "2 images of the train data are turned or mirrored by their EXIF orientation: their masks must be drawn"
    assert expected in check_dataset(build(folder), "train").warnings()[1]


def test_masks_drawn_in_0_and_255_give_a_warning(folder):
    (folder / "train.txt").write_text("images/a.jpg masks/a.png\n")
    save_mask(folder / "masks/a.png", (0, 255))
    assert "drawn in 0 and 255" in check_dataset(build(folder), "train").warnings()[1]


def test_images_of_16_bits_give_a_warning(folder):
    assert cv2.imwrite(str(folder / "images/a.png"), np.zeros((20, 30, 3), np.uint16))
    (folder / "train.txt").write_text("images/a.png masks/a.png\nimages/b.jpg masks/b.png\n")
    assert "warning: 1 images of the train data have 16 bits per channel" in str(check_dataset(build(folder), "train"))
    rounding = [{"type": "RandomDistort"}, *PLAIN]
    (*_, line) = check_dataset(build(folder, transforms=rounding), "train").warnings()
    assert line == "these transforms of the train data round 16 bits to 8: RandomDistort; remove them"


def test_floating_point_images_in_another_unit_than_that_of_normalize_give_a_warning(folder):
    (folder / "train.txt").write_text("images/a.npy masks/a.png\nimages/c.jpg masks/c.png\n")
    for values, mean, std, wrong in (
        ([1.0, 0.5, 0.0], [0.5] * 3, [0.5] * 3, False),
        ([255.0, 0.5, 0.0], [0.5] * 3, [0.5] * 3, True),
        ([2400.0, 0.3, -30.0], [1500, 0.3, -20], [300, 0.3, 10], False),  # each channel in its own unit
    ):
        np.save(folder / "images/a.npy", np.full((20, 30, 3), values, np.float32))
        dataset = build(folder, transforms=[{"type": "Normalize", "mean": mean, "std": std}])
        lines = [line for line in check_dataset(dataset, "train").warnings() if "floating-point" in line]
        assert bool(lines) == wrong, lines
        if wrong:
            assert "the mean of Normalize by up to 509 times its std: they are not divided by 255" in lines[0]
            other = build(folder, transforms=[{"type": "Normalize", "mean": mean, "std": [100.0] * 3}])
            assert data_check.fingerprint(dataset) != data_check.fingerprint(other)


def test_a_name_that_is_not_utf8_is_read_although_opencv_crashes_on_it(ade20k):
    name = os.fsdecode(b"\xff")
    save_image(ade20k / f"images/validation/{name}.jpg")
    save_mask(ade20k / f"annotations/validation/{name}.png")
    dataset = build_ade20k(ade20k)
    assert check_dataset(dataset, "val", list_all=True).problems == []
    assert EvalDataset(dataset)[SampleKey(1, 0, 1)]["img"].shape == (3, 20, 30)


# ---- bad data


def zeroed(png):
    """A PNG whose header is intact, and whose pixels are not."""
    return png[:45] + bytes(12) + png[57:]


def damaged(path, end):
    path.write_bytes(path.read_bytes()[:end])


DAMAGES = {
    "image c.jpg does not exist; restore it": lambda image, mask: image.unlink(),
    "c.jpg is listed as an image and as its own mask": lambda image, mask: (mask.unlink(), mask.symlink_to(image)),
    "cannot read image c.jpg: its content is none of BMP": lambda image, mask: image.write_text("<>"),
    "image c.jpg is damaged (image file is truncated": lambda image, mask: damaged(image, -30),
    "image c.png does not exist; restore it": lambda image, mask: mask.unlink(),
    "mask c.png of image c.jpg cannot be read (": lambda image, mask: mask.write_bytes(zeroed(mask.read_bytes())),
    "image c.jpg has 30x20 pixels, its mask c.png 15x10; make": lambda image, mask: save_mask(mask, size=(15, 10)),
    "mask c.png is a PNG image of mode RGB; save it as": lambda image, mask: save_image(mask),
    "mask c.png is a PNG image of mode 1; save it as": lambda image, mask: save_mask(mask, dtype=bool),
    "mask c.png is a JPEG image of mode L; save it as": lambda image, mask: save_mask(mask, format="JPEG"),
    "mask c.png has the value 4 (300 pixels), 254 (150 pixels), but classes are 0 to 3, and 255 is ignored": (
        lambda image, mask: save_mask(mask, (0, 4, 254, 4))
    ),
    "mask c.png has the value -1 (300 pixels)": (
        lambda image, mask: save_mask(mask, (0, -1), dtype=np.int32, format="TIFF")
    ),
    "mask c.png has an EXIF orientation, which is not applied to masks": lambda image, mask: save_mask(
        mask, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    ),
}


@pytest.mark.parametrize("expected", DAMAGES)
def test_bad_data_is_reported_in_one_line(folder, expected):
    DAMAGES[expected](folder / "images/c.jpg", folder / "masks/c.png")
    with pytest.raises(UserError) as caught:
        check_dataset(build(folder), "train")
    message = str(caught.value)
    assert expected in message.replace(f"{folder}/images/", "").replace(f"{folder}/masks/", "")
    assert "\n" not in message


def test_further_problems_are_counted_or_listed(folder):
    for name in ("masks/c.png", "masks/f.png", "images/g.jpg"):
        (folder / name).unlink()
    with pytest.raises(UserError, match=r"masks/c\.png does not exist.* \(and 2 more; -check_data lists them all\)$"):
        check_dataset(build(folder), "train")
    report = check_dataset(build(folder), "train", list_all=True)
    assert str(report).splitlines()[-3:] == report.problems
    assert report.images.tolist() == [4, 1, 3, 0]


def test_masks_without_any_class_are_refused(folder):
    for path in (folder / "masks").iterdir():
        save_mask(path, (255,))
    with pytest.raises(UserError, match="every pixel of the train data is ignored"):
        check_dataset(build(folder), "train")


# ---- several ranks


def test_ranks_share_the_files_and_agree(folder, monkeypatch, tmp_path):
    dataset, record, totals = build(folder), tmp_path / "out/data_check.json", set()
    alone = check_dataset(dataset, "train").warnings()

    def check():
        return check_once(dataset, "train", record, lambda _, total: totals.add(total))

    assert run_ranks(monkeypatch, MODULES, check, 2) == [alone] * 2
    assert totals == {3, 4}
    totals.clear()
    assert run_ranks(monkeypatch, MODULES, check, 2) == [alone] * 2
    assert not totals

    for name in ("masks/d.png", "masks/g.png", "images/e.jpg"):
        (folder / name).unlink()
    first, second = run_ranks(monkeypatch, MODULES, check, 2)
    assert first == second
    assert "d.png" in first
    assert "(and 2 more; " in first


# ---- the record


def test_data_that_passed_is_not_checked_again_until_it_changes(folder, tmp_path):
    record = tmp_path / "out/data_check.json"
    checked = []
    for _ in range(2):
        warnings = check_once(build(folder), "train", record, lambda *numbers: checked.append(numbers))
        assert warnings == ["no pixel of the train data is of class 3 sea"]  # which are repeated
    assert len(checked) == 7
    assert check_once(build(folder), "val", record) == ["no pixel of the val data is of class 3 sea"]
    assert set(json.loads(record.read_text())) == {"train", "val"}
    save_mask(folder / "masks/c.png", (0, 9))
    for _ in range(2):
        with pytest.raises(UserError, match=r"c\.png has the value 9"):
            check_once(build(folder), "train", record)


def test_a_name_that_no_file_can_have_is_a_missing_file():
    assert len({check_record.fingerprint("", [name]) for name in ("a", "a\0", "a\ud800")}) == 3


def test_the_fingerprint_covers_files_and_classes(folder):
    (folder / "labels.txt").unlink()
    seen = [fingerprint(build(folder)), fingerprint(build(folder, num_classes=5))]
    assert seen[0] == fingerprint(build(folder))
    os.utime(folder / "masks/c.png", ns=(0, 0))
    seen.append(fingerprint(build(folder)))
    (folder / "images/c.jpg").unlink()
    seen.append(fingerprint(build(folder)))
    assert len(set(seen)) == 4


def test_unreadable_images_have_no_sizes(folder):
    for image in (folder / "images").iterdir():
        image.write_text("no image")
    report = check_dataset(build(folder), "train", list_all=True)
    assert str(report).startswith("train data: 7 images of which none can be used, ")
    assert not report.warnings()
    assert len(report.problems) == 7
