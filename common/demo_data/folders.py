"""Folders for the three tasks, in the format of users' own data.

Those for segmentation and detection are cut out of the micrographs of :mod:`common.demo_data.wheels`, that for
classification out of scikit-learn's two photographs. Training and validation images are parts of the same images: they
show that training works, not that a model generalizes.

Each ``write_*`` function makes its folder on the first call and returns its path; several processes may call it at
once. It raises ``UserError`` as the ``load_*`` function of the micrograph does, and if the folder cannot be written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data.polygons import mask_to_polygons
from ..errors import UserError
from .wheels import data_root, fetch, load_dsb_nuclei, load_he_nuclei, make_folder

__all__ = [
    "FOLDERS",
    "HE_NUCLEI_CLASSES",
    "NUCLEI_CLASSES",
    "write_he_boxes",
    "write_he_masks",
    "write_he_segmentation",
    "write_nuclei_detection",
    "write_nuclei_segmentation",
    "write_photos",
]

NUCLEI_CLASSES = ("background", "nucleus")
# The type mask has numbers only. Their names are those of the outlines that histolytics ships beside it
# (hgsc_nest.parquet), matched by position: all 1,295 outlines agree.
HE_NUCLEI_CLASSES = ("background", "connective", "inflammatory", "neoplastic")
_PHOTOS = {  # photograph, and where the object is in it: left, middle and right columns, top and bottom rows
    "temple": ("china.jpg", (60, 230, 390), (20, 400)),
    "flower": ("flower.jpg", (170, 330, 490), (80, 360)),
}
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


# ---- image classification


def write_photos(folder: str | Path | None = None) -> Path:
    """Make a folder for image classification: 60 square JPEG photos, cut at random out of two photographs.

    It has ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg`` with the classes ``temple`` and ``flower``. The left half of
    the temple and of the flower gives 24 training photos, the right half 6 validation photos, with sides of 96 to 160
    pixels. Every third one is stored as phones do: turned, with its EXIF orientation.

    Args:
        folder: ``data_root() / "photos"`` if None.
    """
    spec = find_spec("sklearn")  # not imported, because on PaddlePaddle 2.6 that ends the process after Paddle's import
    if spec is None or spec.origin is None:
        raise UserError("the photos are those of scikit-learn, which is not installed; pip install scikit-learn")
    source = Path(spec.origin).parent / "datasets" / "images"
    orientation = Image.Exif()
    orientation[0x0112] = 6  # turn clockwise to see it upright

    def fill(content: Path) -> None:
        random = np.random.RandomState(0)
        for name, (file, (left, middle, right), (top, bottom)) in _PHOTOS.items():
            with Image.open(source / file) as image:
                photo = image.convert("RGB")
            for split, start, stop, count in (("train", left, middle, 24), ("val", middle, right, 6)):
                (content / split / name).mkdir(parents=True)
                for number in range(count):
                    side = random.randint(96, 161)
                    x, y = random.randint(start, stop - side + 1), random.randint(top, bottom - side + 1)
                    part, path = photo.crop((x, y, x + side, y + side)), content / split / name / f"{number:02d}.jpg"
                    if number % 3:
                        part.save(path, quality=90)
                    else:
                        part.transpose(Image.Transpose.ROTATE_90).save(path, quality=90, exif=orientation)
        shutil.copyfile(source / "README.txt", content / "LICENSE")

    return make_folder(_folder(folder, "photos"), fill, ["LICENSE"])


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
    return _write_he(_folder(folder, "he_segmentation"), HE_NUCLEI_CLASSES)


def write_he_masks(folder: str | Path | None = None) -> Path:
    """Make the folder of :func:`write_he_segmentation` with ``NUCLEI_CLASSES``: nuclei of all types are one class.

    Args:
        folder: ``data_root() / "he_masks"`` if None.
    """
    return _write_he(_folder(folder, "he_masks"), NUCLEI_CLASSES)


def _write_he(folder: Path, class_names: Sequence[str]) -> Path:
    def read() -> tuple[np.ndarray, np.ndarray]:
        image, _, types = load_he_nuclei()
        return image, types.clip(max=len(class_names) - 1)

    # The left edge is for validation because the right edge has hardly any neoplastic and inflammatory nuclei.
    splits = {"train": (slice(375, 1500), 3), "val": (slice(0, 375), _VAL_TILES)}
    return _write_segmentation(folder, "he_nuclei", class_names, read, splits)


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

    splits = {"train": (_NUCLEI_TRAIN, _TILE // 2), "val": (_NUCLEI_VAL, _TILE)}
    return _write_detection(_folder(folder, "nuclei_detection"), "dsb_nuclei", _read_nuclei, splits, "instances_")


def write_he_boxes(folder: str | Path | None = None) -> Path:
    """Make a folder for instance segmentation out of the H&E-stained tissue image, in COCO format.

    The format is that of :func:`write_nuclei_detection`, but for the names of the annotation files, which are those of
    ``mask_rcnn_own_data.yml``: ``annotations/train.json`` and ``annotations/val.json``. Of tiles of 128x128 pixels,
    which do not overlap, 44 are for training, and the 11 at the left edge for validation.

    Args:
        folder: ``data_root() / "he_boxes"`` if None.
    """

    def read() -> tuple[np.ndarray, np.ndarray]:
        image, instances, _ = load_he_nuclei()
        return image, instances

    splits = {"train": (slice(375, 887), _TILE), "val": (slice(0, _TILE), _TILE)}
    return _write_detection(_folder(folder, "he_boxes"), "he_nuclei", read, splits, "")


def _write_detection(
    folder: Path,
    source: str,
    read: Callable[[], tuple[np.ndarray, np.ndarray]],
    splits: Mapping[str, tuple[slice, int]],
    prefix: str,
) -> Path:
    """Cut the image and the instances that ``read`` returns into tiles; each split has columns and a step of the tiles.

    Args:
        prefix: of the names of the annotation files.
    """

    def fill(content: Path) -> None:
        image, instances = read()
        (content / "annotations").mkdir(parents=True)
        for split, (columns, step) in splits.items():
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
            (content / f"annotations/{prefix}{split}.json").write_text(json.dumps(coco) + "\n", encoding="utf-8")
        shutil.copyfile(fetch(source) / "LICENSE", content / "LICENSE")

    return make_folder(folder, fill, ["LICENSE", *(f"annotations/{prefix}{split}.json" for split in splits)])


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


FOLDERS: dict[str, Callable[[], Path]] = {
    "photos": write_photos,
    "nuclei_segmentation": write_nuclei_segmentation,
    "he_segmentation": write_he_segmentation,
    "he_masks": write_he_masks,
    "nuclei_detection": write_nuclei_detection,
    "he_boxes": write_he_boxes,
}
