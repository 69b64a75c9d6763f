"""The check of annotations and images before training: each kind of problem, and what is done about it."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from common.data import check_record
from common.demo_data.folders import write_nuclei_detection
from common.errors import UserError
from object_detection import annotation_masks, check_annotations
from object_detection.annotation_report import ERROR, PROBLEMS
from object_detection.coco_file import check_same_categories, complete_categories, read_annotations
from tests.helpers.detection_runs import assert_told, load, run
from tests.helpers.programs import ROOT
from tests.helpers.thread_ranks import run_ranks

MODULES = [check_record, check_annotations]
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
CROWD = np.zeros((30, 40), np.uint8)
CROWD[5:20, 5:30] = 1


def encode(mask):
    rle = mask_utils.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def runs_of(mask):
    flat = mask.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()


def make_coco():
    """Four images of 40x30 pixels, the last without objects; five squares of 10x10 and a crowd."""
    images = [{"id": 10 * n, "file_name": f"{name}.png", "width": 40, "height": 30} for n, name in enumerate("abcd", 1)]
    annotations = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [2, 2, 10, 10], "area": 100, "iscrowd": 0}
        for n, (image, category) in enumerate([(10, 7), (10, 3), (20, 7), (30, 7), (30, 3)], 1)
    ]
    for annotation in annotations:
        annotation["segmentation"] = copy.deepcopy(SQUARE)
    annotations.append(
        {"id": 6, "image_id": 30, "category_id": 3, "bbox": [5, 5, 25, 15], "area": 375, "iscrowd": 1}
        | {"segmentation": {"size": [30, 40], "counts": runs_of(CROWD)}}
    )
    categories = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]
    return {"info": {"year": 2017}, "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def coco():
    return make_coco()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The images of :func:`make_coco`."""
    (tmp_path / "images").mkdir()
    for name in "abcd":
        Image.fromarray(np.full((30, 40, 3), 9, np.uint8)).save(tmp_path / f"images/{name}.png")
    return tmp_path / "images"


def check(coco, folder, split="train", **options):
    options = {"num_classes": 2, "masks": True, **options}
    return check_annotations.check_annotations(coco, "anns.json", folder, split, **options)


def test_good_annotations_are_not_changed(coco, folder):
    coco["categories"][1]["name"] = "交通标志"
    coco["images"][0] |= {"width": 128, "height": 96}
    Image.new("RGB", (128, 96)).save(folder / "a.png")
    coco["annotations"][0] |= {"bbox": [0, 0, 128, 96], "segmentation": [[0, 0, 128, 0, 128, 96, 0, 96]], "area": 9216}
    coco["annotations"][2] |= {"bbox": [0, 0, 40, 30], "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]], "area": 1024}
    before, calls = copy.deepcopy(coco), []
    checked, report = check(coco, folder, progress=lambda: calls.append(1))
    assert checked == coco == before
    assert report.counts == {}
    assert report.problems == report.warnings() == []
    assert len(calls) == 4
    title, *table = str(report).splitlines()
    assert title == "train data: 4 images of 40x30 to 128x96 pixels (1 without objects), 5 objects, 1 crowds"
    assert [line.split() for line in table] == [
        ["class", "objects", "small", "medium", "large"],
        ["cat", "3", "1", "1", "1"],
        ["交通标志", "2", "2", "0", "0"],
    ]


def test_the_number_of_classes_of_the_model_is_compared(coco, folder):
    _, report = check(coco, folder, num_classes=80)
    assert "the model has 80 classes, but the train data has 2" in report.warnings()[0]
    with pytest.raises(UserError, match=r"anns\.json has 2 categories, num_classes is 1: give -num_classes 2"):
        check(coco, folder, num_classes=1)


# ---- each kind of problem: how the third annotation or image b.png is changed, and what is said of it


def turn(coco, folder, orientation=3):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (40, 30)).save(folder / "b.png", format="JPEG", exif=exif)


def deepen(coco, folder):
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(folder / "b.png")


def remove_dogs(coco, folder):
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["category_id"] == 7 or entry["iscrowd"]]


def changing(**fields):
    return lambda coco, folder: coco["annotations"][2].update(fields)


def changing_crowd(**fields):
    return lambda coco, folder: coco["annotations"][5]["segmentation"].update(fields)


NAMED = "anns.json: annotation 3 of image 20 (b.png) has "
CASES = [
    ("IMAGE_UNKNOWN", changing(image_id=21), "anns.json: annotation 3 of image 21 has the image_id 21"),
    ("CATEGORY_UNKNOWN", changing(category_id=0), NAMED + "the category_id 0"),
    ("ANNOTATION_ID", changing(id=0), "annotation 0 of image 20 (b.png) has the id 0"),
    ("ANNOTATION_ID", changing(id=1), "annotation 1 of image 20 (b.png) has the id 1"),
    (
        "OBJECT_REPEATED",
        lambda coco, folder: coco["annotations"].append({**coco["annotations"][2], "id": 9}),
        "the box [",
    ),
    ("FIELD_MISSING", changing(area=0), NAMED + "the area 0"),
    ("FIELD_MISSING", changing(area=-1), NAMED + "the area -1"),
    ("FIELD_MISSING", changing(iscrowd=None, area="12"), "has no iscrowd and the area '12'"),
    ("BOX_INVALID", changing(bbox=[1, 2, 3, float("nan")]), NAMED + "the box [1, 2, 3, nan]"),
    ("BOX_INVALID", changing(bbox=["1", "2", "3", "4"]), "the box ['1', '2', '3', '4']"),
    ("BOX_WITHOUT_AREA", changing(bbox=[10, 10, -5, 4]), NAMED + "the box [10, 10, -5, 4]"),
    ("BOX_OUTSIDE", changing(bbox=[-2, 20, 10, 11.5]), NAMED + "the box [-2, 20, 10, 11.5] in 40x30 pixels"),
    ("BOX_NORMALIZED", changing(bbox=[0.1, 0.2, 0.3, 0.4]), NAMED + "the box [0.1, 0.2, 0.3, 0.4]"),
    (
        "BOX_BESIDE_MASK",
        changing(bbox=[20, 9, 10, 10]),
        NAMED + "the box [20, 9, 10, 10] and a mask in [2, 2, 10, 10]",
    ),
    (
        "BOX_BESIDE_MASK",
        lambda coco, folder: coco["annotations"][5].update(bbox=[15, 0, 15, 25]),
        "has the box [15, 0, 15, 25] and a mask in [5.0, 5.0, 25.0, 15.0]",
    ),
    ("AREA_DIFFERS", changing(area=49), NAMED + "the area 49 and a mask of 100.0 pixels"),
    ("AREA_DIFFERS", changing(area=145), NAMED + "the area 145 and the box [2, 2, 10, 10]"),
    ("OBJECT_IGNORED", changing(ignore=1), NAMED + "the flag ignore"),
    ("MASK_MISSING", changing(segmentation=[[]]), NAMED + "no segmentation"),
    ("MASK_MISSING", changing(segmentation={"size": [30, 40], "counts": [1200]}), "an empty mask"),
    ("POLYGON_SHORT", changing(segmentation=[[1, 1, 5, 5]]), NAMED + "the polygon [1, 1, 5, 5]"),
    ("MASK_INVALID", changing(segmentation=[[1, 1, 5, 5, 1, 5, 1]]), "the polygon [1, 1, 5, 5, 1, 5, 1]"),
    ("MASK_INVALID", changing(segmentation=[[{"x": 1}] * 6]), "the polygon [{'x': 1}"),
    (
        "POLYGON_OUTSIDE",
        changing(segmentation=[[1, 1, 5, 5, 1, 99]]),
        "the polygon [1, 1, 5, 5, 1, 99] in 40x30 pixels",
    ),
    ("MASK_INVALID", changing(segmentation=[[0, 0, 59, 1] * 10_000]), "whose edges have 1,199,940 pixels"),
    ("MASK_INVALID", changing(segmentation="none"), "the segmentation 'none'"),
    ("MASK_INVALID", changing_crowd(size=[40, 30]), "a mask of size [40, 30] in an image of [30, 40]"),
    ("MASK_INVALID", changing_crowd(counts=[1]), "runs of 1 pixels in an image of 1200"),
    ("MASK_INVALID", changing_crowd(counts="ü!"), "the counts 'ü!'"),
    (
        "RLE_OF_OBJECT",
        changing(segmentation=encode(CROWD), bbox=[5, 5, 25, 15], area=375),
        NAMED + "a run-length encoded mask",
    ),
    ("CATEGORY_UNUSED", remove_dogs, "anns.json: category 3 'dog'"),
    ("IMAGE_MISSING", lambda coco, folder: (folder / "b.png").unlink(), "b.png does not exist"),
    (
        "IMAGE_UNREADABLE",
        lambda coco, folder: (folder / "b.png").write_bytes(b"no image"),
        "b.png: its content is none of BMP",
    ),
    (
        "IMAGE_SIZE",
        lambda coco, folder: Image.new("L", (30, 40)).save(folder / "b.png"),
        "b.png has 30x40 pixels, the annotations say 40x30",
    ),
    ("IMAGE_DEEP", deepen, "b.png"),
    ("IMAGE_TURNED", turn, "b.png (orientation 3)"),
]


@pytest.mark.parametrize(("kind", "change", "expected"), CASES)
def test_each_problem_is_an_error_or_corrected_with_a_warning(coco, folder, kind, change, expected):
    change(coco, folder)
    before, problem = repr(coco), PROBLEMS[kind]  # text, because NaN is not equal to itself
    strict = assert_told(lambda: check(coco, folder, strict=True), expected, problem.remedy)
    assert ("leave out -strict" in strict) == (problem.policy != ERROR)
    if problem.policy == ERROR:
        assert assert_told(lambda: check(coco, folder), expected) == strict
        _, report = check(coco, folder, raise_errors=False)
        assert report.problems == [f"{kind}: 1 {problem.what}; {problem.remedy}"]
        assert expected in str(report).splitlines()[-1]
    else:
        checked, report = check(coco, folder)
        (warning,) = report.warnings()
        assert warning.startswith(f"{kind}: 1 {problem.what} ({problem.policy}), first ")
        assert expected in warning
        _, again = check(checked, folder)
        again.counts.pop("BOX_BESIDE_MASK", None)  # the cases change boxes or polygons alone
        assert again.counts == (
            {kind: 1}
            if kind in ("IMAGE_DEEP", "IMAGE_TURNED", "CATEGORY_UNUSED", "OBJECT_REPEATED", "AREA_DIFFERS")
            else {}
        )
    assert repr(coco) == before


def test_a_quarter_turn_explains_another_size(coco, folder):
    turn(coco, folder, orientation=6)
    _, report = check(coco, folder, raise_errors=False)
    assert report.counts == {"IMAGE_SIZE": 1, "IMAGE_TURNED": 1}
    expected = "b.png has 30x40 pixels (turned by its EXIF orientation), the annotations say 40x30"
    assert expected in report.examples["IMAGE_SIZE"][0]


def test_every_kind_is_tested_and_documented():
    assert {*(kind for kind, _, _ in CASES), "BOX_FORMAT"} == set(PROBLEMS)
    readme = (ROOT / "object_detection/README.md").read_text(encoding="utf-8")
    for kind, problem in PROBLEMS.items():
        assert f"| `{kind}` | {problem.what} | {problem.policy} |" in readme


def test_boxes_that_mostly_differ_from_their_polygons_are_an_error(coco, folder):
    for annotation in coco["annotations"][:4]:  # corners in place of width and height; a majority of the six
        annotation["bbox"], annotation["segmentation"] = [12, 8, 17, 13], [[12, 8, 17, 8, 17, 13, 12, 13]]
    expected = ("the box [12, 8, 17, 13] and a mask in [12, 8, 5, 5]", "two corners", "masks as polygons x, y")
    assert_told(lambda: check(coco, folder), *expected)
    _, report = check(coco, folder, masks=False, raise_errors=False)
    assert report.counts == {"BOX_FORMAT": 4}


def test_masks_that_were_encoded_row_by_row_do_not_fit_their_boxes(coco, folder):
    mask = np.zeros((30, 40), np.uint8)
    mask[2:12, 2:12] = 1
    for annotation in coco["annotations"][:4]:
        annotation["segmentation"] = encode(mask.ravel().reshape(mask.shape, order="F"))
    assert_told(lambda: check(coco, folder, masks=False), "has the box [2, 2, 10, 10] and", "encoded column by column")


@pytest.mark.parametrize(
    ("corners", "polygons", "counts"),
    [
        ([20, 10, 35, 25], [[20, 10, 35, 10, 35, 25, 20, 25]], {"BOX_OUTSIDE": 5, "BOX_FORMAT": 5}),
        ([20, 10, 35, 25], None, {"BOX_OUTSIDE": 5, "BOX_FORMAT": 5}),
        ([4, 3, 24, 19], [[4, 3, 24, 3, 24, 19, 4, 19]], {"BOX_FORMAT": 5}),
    ],
    ids=["out of the image", "without polygons", "overlapping"],
)
def test_two_corners_are_an_error_wherever_the_objects_are(coco, folder, corners, polygons, counts):
    """Taken for a corner and a size, corners in the lower right reach out, and those in the upper left overlap."""
    for annotation in coco["annotations"][:5]:
        annotation |= {"bbox": corners, "segmentation": polygons, "area": 250}
    _, report = check(coco, folder, masks=False, raise_errors=False)
    assert report.counts == counts
    assert_told(lambda: check(coco, folder, masks=False), f"the box {corners}", "two corners")


def test_few_boxes_out_of_their_images_are_no_corners(coco, folder):
    for annotation in coco["annotations"][:2]:
        annotation["bbox"] = [20, 10, 35, 25]
        del annotation["segmentation"]
    _, report = check(coco, folder, masks=False)
    assert report.counts == {"BOX_OUTSIDE": 2}


def test_ignored_objects_are_crowds_in_training_and_evaluation(coco, folder):
    for annotation in coco["annotations"][:2]:
        annotation["ignore"] = 1
    for split in ("train", "val"):
        checked, report = check(coco, folder, split)
        assert [entry["iscrowd"] for entry in checked["annotations"]] == [1, 1, 0, 0, 0, 1]
        assert report.count_objects().sum() == 3


def test_the_corrections(coco, folder):
    annotations = coco["annotations"]
    annotations[0]["bbox"] = [-2, 20, 10, 11.5]
    annotations[1]["id"] = 0
    annotations[2]["segmentation"] = encode(CROWD)
    annotations[3]["id"] = 3
    annotations[4] |= {"segmentation": [[1, 1, 5, 5], SQUARE[0]], "area": None, "iscrowd": None}
    checked, _ = check(coco, folder)
    first, _, third, _, fifth, crowd = checked["annotations"]
    assert first["bbox"] == [0, 20, 8, 10]
    assert [entry["id"] for entry in checked["annotations"]] == [1, 7, 3, 8, 5, 6]
    decoded = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(third["segmentation"], 30, 40)))
    np.testing.assert_array_equal(decoded, CROWD)
    assert fifth["segmentation"] == SQUARE
    assert (fifth["area"], fifth["iscrowd"]) == (100, 0)
    assert crowd == coco["annotations"][5]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-1, -1, 42, 32], [-1, -1, 42, 32]),  # within a pixel
        ([30, 20, 11.1, 11.1], [30, 20, 10, 10]),
        ([40.2, 5, 0.5, 5], None),  # wholly outside, however near
        ([-9, -9, 5, 5], None),
    ],
)
def test_boxes_are_clipped(coco, folder, box, expected):
    coco["annotations"][2] |= {"bbox": box, "segmentation": []}
    checked, report = check(coco, folder, masks=False)
    boxes = [entry["bbox"] for entry in checked["annotations"] if entry["id"] == 3]
    assert boxes == ([expected] if expected else [])
    assert report.counts == ({} if expected == box else {"BOX_OUTSIDE": 1})


def test_evaluation_keeps_the_boxes_and_masks_of_the_file(coco, folder):
    annotations = coco["annotations"]
    annotations[0]["bbox"] = [-2, 20, 10, 11.5]
    annotations[1]["bbox"] = [2, 2, 0, 10]
    annotations[2] |= {"bbox": [5, 5, 25, 15], "segmentation": encode(CROWD), "area": 375}  # no problem here
    annotations[3]["area"] = 0
    checked, report = check(coco, folder, "val")
    assert checked == coco
    assert report.counts == {"BOX_WITHOUT_AREA": 1, "BOX_OUTSIDE": 1, "AREA_DIFFERS": 1}
    annotations[1]["area"] = -1  # which pycocotools ignores
    del annotations[3]["area"], annotations[3]["iscrowd"]  # which it needs
    annotations[4]["id"] = 0
    checked, _ = check(coco, folder, "val")
    assert checked["annotations"][1]["area"] == 100
    assert (checked["annotations"][3]["area"], checked["annotations"][3]["iscrowd"]) == (100, 0)
    assert checked["annotations"][4]["id"] == 7


def test_masks_are_not_checked_for_models_without_masks(coco, folder):
    coco["annotations"][0]["segmentation"] = "none"
    del coco["annotations"][1]["segmentation"]
    _, report = check(coco, folder, masks=False)
    assert report.counts == {}


def test_further_problems_are_counted_and_shown(coco, folder):
    for annotation in coco["annotations"][1:5]:
        annotation["category_id"] = 4
    coco["annotations"][0]["bbox"] = None
    with pytest.raises(UserError, match=r"annotation 1 .* the box None; .*\(and 4 more; -check_data shows them\)"):
        check(coco, folder)
    coco["annotations"] += [{**coco["annotations"][1], "id": 10 + n} for n in range(9)]
    (folder / "d.png").unlink()
    _, report = check(coco, folder, raise_errors=False)
    assert report.counts == {"BOX_INVALID": 1, "CATEGORY_UNKNOWN": 13, "IMAGE_MISSING": 1}
    lines = str(report).splitlines()
    assert [line.split()[0] for line in lines[4:7]] == ["BOX_INVALID:", "CATEGORY_UNKNOWN:", "IMAGE_MISSING:"]
    assert len(lines) == 7 + 1 + 10 + 1 + 1
    assert lines[-2] == "  and 3 more CATEGORY_UNKNOWN"


def test_no_object_left_is_an_error(coco, folder):
    for annotation in coco["annotations"]:
        annotation["bbox"] = [100, 100, 5, 5]
    with pytest.raises(UserError, match=r"anns\.json has no usable object for the train split.*BOX_OUTSIDE: 6 boxes"):
        check(coco, folder)


def test_crowds_alone_are_named_as_the_reason(coco, folder):
    for annotation in coco["annotations"]:
        annotation["iscrowd"] = 1
    with pytest.raises(UserError, match=r"for the train split: all 6 are crowds, .*write iscrowd 0 for single objects"):
        check(coco, folder, masks=False)


def test_a_file_name_that_repeats_the_folder_is_said_to_be_relative_to_it(coco, folder):
    for file_name in ("images/b.png", "/home/user/b.png"):
        coco["images"][1]["file_name"] = file_name
        expected = f"{folder}/b.png does: write file_name relative to image_dir, b.png; "
        assert_told(lambda: check(coco, folder), "does not exist", expected)


def test_classes_that_only_the_model_has_are_not_said_to_be_in_the_file(coco, folder):
    completed = complete_categories(coco, ["background", "cat", "dog"])
    assert len(completed["categories"]) == 3
    assert check(completed, folder, "val", num_classes=3)[1].warnings() == []


def test_the_demo_data_passes(tmp_path):
    root = write_nuclei_detection(tmp_path / "nuclei")
    coco = read_annotations(root / "annotations/instances_train.json", "TrainDataset")
    checked, report = check(coco, root / "train", num_classes=1, strict=True)
    assert checked == coco
    assert report.count_objects().sum() == 349


def test_an_image_that_opencv_refuses_is_named(coco, folder, monkeypatch):
    def refuse(path):
        raise cv2.error("too many\npixels")

    monkeypatch.setattr(check_annotations, "look_at_image", refuse)
    with pytest.raises(UserError, match=r"image .*a\.png cannot be read \(.*too many pixels\); replace it"):
        check(coco, folder)


def test_run_lengths_are_those_of_pycocotools():
    mask = (np.random.default_rng(0).random((37, 211)) < 0.3).astype(np.uint8)
    mask[:, 50:180] = 1  # long runs, and differences that are negative
    counts = encode(mask)["counts"]
    assert annotation_masks.decode_runs(counts) == runs_of(mask)
    assert annotation_masks.invalid_mask({"size": [37, 211], "counts": counts[:-3]}, 37, 211)


# ---- the file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{damaged", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "has no list of images"),
        ({"images": {}}, "has no list of images"),
        ({"annotations": []}, "the list of annotations is empty"),
        ({"images": [3]}, "images[0] is not an object"),
        ({"images": [{"id": True}]}, "id of images[0] is True; write an integer"),
        ({"images": [{"id": 1}]}, "file_name of images[0] is missing; write a text"),
        ({"images": [{"id": 1, "file_name": "a\0"}]}, r"file_name of images[0] is 'a\x00'; write a text of one line"),
        ({"categories": [{"id": 1, "name": "a\nb"}]}, r"name of categories[0] is 'a\nb'; write a text of one line"),
        ('{"images": [{"id": ' + "9" * 5000 + "}]}", "is not valid JSON"),
        ({"images": [{"id": 1, "file_name": "a", "width": 1, "height": 2.5}]}, "height of images[0] is 2.5"),
        ({"images": [{"id": 1, "file_name": "a", "width": 60_000, "height": 60_000}]}, "it has 60000x60000 pixels"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 2}]}, "iscrowd of annotations[0] is 2"),
        ({"categories": [{"id": 1, "name": name} for name in "ab"]}, "categories[1] repeats the id 1"),
    ],
)
def test_files_that_are_not_annotations(coco, tmp_path, content, expected):
    path = tmp_path / "anns.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**coco, **content}))
    with pytest.raises(UserError) as caught:
        read_annotations(path, "TrainDataset")
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading(coco, tmp_path):
    path = tmp_path / "anns.json"
    with pytest.raises(UserError, match=r"TrainDataset: the annotations .*anns\.json do not exist"):
        read_annotations(path, "TrainDataset")
    with pytest.raises(UserError, match=f"TrainDataset: cannot read {tmp_path}: Is a directory; give"):
        read_annotations(tmp_path, "TrainDataset")
    path.write_text(json.dumps(coco))
    assert read_annotations(path, "TrainDataset") == coco


def test_categories_have_one_unicode_form(coco, tmp_path):
    path = tmp_path / "anns.json"
    coco["categories"][0]["name"] = "gru\u0308n"
    path.write_text(json.dumps(coco))
    assert read_annotations(path, "TrainDataset")["categories"][0]["name"] == "gr\u00fcn"


def test_training_and_validation_have_the_same_categories(coco):
    other = make_coco()
    check_same_categories(coco, other, ("a.json", "b.json"))
    other["categories"].reverse()
    with pytest.raises(UserError, match=r"category 1 is 7 'cat' in a\.json and 3 'dog' in b\.json"):
        check_same_categories(coco, other, ("a.json", "b.json"))
    other["categories"] = coco["categories"][:1]
    with pytest.raises(UserError, match=r"category 2 is 3 'dog' in a\.json and missing in b\.json"):
        check_same_categories(coco, other, ("a.json", "b.json"))


# ---- several ranks, and images that have passed before


def test_ranks_share_the_images_and_agree(coco, folder, monkeypatch):
    (folder / "b.png").unlink()
    (folder / "d.png").write_text("no image")
    alone, calls = str(check(coco, folder, raise_errors=False)[1]), []
    options = {"raise_errors": False, "progress": lambda: calls.append(1)}
    assert run_ranks(monkeypatch, MODULES, lambda: str(check(coco, folder, **options)[1]), 2) == [alone] * 2
    assert len(calls) == 4


def test_images_that_passed_are_not_checked_again(coco, folder, tmp_path, monkeypatch):
    record, checked = tmp_path / "out/data_check.json", []
    look = check_annotations.look_at_image
    monkeypatch.setattr(check_annotations, "look_at_image", lambda path: checked.append(path) or look(path))
    coco["annotations"][0]["bbox"] = [-2, 20, 10, 11.5]
    first, report = check(coco, folder, record=record)
    for _ in range(2):
        assert check(coco, folder, record=record)[0] == first  # annotations are checked each time
        assert (len(checked), report.counts) == (4, {"BOX_OUTSIDE": 1})
    os.utime(folder / "c.png", ns=(0, 0))
    check(coco, folder, record=record)
    assert len(checked) == 8
    run_ranks(monkeypatch, MODULES, lambda: check(coco, folder, record=record), 2)
    assert len(checked) == 8
    coco["images"][3]["width"] = 41
    errors = run_ranks(monkeypatch, MODULES, lambda: check(coco, folder, record=record), 2)
    assert all("d.png has 40x30 pixels, the annotations say 41x30" in error for error in errors)
    assert len(checked) == 12


def test_warnings_about_images_are_repeated_when_their_check_is_skipped(coco, folder, tmp_path):
    turn(coco, folder)
    record = tmp_path / "out/data_check.json"
    first, second = (check(coco, folder, record=record)[1] for _ in range(2))
    assert (first.counts, second.counts) == ({"IMAGE_TURNED": 1}, {})
    assert first.warnings() == second.warnings() != []
    with pytest.raises(UserError, match=r"b\.png \(orientation 3\)"):
        check(coco, folder, record=record, strict=True)


# ---- flags


def test_strict_is_a_flag_and_keys_without_effect_are_ignored_with_a_warning(tmp_path, boxes, boxes_config, capsys):
    file = boxes / "annotations/train.json"
    train = json.loads(file.read_text())
    train["annotations"][0]["bbox"] = [0, 0, 0, 5]
    file.write_text(json.dumps(train))
    assert_told(lambda: run(boxes_config, "-check_data", "-strict"), "the data has 2 problems")
    assert "BOX_WITHOUT_AREA: 1 boxes have no area; correct width and height, or leave out -strict" in (
        capsys.readouterr().out
    )
    old = tmp_path / "old.yml"
    old.write_text(f"_BASE_: {boxes_config}\nON_PROBLEM: {{BOX_WITHOUT_AREA: skip}}\nuse_gpu: true\n")
    assert load("-cfg", old) == load("-cfg", boxes_config)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"warning: {old}: ignored, since this project has other keys for it: ON_PROBLEM, use_gpu"
