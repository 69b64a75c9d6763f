"""Tiny data sets of colored squares, one for each task."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

COLORS = {"blue": (30, 30, 220), "green": (30, 220, 30), "red": (220, 30, 30)}


def make_shapes(folder: Path, images: int) -> None:
    """Write ``images`` 40x48 PNGs of a colored square on noise into one folder for each color."""
    rng = np.random.default_rng(0)
    for name, color in COLORS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = rng.integers(0, 60, (40, 48, 3)).astype(np.uint8)
            pixels[10:30, 10:30] = color
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


def make_squares(folder: Path) -> None:
    """Write a segmentation folder: a red and a green square, 60x44 and 44x60 pixels, 5 to train and 3 to validate."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for split, count in (("train", 5), ("val", 3)):
        lines = []
        for number in range(count):
            height, width = (44, 60) if number % 2 else (60, 44)
            pixels, mask = rng.integers(0, 60, (height, width, 3)), np.zeros((height, width), np.uint8)
            for label, color in ((1, COLORS["red"]), (2, COLORS["green"])):
                top, left = rng.integers(0, height - 16), rng.integers(0, width - 16)
                pixels[top : top + 16, left : left + 16], mask[top : top + 16, left : left + 16] = color, label
            mask[:3] = 255
            name = f"{split}{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / name)
            Image.fromarray(mask).save(folder / "masks" / name)
            lines.append(f"images/{name} masks/{name}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    (folder / "labels.txt").write_text("background\nred\ngreen\n")


def make_boxes(folder: Path) -> None:
    """Write a COCO folder: colored squares on noise, 5 images of 48x64 and 64x48 pixels to train and 3 to validate.

    The categories have sparse ids in an order that is not theirs: red (7), green (3) and blue (12), which has no object
    to validate. The last training image is empty, the last object to validate a crowd.
    """
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "green"}, {"id": 12, "name": "blue"}]
    for split, count, colors, objects in (("train", 5, 3, 8), ("val", 3, 2, 6)):
        rng, images, annotations = np.random.default_rng(count), [], []
        (folder / split).mkdir()
        for number in range(count):
            height, width = (48, 64) if number % 2 else (64, 48)
            pixels = rng.integers(0, 60, (height, width, 3))
            for top in (0, height // 2) if len(annotations) < objects else ():
                category = categories[len(annotations) % colors]
                side = int(rng.integers(16, 24))
                left = int(rng.integers(0, width - side))
                pixels[top : top + side, left : left + side] = COLORS[category["name"]]
                right, bottom = left + side, top + side
                annotation = {"id": len(annotations) + 1, "image_id": 100 + number, "category_id": category["id"]}
                annotation |= {"bbox": [left, top, side, side], "area": side * side, "iscrowd": 0}
                annotation["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
                annotations.append(annotation)
            name = f"{split}_{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name)
            images.append({"id": 100 + number, "file_name": name, "height": height, "width": width})
        if split == "val":
            runs = [height * left + top, *[side, height - side] * (side - 1), side]
            counts = [*runs, height * width - sum(runs)]
            annotations[-1] |= {"iscrowd": 1, "segmentation": {"size": [height, width], "counts": counts}}
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco))
