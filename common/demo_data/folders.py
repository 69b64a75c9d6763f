"""Folders for semantic segmentation and object detection, made of the micrographs of :mod:`common.demo_data.wheels`.

Training and validation images come from one micrograph: they show that training works, not that a model generalises.
"""

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
    "write_he_detection",
    "write_he_segmentation",
    "write_nuclei_detection",
    "write_nuclei_segmentation",
]

# The types of nuclei are numbered in the type mask and named in the table of outlines that histolytics has beside it
# (hgsc_nest.parquet); the numbers were matched with the names by position, without one exception in 1,295 outlines.
NUCLEI_CLASSES = ("background", "nucleus")
HE_NUCLEI_CLASSES = ("background", "connective", "inflammatory", "neoplastic")
_CLASS_COLOURS = ((0, 0, 0), (0, 158, 115), (86, 180, 233), (213, 94, 0))  # Okabe and Ito: told apart by everybody
_VAL_TILES = 4
_MIN_PIXELS = 10  # smaller pieces of a nucleus, which a tile's edge cuts off, cannot be told from the background


@dataclass(frozen=True)
class _Micrograph:
    """An image to cut up: where it comes from, and which of its columns are for what.

    Attributes:
        source: its name in :mod:`common.demo_data.wheels`.
        class_names: of its types, background first.
        read: returns the image, RGB uint8 [h, w, 3], and its instances and types, int32 [h, w].
        train, val: columns.
    """

    source: str
    class_names: tuple[str, ...]
    read: Callable[[], tuple[np.ndarray, np.ndarray, np.ndarray]]
    train: slice
    val: slice

    def copy_licence(self, folder: Path) -> None:
        shutil.copyfile(fetch(self.source) / "LICENSE", folder / "LICENSE")


def _read_nuclei() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    image, instances = load_dsb_nuclei()
    low, high = np.percentile(image[:, _NUCLEI.train], (1, 99))
    grey = np.rint(255 * np.clip((image - low) / (high - low), 0, 1)).astype(np.uint8)
    return np.repeat(grey[..., np.newaxis], 3, axis=2), instances, (instances > 0).astype(np.int32)


_NUCLEI = _Micrograph("dsb_nuclei", NUCLEI_CLASSES, _read_nuclei, train=slice(0, 384), val=slice(384, 512))
# The right edge would not do for validation: it has hardly any neoplastic and inflammatory nuclei.
_HE = _Micrograph("he_nuclei", HE_NUCLEI_CLASSES, load_he_nuclei, train=slice(375, 1500), val=slice(0, 375))


# ---- semantic segmentation


def write_nuclei_segmentation(folder: str | Path | None = None) -> Path:
    """Make (on the first call) a folder for semantic segmentation out of the fluorescence micrograph.

    ``images/*.png`` (RGB, 8 bits), ``masks/*.png`` (class numbers with a palette), ``train.txt`` and ``val.txt`` with
    lines ``images/train_0.png masks/train_0.png``, and ``labels.txt`` with ``NUCLEI_CLASSES``. The left 384 columns
    make 2 training images of 384x256 pixels, the right 128 columns 4 validation images of 128x128. Grey values are
    scaled so that the 1st and the 99th percentile of the training columns become 0 and 255.

    Args:
        folder: ``data_root() / "nuclei_segmentation"`` if None. Several processes may call this at once.

    Raises:
        UserError: as :func:`common.demo_data.wheels.load_dsb_nuclei`, or the folder cannot be written or lacks files.
    """
    return _write_segmentation(data_root() / "nuclei_segmentation" if folder is None else Path(folder), _NUCLEI, 2)


def write_he_segmentation(folder: str | Path | None = None) -> Path:
    """Make (on the first call) a folder for semantic segmentation out of the H&E-stained tissue image.

    As :func:`write_nuclei_segmentation`, with ``HE_NUCLEI_CLASSES``: the right 1125 columns make 3 training images of
    1125x500 pixels, the left 375 columns 4 validation images of 375x375. The masks are noisy.

    Args:
        folder: ``data_root() / "he_segmentation"`` if None. Several processes may call this at once.

    Raises:
        UserError: as :func:`common.demo_data.wheels.load_he_nuclei`, or the folder cannot be written or lacks files.
    """
    return _write_segmentation(data_root() / "he_segmentation" if folder is None else Path(folder), _HE, 3)


def _write_segmentation(folder: Path, micrograph: _Micrograph, train_images: int) -> Path:
    parts = {"train": (micrograph.train, train_images), "val": (micrograph.val, _VAL_TILES)}
    files = {split: [f"{split}_{number}.png" for number in range(count)] for split, (_, count) in parts.items()}

    def fill(content: Path) -> None:
        image, _, types = micrograph.read()
        for subfolder in ("images", "masks"):
            (content / subfolder).mkdir(parents=True)
        for split, (columns, count) in parts.items():
            pieces = (np.array_split(array[:, columns], count) for array in (image, types))
            for name, pixels, classes in zip(files[split], *pieces, strict=True):
                Image.fromarray(pixels).save(content / "images" / name)
                indexed = Image.fromarray(classes.astype(np.uint8))
                indexed.putpalette(np.array(_CLASS_COLOURS, np.uint8).tobytes())
                indexed.save(content / "masks" / name)
            lines = [f"images/{name} masks/{name}\n" for name in files[split]]
            (content / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
        (content / "labels.txt").write_text("\n".join(micrograph.class_names) + "\n", encoding="utf-8")
        micrograph.copy_licence(content)

    pairs = [f"{subfolder}/{name}" for subfolder in ("images", "masks") for name in (*files["train"], *files["val"])]
    return make_folder(folder, fill, ["train.txt", "val.txt", "labels.txt", "LICENSE", *pairs])


# ---- object detection


def write_nuclei_detection(folder: str | Path | None = None) -> Path:
    """Make (on the first call) a folder for object detection, with masks, out of the fluorescence micrograph.

    COCO's form: ``train/*.png`` and ``val/*.png`` (RGB, 8 bits), ``annotations/instances_train.json`` and
    ``annotations/instances_val.json`` with the category 1, ``nucleus``. The images are those of
    :func:`write_nuclei_segmentation`, cut up otherwise: the left 384 columns make 35 training tiles of 128x128 pixels
    that overlap by half, the right 128 columns 4 validation tiles of 128x128 that do not. Boxes and areas are those
    of the masks, whose polygons follow the edges of their pixels. Pieces of less than 10 pixels are left out.

    Args:
        folder: ``data_root() / "nuclei_detection"`` if None. Several processes may call this at once.

    Raises:
        UserError: as :func:`common.demo_data.wheels.load_dsb_nuclei`, or the folder cannot be written or lacks files.
    """
    return _write_detection(data_root() / "nuclei_detection" if folder is None else Path(folder), _NUCLEI)


def write_he_detection(folder: str | Path | None = None) -> Path:
    """Make (on the first call) a folder for object detection, with masks, out of the H&E-stained tissue image.

    As :func:`write_nuclei_detection`, with the categories 1 to 3, ``HE_NUCLEI_CLASSES`` without the background: the
    right 1125 columns make 35 training tiles of 375x375 pixels, the left 375 columns 4 validation tiles. A nucleus has
    the type of most of its pixels. The masks are noisy.

    Args:
        folder: ``data_root() / "he_detection"`` if None. Several processes may call this at once.

    Raises:
        UserError: as :func:`common.demo_data.wheels.load_he_nuclei`, or the folder cannot be written or lacks files.
    """
    return _write_detection(data_root() / "he_detection" if folder is None else Path(folder), _HE)


def _write_detection(folder: Path, micrograph: _Micrograph) -> Path:
    size = micrograph.val.stop - micrograph.val.start
    rows = _VAL_TILES * size
    tiles = {
        "train": list(_tiles(rows, micrograph.train, size, 2)),
        "val": list(_tiles(rows, micrograph.val, size, 1)),
    }
    categories = [{"id": number, "name": name} for number, name in enumerate(micrograph.class_names) if number]

    def fill(content: Path) -> None:
        image, instances, types = micrograph.read()
        (content / "annotations").mkdir(parents=True)
        for split in tiles:
            (content / split).mkdir()
            images, annotations = [], []
            for number, tile in enumerate(tiles[split], 1):
                name = f"{split}_{number - 1}.png"
                Image.fromarray(image[tile]).save(content / split / name)
                images.append({"id": number, "file_name": name, "width": size, "height": size})
                annotations += [{"image_id": number, **fields} for fields in _objects(instances[tile], types[tile])]
            for number, annotation in enumerate(annotations, 1):
                annotation["id"] = number
            coco = {"images": images, "categories": categories, "annotations": annotations}
            (content / f"annotations/instances_{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
        micrograph.copy_licence(content)

    files = ["LICENSE"]
    for split in tiles:
        files += [f"annotations/instances_{split}.json"]
        files += [f"{split}/{split}_{number}.png" for number in range(len(tiles[split]))]
    return make_folder(folder, fill, files)


def _tiles(rows: int, columns: slice, size: int, steps: int) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of square tiles, ``steps`` of which begin within the length of one."""
    for row in range(steps * (rows // size - 1) + 1):
        for column in range(steps * ((columns.stop - columns.start) // size - 1) + 1):
            top, left = row * size // steps, columns.start + column * size // steps
            yield slice(top, top + size), slice(left, left + size)


def _objects(instances: np.ndarray, types: np.ndarray) -> Iterator[dict[str, Any]]:
    """What COCO says of each instance in a tile."""
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
