"""Segmentation and detection folders that are cut out of the micrographs."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from common.data import image_file
from common.demo_data import folders as demo_folders
from common.demo_data import wheels as demo_data


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


def stack(folder, part, split, count):
    return np.concatenate([read(folder / f"{part}/{split}_{number}.png") for number in range(count)])


def test_nuclei_for_segmentation(tmp_path):
    folder = demo_folders.write_nuclei_segmentation(tmp_path / "new/demo")
    assert (folder / "labels.txt").read_text().split() == list(demo_folders.NUCLEI_CLASSES)
    assert (folder / "LICENSE").read_text() == (demo_data.fetch("dsb_nuclei") / "LICENSE").read_text()
    assert (folder / "train.txt").read_text().splitlines() == [
        f"images/train_{number}.png masks/train_{number}.png" for number in range(2)
    ]
    image, instances = demo_data.load_dsb_nuclei()
    mask = np.hstack([stack(folder, "masks", "train", 2), stack(folder, "masks", "val", 4)])
    np.testing.assert_array_equal(mask, instances > 0)
    written = np.hstack([stack(folder, "images", "train", 2), stack(folder, "images", "val", 4)])[..., 0]
    low, high = np.percentile(image[:, :384], (1, 99))
    np.testing.assert_allclose(written, (255 * (image - low) / (high - low)).clip(0, 255), atol=0.6)


@pytest.mark.slow
def test_he_nuclei_for_segmentation(tmp_path):
    image, _, types = demo_data.load_he_nuclei()
    for write, classes in ((demo_folders.write_he_segmentation, types), (demo_folders.write_he_masks, types > 0)):
        folder = write(tmp_path / write.__name__)
        for part, expected in (("images", image), ("masks", classes)):
            whole = np.hstack([stack(folder, part, "val", 4), stack(folder, part, "train", 3)])
            np.testing.assert_array_equal(whole, expected)


def test_photos_are_upright_parts_of_the_photographs(tmp_path):
    files = sorted(demo_folders.write_photos(tmp_path / "demo").glob("*/*/*.jpg"))
    stored = [image_file.look_at_image(str(file)).orientation for file in files]
    assert (len(files), stored.count(6), stored.count(1)) == (60, 20, 40)
    source = Path(find_spec("sklearn").origin).parent / "datasets" / "images"
    for name, photograph in (("temple", "china.jpg"), ("flower", "flower.jpg")):
        whole = image_file.read_image(source / photograph)
        for file in (tmp_path / "demo").glob(f"*/{name}/00.jpg"):  # turned
            assert cv2.matchTemplate(whole, image_file.read_image(file), cv2.TM_CCOEFF_NORMED).max() > 0.95


@pytest.mark.slow
def test_he_nuclei_for_detection(tmp_path):
    folder = demo_folders.write_he_boxes(tmp_path / "demo")
    _, instances, _ = demo_data.load_he_nuclei()
    for split, left, columns in (("train", 375, 4), ("val", 0, 1)):
        coco = json.loads((folder / f"annotations/{split}.json").read_text())
        assert len(coco["images"]) == 11 * columns
        for entry in coco["images"]:
            row, column = divmod(entry["id"] - 1, columns)
            tile = np.s_[128 * row : 128 * (row + 1), left + 128 * column : left + 128 * (column + 1)]
            found = [annotation for annotation in coco["annotations"] if annotation["image_id"] == entry["id"]]
            check_annotations(found, instances[tile])


def test_nuclei_for_detection(tmp_path):
    folder = demo_folders.write_nuclei_detection(tmp_path / "demo")
    _, instances = demo_data.load_dsb_nuclei()
    corners = {
        "train": [(64 * row, 64 * column) for row in range(7) for column in range(5)],
        "val": [(128 * row, 384) for row in range(4)],
    }
    for split, places in corners.items():
        coco = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        assert coco["categories"] == [{"id": 1, "name": "nucleus"}]
        assert [annotation["id"] for annotation in coco["annotations"]] == [*range(1, len(coco["annotations"]) + 1)]
        for entry, (top, left) in zip(coco["images"], places, strict=True):
            tile = np.s_[top : top + 128, left : left + 128]
            assert read(folder / split / entry["file_name"]).shape == (128, 128, 3)
            found = [annotation for annotation in coco["annotations"] if annotation["image_id"] == entry["id"]]
            check_annotations(found, instances[tile])


def check_annotations(annotations, instances):
    """Compare boxes, areas and decoded polygons with the instances of a tile of at least 10 pixels."""
    numbers = [number for number in np.unique(instances[instances > 0]) if (instances == number).sum() >= 10]
    for annotation, number in zip(annotations, numbers, strict=True):
        mask = instances == number
        rle = mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], *mask.shape))
        np.testing.assert_array_equal(mask_utils.decode(rle), mask)
        box = mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask, np.uint8)))
        assert (annotation["area"], annotation["bbox"]) == (mask.sum(), box.tolist())
