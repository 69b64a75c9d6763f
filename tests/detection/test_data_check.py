"""The look at every annotation and image before training: each kind of problem, and what is done about it."""

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
from common.demo_data.wheels import fetch
from common.errors import UserError
from object_detection import data_check
from object_detection.annotations import check_same_categories, read_annotations
from object_detection.data_check import check_annotations
from object_detection.problems import ACTIONS, PROBLEMS, resolve_actions
from object_detection.segmentations import area_of, inspect_segmentation, rle_to_polygons
from tests.helpers.detection_runs import assert_told, run
from tests.helpers.thread_ranks import run_ranks

MODULES = [check_record, data_check]
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
        for n, (image, category) in enumerate([(10, 7), (10, 3), (20, 7), (20, 7), (30, 3)], 1)
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


def check(coco, folder, actions=None, **options):
    options = {"num_classes": 2, "masks": True, **options}
    return check_annotations(coco, "anns.json", folder, "train", resolve_actions(actions or {}), **options)


def kinds(report):
    return {finding.kind: finding.count for finding in report.findings}


# ---- good data


def test_good_annotations_stay_as_they_are(coco, folder):
    before, told = copy.deepcopy(coco), []
    cleaned, report = check(coco, folder, progress=lambda done, total: told.append((done, total)))
    assert cleaned == coco == before
    assert kinds(report) == {}
    assert report.problems == report.warnings() == []
    assert told == [(done, 4) for done in range(1, 5)]
    assert str(report).splitlines() == [
        "train data: 4 images of 40x30 to 40x30 pixels (1 without objects), 5 objects, 1 crowds",
        "  class  name     objects      small     medium      large",
        "      0  cat            3          3          0          0",
        "      1  dog            2          2          0          0",
    ]


def test_columns_of_wide_letters_are_aligned(coco, folder):
    coco["categories"][1]["name"] = "交通标志"
    _, report = check(coco, folder)
    assert str(report).splitlines()[1:] == [
        "  class  name        objects      small     medium      large",
        "      0  cat               3          3          0          0",
        "      1  交通标志          2          2          0          0",
    ]


def test_sizes_are_those_of_coco(coco, folder):
    for annotation, area in zip(coco["annotations"], (1023.9, 1024, 9215.9, 9216, 1e8), strict=False):
        annotation["area"] = area
    _, report = check(coco, folder)
    assert report.objects.tolist() == [[1, 1, 1], [0, 1, 1]]


def test_a_model_with_more_classes_is_suspicious(coco, folder):
    _, report = check(coco, folder, num_classes=80)
    assert "the model has 80 classes, the train data 2" in report.warnings()[0]
    with pytest.raises(UserError, match=r"anns\.json has 2 categories, num_classes is 1: give -num_classes 2"):
        check(coco, folder, num_classes=1)


# ---- each kind of problem


def duplicate_image_id(coco, folder):
    coco["images"][2]["id"] = 10
    coco["annotations"] = coco["annotations"][:4]
    return "anns.json: images[2] has the id 10 of another"


def duplicate_file_name(coco, folder):
    coco["images"][3]["file_name"] = "b.png"
    return "anns.json: images[3] has the file_name 'b.png' of another"


def duplicate_category_id(coco, folder):
    coco["categories"][1]["id"] = 7
    for annotation in coco["annotations"]:
        annotation["category_id"] = 7
    return "anns.json: categories[1] has the id 7 of another"


def duplicate_category_name(coco, folder):
    coco["categories"][1]["name"] = "cat"
    return "anns.json: categories[1] has the name 'cat' of another"


def duplicate_annotation_id(coco, folder):
    coco["annotations"][2]["id"] = 1
    return "anns.json: annotations[2] has the id 1 of another"


def annotation_id_zero(coco, folder):
    coco["annotations"][2]["id"] = 0
    return "anns.json: annotation 0 of image 20 (b.png)"


def unknown_image(coco, folder):
    coco["annotations"][2]["image_id"] = 21
    return "anns.json: annotation 3 has the image_id 21"


def unknown_category(coco, folder):
    coco["annotations"][2]["category_id"] = 0
    return "anns.json: annotation 3 has the category_id 0"


def no_area(coco, folder):
    coco["annotations"][2]["area"] = 0
    return "anns.json: annotation 3 of image 20 (b.png) has the area 0"


def no_iscrowd(coco, folder):
    del coco["annotations"][2]["iscrowd"], coco["annotations"][2]["area"]
    return "anns.json: annotation 3 of image 20 (b.png) has no iscrowd and no area"


def box_of_three(coco, folder):
    coco["annotations"][2]["bbox"] = [1, 2, 3]
    return "anns.json: annotation 3 of image 20 (b.png) has the box [1, 2, 3] in 40x30 pixels"


def box_of_nan(coco, folder):
    coco["annotations"][2]["bbox"] = [1, 2, 3, float("nan")]
    return "has the box [1, 2, 3, nan]"


def box_of_text(coco, folder):
    coco["annotations"][2]["bbox"] = ["1", "2", "3", "4"]
    return "has the box ['1', '2', '3', '4']"


def box_of_a_huge_number(coco, folder):
    coco["annotations"][2]["bbox"] = [1, 2, 3, 10**400]
    return "has the box [1, 2, 3, 1000"


def no_box(coco, folder):
    del coco["annotations"][2]["bbox"]
    return "has the box None"


def box_without_width(coco, folder):
    coco["annotations"][2]["bbox"] = [1, 2, 0, 4]
    return "anns.json: annotation 3 of image 20 (b.png) has the box [1, 2, 0, 4] in 40x30 pixels"


def negative_box(coco, folder):
    coco["annotations"][2]["bbox"] = [10, 10, -5, 4]
    return "has the box [10, 10, -5, 4]"


def box_outside(coco, folder):
    coco["annotations"][2]["bbox"] = [-2, 20, 10, 11.5]
    return "anns.json: annotation 3 of image 20 (b.png) has the box [-2, 20, 10, 11.5] in 40x30 pixels"


def no_mask(coco, folder):
    del coco["annotations"][2]["segmentation"]
    return "anns.json: annotation 3 of image 20 (b.png) has no segmentation"


def empty_list_of_polygons(coco, folder):
    coco["annotations"][2]["segmentation"] = []
    return "has no segmentation"


def empty_polygon_only(coco, folder):
    coco["annotations"][2]["segmentation"] = [[]]  # what PaddleLabel writes of a box
    return "has no segmentation"


def crowd_without_mask(coco, folder):
    del coco["annotations"][5]["segmentation"]
    return "annotation 6 of image 30 (c.png) has no segmentation"


def empty_rle(coco, folder):
    coco["annotations"][2]["segmentation"] = {"size": [30, 40], "counts": [1200]}
    return "has an empty mask"


def short_polygon(coco, folder):
    coco["annotations"][2]["segmentation"] = [[1, 1, 5, 5]]
    return "anns.json: annotation 3 of image 20 (b.png) has the polygon [1, 1, 5, 5]"


def odd_polygon(coco, folder):
    coco["annotations"][2]["segmentation"] = [[1, 1, 5, 5, 1, 5, 1]]
    return "has a polygon of 7 numbers"


def flat_polygon(coco, folder):
    coco["annotations"][2]["segmentation"] = SQUARE[0]
    return "has the segmentation [2, 2, 12, 2, 12, 12, 2, 12]"


def polygon_of_points(coco, folder):
    coco["annotations"][2]["segmentation"] = [[{"x": 1, "y": 1}] * 6]
    return "has the polygon [{'x': 1, 'y': 1}, "


def polygon_of_nan(coco, folder):
    coco["annotations"][2]["segmentation"] = [[1, 1, 5, 5, 1, float("nan")]]
    return "has the polygon [1, 1, 5, 5, 1, nan]"


def polygon_far_away(coco, folder):
    coco["annotations"][2]["segmentation"] = [[1, 1, 5, 5, 1, 1e9]]
    return "has the polygon [1, 1, 5, 5, 1, 1000000000.0]"


def text_for_polygons(coco, folder):
    coco["annotations"][2]["segmentation"] = "none"
    return "has the segmentation 'none'"


def rle_of_another_size(coco, folder):
    coco["annotations"][5]["segmentation"]["size"] = [40, 30]
    return "anns.json: annotation 6 of image 30 (c.png) has a mask of size [40, 30] in an image of [30, 40]"


def rle_with_few_runs(coco, folder):
    coco["annotations"][5]["segmentation"]["counts"].pop()
    return "in an image of 1200"


def rle_with_negative_runs(coco, folder):
    coco["annotations"][5]["segmentation"]["counts"] = [-1, 1201]
    return "has the counts [-1, 1201]"


def rle_of_other_characters(coco, folder):
    coco["annotations"][5]["segmentation"]["counts"] = "ü!"
    return "has the counts 'ü!'"


def rle_cut_off(coco, folder):
    coco["annotations"][5]["segmentation"]["counts"] = "Po"
    return "has the counts 'Po'"


def rle_of_an_object(coco, folder):
    coco["annotations"][2]["segmentation"] = encode(CROWD)
    return "anns.json: annotation 3 of image 20 (b.png) has a run-length encoded mask"


def unused_category(coco, folder):
    coco["annotations"] = [entry for entry in coco["annotations"] if entry["category_id"] == 7 or entry["iscrowd"]]
    return "anns.json: category 3 'dog'"


def missing_image(coco, folder):
    (folder / "b.png").unlink()
    return f"image {folder}/b.png does not exist"


def damaged_image(coco, folder):
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:60])
    return f"image {folder}/b.png is damaged ("


def image_with_an_impossible_name(coco, folder):
    coco["images"][1]["file_name"] = "x" * 300
    return "x does not exist"


def image_of_another_size(coco, folder):
    Image.new("RGB", (30, 40)).save(folder / "b.png")
    return f"image {folder}/b.png has 30x40 pixels, the annotations say 40x30"


def turned_image(coco, folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(folder / "b.png", format="JPEG", exif=exif)
    return f"image {folder}/b.png has 30x40 pixels (turned by its EXIF orientation), the annotations say 40x30"


def deep_image(coco, folder):
    Image.fromarray(np.zeros((30, 40), np.uint16)).save(folder / "b.png")
    return f"image {folder}/b.png"


CASES = [
    ("IMAGE_ID_DUPLICATE", duplicate_image_id),
    ("FILE_NAME_DUPLICATE", duplicate_file_name),
    ("CATEGORY_ID_DUPLICATE", duplicate_category_id),
    ("CATEGORY_NAME_DUPLICATE", duplicate_category_name),
    ("ANNOTATION_ID_DUPLICATE", duplicate_annotation_id),
    ("ANNOTATION_ID_ZERO", annotation_id_zero),
    ("IMAGE_UNKNOWN", unknown_image),
    ("CATEGORY_UNKNOWN", unknown_category),
    ("FIELD_MISSING", no_area),
    ("FIELD_MISSING", no_iscrowd),
    ("BOX_INVALID", box_of_three),
    ("BOX_INVALID", box_of_nan),
    ("BOX_INVALID", box_of_text),
    ("BOX_INVALID", box_of_a_huge_number),
    ("BOX_INVALID", no_box),
    ("BOX_WITHOUT_AREA", box_without_width),
    ("BOX_WITHOUT_AREA", negative_box),
    ("BOX_OUTSIDE", box_outside),
    ("MASK_MISSING", no_mask),
    ("MASK_MISSING", empty_list_of_polygons),
    ("MASK_MISSING", empty_polygon_only),
    ("MASK_MISSING", crowd_without_mask),
    ("MASK_MISSING", empty_rle),
    ("POLYGON_SHORT", short_polygon),
    ("POLYGON_INVALID", odd_polygon),
    ("POLYGON_INVALID", flat_polygon),
    ("POLYGON_INVALID", polygon_of_points),
    ("POLYGON_INVALID", polygon_of_nan),
    ("POLYGON_INVALID", polygon_far_away),
    ("POLYGON_INVALID", text_for_polygons),
    ("RLE_INVALID", rle_of_another_size),
    ("RLE_INVALID", rle_with_few_runs),
    ("RLE_INVALID", rle_with_negative_runs),
    ("RLE_INVALID", rle_of_other_characters),
    ("RLE_INVALID", rle_cut_off),
    ("RLE_OF_OBJECT", rle_of_an_object),
    ("CATEGORY_UNUSED", unused_category),
    ("IMAGE_MISSING", missing_image),
    ("IMAGE_MISSING", image_with_an_impossible_name),
    ("IMAGE_UNREADABLE", damaged_image),
    ("IMAGE_SIZE", image_of_another_size),
    ("IMAGE_SIZE", turned_image),
    ("IMAGE_DEEP", deep_image),
]


def test_every_kind_is_tested_and_every_action_explained():
    assert {kind for kind, _ in CASES} == set(PROBLEMS)
    assert {action for problem in PROBLEMS.values() for action in problem.actions} == set(ACTIONS)


@pytest.mark.parametrize(("kind", "damage"), CASES)
def test_errors_are_told_in_one_line(coco, folder, kind, damage):
    expected = damage(coco, folder)
    actions = {kind: "error"}
    with pytest.raises(UserError) as caught:
        check(coco, folder, actions)
    message = str(caught.value)
    assert expected in message
    assert PROBLEMS[kind].remedy in message
    assert "\n" not in message
    assert "-check_data" not in message
    for action in set(PROBLEMS[kind].actions) - {"error"}:
        assert f"set ON_PROBLEM.{kind} to " in message
        assert action in message.rpartition("set ON_PROBLEM")[2]
    _, report = check(coco, folder, actions, list_all=True)
    assert report.problems == [message]
    assert str(report).splitlines()[-2:] == [f"  {kind}: 1 {PROBLEMS[kind].what} (an error)", message]
    assert report.warnings() == []


@pytest.mark.parametrize(
    ("kind", "damage", "action"),
    [(kind, damage, action) for kind, damage in CASES for action in PROBLEMS[kind].actions if action != "error"],
)
def test_what_is_done_is_told(coco, folder, kind, damage, action):
    expected = damage(coco, folder)
    before = copy.deepcopy(coco)
    cleaned, report = check(coco, folder, {kind: action})
    # Compared as text, because NaN is not equal to itself.
    assert repr(coco) == repr(before)
    (warning,) = report.warnings()
    assert warning.startswith(f"{kind}: 1 {PROBLEMS[kind].what} ({ACTIONS[action]}), first ")
    assert expected in warning
    assert str(report).splitlines()[-1] == f"  warning: {warning}"
    left_out = action in ("skip", "drop")
    if kind.startswith("IMAGE_") and kind != "IMAGE_UNKNOWN":
        assert [image["id"] for image in cleaned["images"]] == ([10, 30, 40] if left_out else [10, 20, 30, 40])
        assert len(cleaned["annotations"]) == (4 if left_out else 6)
    else:
        assert cleaned["images"] == coco["images"]
        assert len(cleaned["annotations"]) == len(coco["annotations"]) - left_out
    assert report.num_images == len(cleaned["images"])
    assert int(report.objects.sum()) + report.num_crowds == len(cleaned["annotations"])
    # What is left has no problem any more, unless it was kept.
    _, again = check(cleaned, folder, {kind: action})
    assert kinds(again) == ({kind: 1} if action == "keep" else {})


def test_what_is_changed(coco, folder):
    annotations = coco["annotations"]
    annotations[0]["bbox"] = [-2, 20, 10, 11.5]
    annotations[1]["id"] = 0
    annotations[2]["segmentation"] = encode(CROWD)
    annotations[3]["id"] = 3
    annotations[4] |= {"segmentation": [[1, 1, 5, 5], SQUARE[0]], "area": None, "iscrowd": None}
    cleaned, _ = check(coco, folder, {"ANNOTATION_ID_DUPLICATE": "renumber", "RLE_OF_OBJECT": "convert"})
    first, second, third, fourth, fifth, crowd = cleaned["annotations"]
    assert first["bbox"] == [0, 20, 8, 10]
    assert [entry["id"] for entry in cleaned["annotations"]] == [1, second["id"], 3, fourth["id"], 5, 6]
    assert {second["id"], fourth["id"]} == {7, 8}
    decoded = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(third["segmentation"], 30, 40)))
    np.testing.assert_array_equal(decoded, CROWD)
    assert fifth["segmentation"] == SQUARE
    assert (fifth["area"], fifth["iscrowd"]) == (100, 0)
    assert crowd == coco["annotations"][5]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([0, 0, 40, 30], [0, 0, 40, 30]),
        ([-1, -1, 42, 32], [-1, -1, 42, 32]),  # within a pixel
        ([-1.01, 0, 10, 10], [0, 0, pytest.approx(8.99), 10]),
        ([30, 20, 11.1, 11.1], [30, 20, 10, 10]),
        ([40.2, 5, 0.5, 5], None),  # wholly outside, however near
        ([50, 5, 5, 5], None),
        ([-9, -9, 5, 5], None),
    ],
)
def test_boxes_are_clipped(coco, folder, box, expected):
    coco["annotations"][2]["bbox"] = box
    cleaned, report = check(coco, folder)
    boxes = [entry["bbox"] for entry in cleaned["annotations"] if entry["id"] == 3]
    assert boxes == ([expected] if expected else [])
    assert kinds(report) == ({} if expected == box else {"BOX_OUTSIDE": 1})


def test_coco_passes_with_the_defaults(coco, folder):
    coco["annotations"][0]["bbox"] = [296.65, 8.33, 0.0, 1.03]
    coco["annotations"][1]["bbox"] = [2.5, 3.25, 37.51, 26.76]
    coco["categories"].append({"id": 90, "name": "toothbrush"})
    _, report = check(coco, folder, num_classes=3)
    assert kinds(report) == {"BOX_WITHOUT_AREA": 1, "CATEGORY_UNUSED": 1}


def test_evaluation_keeps_what_the_file_says(coco, folder):
    annotations = coco["annotations"]
    annotations[0]["bbox"] = [-2, 20, 10, 11.5]
    annotations[1]["bbox"] = [2, 2, 0, 10]
    annotations[2]["segmentation"] = encode(CROWD)
    annotations[3]["area"] = 0
    cleaned, report = check(coco, folder, {"RLE_OF_OBJECT": "skip"}, for_evaluation=True)
    assert cleaned == coco
    assert kinds(report) == {"BOX_WITHOUT_AREA": 1, "BOX_OUTSIDE": 1}  # a run-length encoded mask is fine here
    assert all("(kept)" in line for line in report.warnings())
    _, report = check(coco, folder, {"RLE_OF_OBJECT": "error"}, for_evaluation=True, list_all=True)
    assert kinds(report)["RLE_OF_OBJECT"] == 1
    assert len(check(coco, folder, {"RLE_OF_OBJECT": "skip"})[0]["annotations"]) == 4
    # What pycocotools cannot read is mended all the same.
    del annotations[3]["area"], annotations[3]["iscrowd"]
    annotations[4]["id"] = 0
    cleaned, report = check(coco, folder, for_evaluation=True)
    assert (cleaned["annotations"][3]["area"], cleaned["annotations"][3]["iscrowd"]) == (100, 0)
    assert cleaned["annotations"][4]["id"] == 7
    with pytest.raises(UserError, match=r"annotation 1 .* the box \[-2, 20"):
        check(coco, folder, {"BOX_OUTSIDE": "error"}, for_evaluation=True)


def test_nobody_looks_at_masks_that_nobody_uses(coco, folder):
    coco["annotations"][0]["segmentation"] = "none"
    del coco["annotations"][1]["segmentation"], coco["annotations"][2]["area"], coco["annotations"][3]["area"]
    coco["annotations"][2]["segmentation"] = {"size": 3}
    cleaned, report = check(coco, folder, masks=False)
    assert kinds(report) == {"FIELD_MISSING": 2}
    assert [entry["area"] for entry in cleaned["annotations"]] == [100, 100, 100, 100, 100, 375]


def test_the_number_of_further_problems_is_told(coco, folder):
    for annotation in coco["annotations"][1:5]:
        annotation["category_id"] = 4
    coco["annotations"][0]["bbox"] = None
    with pytest.raises(UserError, match=r"annotation 2 has the category_id 4; .*\(and 4 more; -check_data lists"):
        check(coco, folder)
    (folder / "d.png").unlink()
    (folder / "c.png").unlink()
    _, report = check(coco, folder, list_all=True)
    assert len(report.problems) == 7
    assert ["annotation 5" in line for line in report.problems] == [False] * 3 + [True] + [False] * 3
    assert kinds(report) == {"CATEGORY_UNKNOWN": 4, "BOX_INVALID": 1, "IMAGE_MISSING": 2}
    lines = str(report).splitlines()
    assert lines[-7:] == report.problems
    assert [line.split()[:2] for line in lines[-10:-7]] == [
        ["CATEGORY_UNKNOWN:", "4"],
        ["BOX_INVALID:", "1"],
        ["IMAGE_MISSING:", "2"],
    ]


def test_nothing_left_is_an_error(coco, folder):
    for annotation in coco["annotations"]:
        annotation["bbox"] = [100, 100, 5, 5]
    with pytest.raises(UserError, match=r"anns\.json has no object for the train data.*BOX_OUTSIDE: 6 boxes"):
        check(coco, folder)
    for name in "abcd":
        (folder / f"{name}.png").unlink()
    with pytest.raises(UserError, match="has no object"):
        check(make_coco(), folder, {"IMAGE_MISSING": "skip"})
    with pytest.raises(UserError, match="IMAGE_MISSING to skip"):
        check(make_coco(), folder)


@pytest.mark.parametrize(("split", "images", "objects"), [("train", 35, 349), ("val", 4, 32)])
def test_the_demo_data_passes(tmp_path, split, images, objects):
    root = write_nuclei_detection(tmp_path / "nuclei")
    coco = read_annotations(root / f"annotations/instances_{split}.json", "TrainDataset")
    cleaned, report = check(coco, root / split, num_classes=1)
    assert cleaned == coco
    assert kinds(report) == {}
    assert (report.num_images, report.objects.sum(), report.num_crowds) == (images, objects, 0)


@pytest.mark.slow
def test_the_check_of_another_projects_data():
    root = fetch("bear")
    coco = read_annotations(root / "instances/train.json", "TrainDataset")
    with pytest.raises(UserError, match=r"JPEGImages/image/3\.jpeg does not exist"):  # it calls its folder otherwise
        check(coco, root / "JPEGImages")
    for image in coco["images"]:
        image["file_name"] = Path(image["file_name"]).name
    cleaned, report = check(coco, root / "JPEGImages")
    assert cleaned == coco
    assert kinds(report) == {"CATEGORY_UNUSED": 1}
    assert report.objects.tolist() == [[0, 0, 3], [0, 0, 0]]


def test_what_opencv_refuses_is_told(coco, folder, monkeypatch):
    def refuse(path):
        raise cv2.error("too many\npixels")

    monkeypatch.setattr(data_check, "look_at_image", refuse)
    with pytest.raises(UserError, match=r"image .*a\.png cannot be read \(.*too many pixels\); replace it"):
        check(coco, folder)


# ---- actions


def test_actions_are_completed_and_checked():
    actions = resolve_actions({"BOX_OUTSIDE": "error"})
    assert actions == {kind: "error" if kind == "BOX_OUTSIDE" else PROBLEMS[kind].actions[0] for kind in PROBLEMS}
    with pytest.raises(UserError, match=r"ON_PROBLEM\.BOX_OUTSID is no kind of problem; choose from IMAGE_ID"):
        resolve_actions({"BOX_OUTSID": "clip"})
    with pytest.raises(UserError, match=r"ON_PROBLEM\.BOX_INVALID is 'clip'; it may be error, skip"):
        resolve_actions({"BOX_INVALID": "clip"})


# ---- masks


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    mask = (np.random.default_rng(seed).random((37, 211)) < 0.02 * 9**seed / 9**4 + 0.3).astype(np.uint8)
    mask[:, 50:180] = seed % 2  # long runs, and differences that are negative
    compressed, plain = encode(mask), {"size": [37, 211], "counts": runs_of(mask)}
    for rle in (compressed, plain):
        assert inspect_segmentation(rle, True, 37, 211) is None
        assert inspect_segmentation(rle, False, 37, 211).problems == [("RLE_OF_OBJECT", "a run-length encoded mask")]
        assert area_of(rle, 37, 211) == mask.sum()
        assert rle_to_polygons(rle) == rle_to_polygons(compressed)
    for cut in range(1, 6):
        broken = {"size": [37, 211], "counts": compressed["counts"][:-cut]}
        assert inspect_segmentation(broken, True, 37, 211).problems[0][0] == "RLE_INVALID"


# ---- the file


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{damaged", "is no JSON"),
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds a JSON list, not an object"),
        ("{}", "has no images"),
        ({"images": {}}, "images is no list"),
        ({"images": []}, "the list images is empty"),
        ({"annotations": []}, "the list annotations is empty"),
        ({"categories": []}, "the list categories is empty"),
        ({"images": [3]}, "images[0] is no object"),
        ({"images": [{"id": "1"}]}, "id of images[0] is '1'; write an integer"),
        ({"images": [{"id": True}]}, "id of images[0] is True"),
        ({"images": [{"id": 1}]}, "file_name of images[0] is missing; write the path of the image"),
        ({"images": [{"id": 1, "file_name": "a", "width": 0}]}, "width of images[0] is 0"),
        ({"images": [{"id": 1, "file_name": "a", "width": 1, "height": 2.5}]}, "height of images[0] is 2.5"),
        ({"categories": [{"id": 1, "name": ""}]}, "name of categories[0] is ''"),
        ({"annotations": [{"image_id": 1}]}, "id of annotations[0] is missing"),
        ({"annotations": [{"id": 2**60}]}, "id of annotations[0] is 1152921504606846976"),
        ({"annotations": [{"id": 1, "image_id": "a"}]}, "image_id of annotations[0] is 'a'"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 2}]}, "iscrowd of annotations[0] is 2"),
    ],
)
def test_files_that_are_no_annotations(coco, tmp_path, content, expected):
    path = tmp_path / "anns.json"
    path.write_text(content if isinstance(content, str) else json.dumps({**coco, **content}))
    with pytest.raises(UserError) as caught:
        read_annotations(path, "TrainDataset")
    assert f"TrainDataset: {path}" in str(caught.value) or f"of {path}" in str(caught.value)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading(coco, tmp_path):
    path = tmp_path / "anns.json"
    with pytest.raises(UserError, match=r"TrainDataset: the annotations .*anns\.json do not exist"):
        read_annotations(path, "TrainDataset")
    path.write_text(json.dumps(coco))
    assert read_annotations(path, "TrainDataset") == coco


def test_both_parts_have_the_same_categories(coco):
    other = make_coco()
    check_same_categories(coco, other, ("a.json", "b.json"))
    other["categories"].reverse()
    with pytest.raises(UserError, match=r"category 1 is 7 'cat' in a\.json and 3 'dog' in b\.json"):
        check_same_categories(coco, other, ("a.json", "b.json"))
    other["categories"] = coco["categories"][:1]
    with pytest.raises(UserError, match=r"category 2 is 3 'dog' in a\.json and none in b\.json"):
        check_same_categories(coco, other, ("a.json", "b.json"))


# ---- several ranks, and what has passed before


def reports(coco, folder, **options):
    cleaned, report = check(coco, folder, **options)
    return str(report), cleaned


@pytest.mark.parametrize("ranks", [2, 5])
def test_ranks_share_the_images_and_agree(coco, folder, monkeypatch, ranks):
    (folder / "b.png").unlink()
    (folder / "d.png").write_text("no image")
    actions = {"IMAGE_MISSING": "skip", "IMAGE_UNREADABLE": "skip"}
    alone = reports(coco, folder, actions=actions)
    totals = set()
    results = run_ranks(
        monkeypatch,
        MODULES,
        lambda: reports(coco, folder, actions=actions, progress=lambda _, total: totals.add(total)),
        ranks,
    )
    assert results == [alone] * ranks
    assert totals == ({2} if ranks == 2 else {1})
    results = run_ranks(monkeypatch, MODULES, lambda: reports(coco, folder), ranks)
    assert len(set(results)) == 1
    assert "b.png does not exist" in results[0]
    assert "(and 1 more" in results[0]


def count_looks(monkeypatch):
    looked = []
    look = data_check.look_at_image
    monkeypatch.setattr(data_check, "look_at_image", lambda path: looked.append(path) or look(path))
    return looked


def test_images_that_passed_are_not_looked_at_again(coco, folder, tmp_path, monkeypatch):
    record, looked = tmp_path / "out/data_check.json", count_looks(monkeypatch)
    coco["annotations"][0]["bbox"] = [-2, 20, 10, 11.5]
    first = reports(coco, folder, record=record)
    assert len(looked) == 4
    assert reports(coco, folder, record=record) == first  # annotations are mended each time
    assert len(looked) == 4
    os.utime(folder / "c.png", ns=(0, 0))
    assert reports(coco, folder, record=record) == first
    assert len(looked) == 8
    coco["images"][3]["width"] = 41
    for _ in range(2):
        with pytest.raises(UserError, match=r"d\.png has 40x30 pixels, the annotations say 41x30"):
            check(coco, folder, record=record)
    assert set(json.loads(record.read_text())) == {"train"}


def test_images_to_leave_out_are_looked_at_each_time(coco, folder, tmp_path, monkeypatch):
    record, looked = tmp_path / "data_check.json", count_looks(monkeypatch)
    (folder / "b.png").write_text("no image")
    for times in (1, 2):
        cleaned, _ = check(coco, folder, {"IMAGE_UNREADABLE": "skip"}, record=record)
        assert len(cleaned["images"]) == 3
        assert len(looked) == 4 * times
    deep_image(coco, folder)
    for _ in range(2):
        check(coco, folder, record=record)
    assert len(looked) == 12


def test_ranks_agree_on_what_has_passed(coco, folder, monkeypatch, tmp_path):
    record, looked = tmp_path / "out/data_check.json", count_looks(monkeypatch)
    for _ in range(2):
        run_ranks(monkeypatch, MODULES, lambda: check(coco, folder, record=record), 2)
        assert len(looked) == 4


def test_the_check_alone_compares_the_categories_of_both_parts(boxes, boxes_config, capsys):
    assert run(boxes_config, "-check_data") == {"problems": 0.0}
    file = boxes / "annotations/val.json"
    val = json.loads(file.read_text())
    val["categories"].reverse()
    file.write_text(json.dumps(val))
    assert_told(lambda: run(boxes_config, "-check_data"), "category 1 is 7 'red'", "12 'blue'", "same order")
    assert "val data: 3 images" in capsys.readouterr().out
