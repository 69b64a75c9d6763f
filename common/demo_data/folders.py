"""Folders for semantic segmentation and object detection, cut out of the micrographs of :mod:`common.demo_data.wheels`.

Training and validation images come from one micrograph: they show that training works, not that a model generalizes.

Each ``write_*`` function makes its folder on the first call and returns its path; several processes may call it at
once. It raises ``UserError`` as the ``load_*`` function of the micrograph does, and if the folder cannot be written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.polygons import mask_to_polygons
from .wheels import data_root, fetch, load_dsb_nuclei, load_he_nuclei, make_folder

__all__ = [
    "HE_NUCLEI_CLASSES",
    "NUCLEI_CLASSES",
    "write_he_segmentation",
    "write_nuclei_detection",
    "write_nuclei_segmentation",
]

NUCLEI_CLASSES = ("background", "nucleus")
# The type mask has numbers only. Their names are those of the outlines that histolytics ships beside it
# (hgsc_nest.parquet), matched by position: all 1,295 outlines agree.
HE_NUCLEI_CLASSES = ("background", "connective", "inflammatory", "neoplastic")
_MASK_COLORS = ((0, 0, 0), (0, 158, 115), (86, 180, 233), (213, 94, 0))
_NUCLEI_TRAIN, _NUCLEI_VAL = slice(0, 384), slice(384, 512)  # columns
_VAL_TILES = 4
_TILE = 128  # side of a tile for detection
_MIN_PIXELS = 10  # smaller parts of a nucleus at the edge of a tile are not annotated


def _read_nuclei() -> tuple[np.ndarray, np.ndarray]:
    """Return the fluorescence micrograph, RGB uint8 [h, w, 3], and its instances, int32 [h, w]."""
    image, instances = load_dsb_nuclei()
    low, high = np.percentile(image[:, _NUCLEI_TRAIN], (1, 99))
    gray = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)
    return np.repeat(gray[..., np.newaxis], 3, axis=2), instances


# ---- semantic segmentation


def write_nuclei_segmentation(folder: str | Path | None = None) -> Path:
    """Make a folder for semantic segmentation out of the fluorescence micrograph.

    It has ``images/*.png`` (8-bit RGB), ``masks/*.png`` (class numbers with a palette), ``train.txt`` and ``val.txt``
    with lines ``images/train_0.png masks/train_0.png``, and ``labels.txt`` with ``NUCLEI_CLASSES``. The left 384
    columns give 2 training images of 384x256 pixels, the right 128 columns 4 validation images of 128x128. Gray values
    are scaled so that the 1st and the 99th percentile of the training columns become 0 and 255.

    Args:
        folder: ``data_root() / "nuclei_segmentation"`` if None.
    """

    def read() -> tuple[np.ndarray, np.ndarray]:
        image, instances = _read_nuclei()
        return image, instances > 0

    splits = {"train": (_NUCLEI_TRAIN, 2), "val": (_NUCLEI_VAL, _VAL_TILES)}
    return _write_segmentation(_folder(folder, "nuclei_segmentation"), "dsb_nuclei", NUCLEI_CLASSES, read, splits)


def write_he_segmentation(folder: str | Path | None = None) -> Path:
    """Make a folder for semantic segmentation out of the H&E-stained tissue image, with ``HE_NUCLEI_CLASSES``.

    The format is that of :func:`write_nuclei_segmentation`. The right 1125 columns give 3 training images of 1125x500
    pixels, the left 375 columns 4 validation images of 375x375. The masks are noisy.

    Args:
        folder: ``data_root() / "he_segmentation"`` if None.
    """

    def read() -> tuple[np.ndarray, np.ndarray]:
        image, _, types = load_he_nuclei()
        return image, types

    # The left edge is for validation because the right edge has hardly any neoplastic and inflammatory nuclei.
    splits = {"train": (slice(375, 1500), 3), "val": (slice(0, 375), _VAL_TILES)}
    return _write_segmentation(_folder(folder, "he_segmentation"), "he_nuclei", HE_NUCLEI_CLASSES, read, splits)


def _folder(folder: str | Path | None, name: str) -> Path:
    return data_root() / name if folder is None else Path(folder)


def _write_segmentation(
    folder: Path,
    source: str,
    class_names: Sequence[str],
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    splits: Mapping[str, tuple[slice, int]],
) -> Path:
    """Cut the image and the class mask that ``read`` returns; each split has columns and a number of images."""

    def fill(content: Path) -> None:
        image, mask = read()
        for subfolder in ("images", "masks"):
            (content / subfolder).mkdir(parents=True)
        for split, (columns, count) in splits.items():
            lines = []
            for number, rows in enumerate(np.array_split(np.arange(len(image)), count)):
                name = f"{split}_{number}.png"
                Image.fromarray(image[rows, columns]).save(content / "images" / name)
                part = Image.fromarray(mask[rows, columns].astype(np.uint8))
                part.putpalette(np.array(_MASK_COLORS, np.uint8).tobytes())
                part.save(content / "masks" / name)
                lines.append(f"images/{name} masks/{name}\n")
            (content / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        (content / "labels.txt").write_text("\n".join(class_names) + "\n", encoding="utf-8")
        shutil.copyfile(fetch(source) / "LICENSE", content / "LICENSE")

    return make_folder(folder, fill, ["train.txt", "val.txt", "labels.txt", "LICENSE"])


# ---- object detection


def write_nuclei_detection(folder: str | Path | None = None) -> Path:
    """Make a folder for instance segmentation out of the fluorescence micrograph, in COCO format.

    It has ``train/*.png`` and ``val/*.png`` (8-bit RGB), ``annotations/instances_train.json`` and
    ``annotations/instances_val.json`` with the category 1, ``nucleus``. The left 384 columns give 35 training tiles of
    128x128 pixels, which overlap by half, the right 128 columns 4 validation tiles of 128x128, which do not. Gray
    values are as in :func:`write_nuclei_segmentation`. Objects of less than 10 pixels are not annotated.

    Args:
        folder: ``data_root() / "nuclei_detection"`` if None.
    """

    def fill(content: Path) -> None:
        image, instances = _read_nuclei()
        (content / "annotations").mkdir(parents=True)
        for split, columns, step in (("train", _NUCLEI_TRAIN, _TILE // 2), ("val", _NUCLEI_VAL, _TILE)):
            (content / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for top in range(0, len(image) - _TILE + 1, step):
                for left in range(columns.start, columns.stop - _TILE + 1, step):
                    tile = np.s_[top : top + _TILE, left : left + _TILE]
                    name = f"{split}_{len(images)}.png"
                    Image.fromarray(image[tile]).save(content / split / name)
                    images.append({"id": len(images) + 1, "file_name": name, "width": _TILE, "height": _TILE})
                    for fields in _annotate(instances[tile]):
                        annotations.append({"id": len(annotations) + 1, "image_id": len(images), **fields})
            categories = [{"id": 1, "name": NUCLEI_CLASSES[1]}]
            coco = {"images": images, "categories": categories, "annotations": annotations}
            (content / f"annotations/instances_{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
        shutil.copyfile(fetch("dsb_nuclei") / "LICENSE", content / "LICENSE")

    files = ["LICENSE", "annotations/instances_train.json", "annotations/instances_val.json"]
    return make_folder(_folder(folder, "nuclei_detection"), fill, files)


def _annotate(instances: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the COCO annotation of each instance in a tile."""
    for instance in np.unique(instances[instances > 0]):
        mask = instances == instance
        if mask.sum() < _MIN_PIXELS:
            continue
        ys, xs = np.nonzero(mask)
        left, top = int(xs.min()), int(ys.min())
        yield {
            "category_id": 1,
            "bbox": [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": mask_to_polygons(mask),
        }
