"""Folders made out of the micrographs, for semantic segmentation and for object detection."""

from __future__ import annotations

import json
import threading
from collections import defaultdict

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_utils

from common.demo_data import folders as demo_folders
from common.demo_data import wheels as demo_data
from common.errors import UserError

# ---- semantic segmentation


@pytest.mark.slow
@pytest.mark.parametrize(
    ("write", "train", "val", "class_names"),
    [
        (demo_folders.write_nuclei_segmentation, [(256, 384)] * 2, [(128, 128)] * 4, demo_folders.NUCLEI_CLASSES),
        (demo_folders.write_he_segmentation, [(500, 1125)] * 3, [(375, 375)] * 4, demo_folders.HE_NUCLEI_CLASSES),
    ],
)
def test_segmentation_folders(tmp_path, write, train, val, class_names):
    folder = write(tmp_path / "new/demo")
    assert (folder / "labels.txt").read_text().splitlines() == list(class_names)
    assert (folder / "LICENSE").read_text()
    for split, sizes in (("train", train), ("val", val)):
        pairs = [line.split(" ") for line in (folder / f"{split}.txt").read_text().splitlines()]
        assert pairs == [[f"{part}/{split}_{n}.png" for part in ("images", "masks")] for n in range(len(sizes))]
        contents = [[Image.open(folder / name) for name in pair] for pair in pairs]
        assert {(image.mode, mask.mode) for image, mask in contents} == {("RGB", "P")}
        assert [np.shape(mask) for _, mask in contents] == sizes
        assert [image.size for image, _ in contents] == [mask.size for _, mask in contents]
        # Every class is in either part.
        assert set.union(*(set(np.unique(mask)) for _, mask in contents)) == set(range(len(class_names)))


@pytest.mark.slow
def test_segmentation_parts_put_together_are_the_micrographs(tmp_path):
    def columns(folder, part, split, count):
        return np.concatenate([np.asarray(Image.open(folder / f"{part}/{split}_{n}.png")) for n in range(count)])

    folder = demo_folders.write_nuclei_segmentation(tmp_path / "nuclei")
    image, instances = demo_data.load_dsb_nuclei()
    mask = np.hstack([columns(folder, "masks", "train", 2), columns(folder, "masks", "val", 4)])
    np.testing.assert_array_equal(mask, instances > 0)
    grey = np.hstack([columns(folder, "images", "train", 2), columns(folder, "images", "val", 4)])[..., 0]
    inside = (grey > 0) & (grey < 255)
    assert inside[:, :384].mean() > 0.97  # the percentiles are those of the training columns
    slope, offset = np.polyfit(image[inside], grey[inside], 1)
    np.testing.assert_allclose(slope * image[inside] + offset, grey[inside], atol=0.6)

    folder = demo_folders.write_he_segmentation(tmp_path / "he")
    image, _, types = demo_data.load_he_nuclei()
    for part, expected in (("images", image), ("masks", types)):
        whole = np.hstack([columns(folder, part, "val", 4), columns(folder, part, "train", 3)])
        np.testing.assert_array_equal(whole, expected)


@pytest.mark.slow
def test_segmentation_folder_is_made_once_and_by_one(tmp_path):
    count = 4
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(demo_folders.write_nuclei_segmentation(tmp_path / "demo")))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [tmp_path / "demo"] * count
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    (tmp_path / "demo/masks/val_3.png").unlink()
    with pytest.raises(UserError, match=r"demo lacks masks/val_3\.png: delete the folder"):
        demo_folders.write_nuclei_segmentation(tmp_path / "demo")


@pytest.mark.slow
def test_folders_are_kept_beside_the_other_data(tmp_path, monkeypatch):
    for name in ("dsb_nuclei", "he_nuclei"):
        (tmp_path / name).symlink_to(demo_data.fetch(name))
    monkeypatch.setenv("PALE_DATA", str(tmp_path))
    assert demo_folders.write_nuclei_segmentation() == tmp_path / "nuclei_segmentation"
    assert demo_folders.write_he_segmentation() == tmp_path / "he_segmentation"
    assert demo_folders.write_nuclei_detection() == tmp_path / "nuclei_detection"
    assert demo_folders.write_he_detection() == tmp_path / "he_detection"


# ---- object detection


def read_coco(folder, split):
    """The annotation file of a part, and its images by their ids."""
    coco = json.loads((folder / f"annotations/instances_{split}.json").read_text())
    assert coco["images"][0].keys() == {"id", "file_name", "width", "height"}
    images = {}
    for entry in coco["images"]:
        with Image.open(folder / split / entry["file_name"]) as image:
            assert (image.mode, image.size) == ("RGB", (entry["width"], entry["height"]))
            images[entry["id"]] = np.asarray(image)
    for key in ("images", "annotations"):
        assert [entry["id"] for entry in coco[key]] == list(range(1, len(coco[key]) + 1))
    return coco, images


def check_annotations(coco, truth):
    """Compare boxes, areas and decoded polygons with the true instances of each tile, by image id."""
    found = defaultdict(list)
    for annotation in coco["annotations"]:
        found[annotation["image_id"]].append(annotation)
    overlaps = []
    for image_id, instances in truth.items():
        pixels = [number for number in np.unique(instances[instances > 0]) if (instances == number).sum() >= 10]
        assert len(found[image_id]) == len(pixels)
        for annotation, number in zip(found[image_id], pixels, strict=True):
            mask = instances == number
            rle = mask_utils.merge(mask_utils.frPyObjects(annotation["segmentation"], *mask.shape))
            decoded = mask_utils.decode(rle).astype(bool)
            overlaps.append((decoded & mask).sum() / (decoded | mask).sum())
            assert annotation["area"] == mask.sum()
            assert (
                annotation["bbox"] == mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask, np.uint8))).tolist()
            )
            assert annotation["iscrowd"] == 0
    return overlaps


def test_nuclei_for_detection(tmp_path):
    folder = demo_folders.write_nuclei_detection(tmp_path / "new/demo")
    image, instances = demo_data.load_dsb_nuclei()
    assert (folder / "LICENSE").read_text() == (demo_data.fetch("dsb_nuclei") / "LICENSE").read_text()
    corners = {
        "train": [(64 * row, 64 * column) for row in range(7) for column in range(5)],
        "val": [(128 * row, 384) for row in range(4)],
    }
    pixels = []
    for split, places in corners.items():
        coco, images = read_coco(folder, split)
        assert coco["categories"] == [{"id": 1, "name": "nucleus"}]
        assert {annotation["category_id"] for annotation in coco["annotations"]} == {1}
        assert len(images) == len(places)
        tiles = [np.s_[top : top + 128, left : left + 128] for top, left in places]
        overlaps = check_annotations(coco, {number: instances[tile] for number, tile in enumerate(tiles, 1)})
        assert min(overlaps) == 1.0  # nuclei without holes
        for tile, pixels_of_tile in zip(tiles, images.values(), strict=True):
            pixels.append((image[tile].ravel(), pixels_of_tile[..., 0].ravel()))
    # One scale of grey values for all tiles.
    true, written = (np.concatenate(parts) for parts in zip(*pixels, strict=True))
    inside = (written > 0) & (written < 255)
    slope, offset = np.polyfit(true[inside], written[inside], 1)
    np.testing.assert_allclose(slope * true[inside] + offset, written[inside], atol=0.6)


@pytest.mark.slow
def test_he_nuclei_for_detection(tmp_path):
    folder = demo_folders.write_he_detection(tmp_path / "demo")
    image, instances, types = demo_data.load_he_nuclei()
    corners = {
        "train": [(375 * row // 2, 375 + 375 * column // 2) for row in range(7) for column in range(5)],
        "val": [(375 * row, 0) for row in range(4)],
    }
    for split, places in corners.items():
        coco, images = read_coco(folder, split)
        assert [category["name"] for category in coco["categories"]] == ["connective", "inflammatory", "neoplastic"]
        assert {annotation["category_id"] for annotation in coco["annotations"]} == {1, 2, 3}
        tiles = [np.s_[top : top + 375, left : left + 375] for top, left in places]
        for tile, pixels in zip(tiles, images.values(), strict=True):
            np.testing.assert_array_equal(pixels, image[tile])
        assert (
            np.mean(check_annotations(coco, {number: instances[tile] for number, tile in enumerate(tiles, 1)})) > 0.99
        )
        for annotation in coco["annotations"][:50]:
            left, top, width, height = annotation["bbox"]
            part = types[tiles[annotation["image_id"] - 1]][top : top + height, left : left + width]
            assert annotation["category_id"] in part
