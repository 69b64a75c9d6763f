"""Folders for semantic segmentation and object detection, cut out of the micrographs of :mod:`.wheels`.

Training and validation images come from one micrograph: they show that training works, not that a model generalizes.

Each ``write_*`` function makes its folder on the first call and returns its path; several processes may call it at
once. It raises ``UserError`` as the ``load_*`` function of the micrograph does, and if the folder cannot be written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
_VAL_TILES = 4
_MIN_PIXELS = 10  # smaller parts of a nucleus at the edge of a tile are not annotated


@dataclass(frozen=True)
class _Micrograph:
    """An image to cut up.

    Attributes:
        source: name of the demo data.
        class_names: of the types of nuclei, background first.
        read: returns the image, RGB uint8 [h, w, 3], instances and types, int32 [h, w].
        train, val: columns of the training and validation images.
        train_images: number of training images for segmentation.
    """

    source: str
    class_names: tuple[str, ...]
    read: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]
    train: slice
    val: slice
    train_images: int


def _read_nuclei() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, instances = load_dsb_nuclei()
    low, high = np.percentile(image[:, _NUCLEI.train], (1, 99))
    gray = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)
    return np.repeat(gray[..., np.newaxis], 3, axis=2), instances, (instances > 0).astype(np.int32)


_NUCLEI = _Micrograph("dsb_nuclei", NUCLEI_CLASSES, _read_nuclei, slice(0, 384), slice(384, 512), 2)
# The left edge is for validation because the right edge has hardly any neoplastic and inflammatory nuclei.
_HE = _Micrograph("he_nuclei", HE_NUCLEI_CLASSES, load_he_nuclei, slice(375, 1500), slice(0, 375), 3)


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
    return _write_segmentation(_folder(folder, "nuclei_segmentation"), _NUCLEI)


def write_he_segmentation(folder: str | Path | None = None) -> Path:
    """Make a folder for semantic segmentation out of the H&E-stained tissue image, with ``HE_NUCLEI_CLASSES``.

    The format is that of :func:`write_nuclei_segmentation`. The right 1125 columns give 3 training images of 1125x500
    pixels, the left 375 columns 4 validation images of 375x375. The masks are noisy.

    Args:
        folder: ``data_root() / "he_segmentation"`` if None.
    """
    return _write_segmentation(_folder(folder, "he_segmentation"), _HE)


def _folder(folder: str | Path | None, name: str) -> Path:
    return data_root() / name if folder is None else Path(folder)


def _write_segmentation(folder: Path, micrograph: _Micrograph) -> Path:
    def fill(content: Path) -> None:
        image, _, types = micrograph.read()
        for subfolder in ("images", "masks"):
            (content / subfolder).mkdir(parents=True)
        for split, columns, count in (
            ("train", micrograph.train, micrograph.train_images),
            ("val", micrograph.val, _VAL_TILES),
        ):
            lines = []
            for number, rows in enumerate(np.array_split(np.arange(len(image)), count)):
                name = f"{split}_{number}.png"
                Image.fromarray(image[rows, columns]).save(content / "images" / name)
                mask = Image.fromarray(types[rows, columns].astype(np.uint8))
                mask.putpalette(np.array(_MASK_COLORS, np.uint8).tobytes())
                mask.save(content / "masks" / name)
                lines.append(f"images/{name} masks/{name}\n")
            (content / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        (content / "labels.txt").write_text("\n".join(micrograph.class_names) + "\n", encoding="utf-8")
        shutil.copyfile(fetch(micrograph.source) / "LICENSE", content / "LICENSE")

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
    return _write_detection(_folder(folder, "nuclei_detection"), _NUCLEI)


def _write_detection(folder: Path, micrograph: _Micrograph) -> Path:
    size = micrograph.val.stop - micrograph.val.start
    categories = [{"id": number, "name": name} for number, name in enumerate(micrograph.class_names) if number]

    def fill(content: Path) -> None:
        image, instances, types = micrograph.read()
        (content / "annotations").mkdir(parents=True)
        for split, columns, step in (("train", micrograph.train, size / 2), ("val", micrograph.val, size)):
            (content / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for tile in _tiles(_VAL_TILES * size, columns, size, step):
                name = f"{split}_{len(images)}.png"
                Image.fromarray(image[tile]).save(content / split / name)
                images.append({"id": len(images) + 1, "file_name": name, "width": size, "height": size})
                for fields in _objects(instances[tile], types[tile]):
                    annotations.append({"id": len(annotations) + 1, "image_id": len(images), **fields})
            coco = {"images": images, "categories": categories, "annotations": annotations}
            (content / f"annotations/instances_{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
        shutil.copyfile(fetch(micrograph.source) / "LICENSE", content / "LICENSE")

    return make_folder(folder, fill, ["LICENSE", "annotations/instances_train.json", "annotations/instances_val.json"])


def _tiles(rows: int, columns: slice, size: int, step: float) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of square tiles, row by row."""
    for top in np.arange(0, rows - size + 1, step).astype(int):
        for left in np.arange(columns.start, columns.stop - size + 1, step).astype(int):
            yield slice(top, top + size), slice(left, left + size)


def _objects(instances: np.ndarray, types: np.ndarray) -> Iterator[dict[str, Any]]:
    """Yield the COCO annotation of each instance in a tile."""
    for instance in np.unique(instances[instances > 0]):
        mask = instances == instance
        category = int(np.bincount(types[mask]).argmax())
        if mask.sum() < _MIN_PIXELS or not category:
            continue
        ys, xs = np.nonzero(mask)
        left, top = int(xs.min()), int(ys.min())
        yield {
            "category_id": category,
            "bbox": [left, top, int(xs.max()) + 1 - left, int(ys.max()) + 1 - top],
            "area": int(mask.sum()),
            "iscrowd": 0,
            "segmentation": mask_to_polygons(mask),
        }
