"""Data sets of labeled images: list files, class folders, IDX (MNIST) files and 5,000 digits of MNIST.

A data set gives Pillow RGB images; ``transforms`` turns them into arrays. One split is built at a time, so that
evaluation needs no training data.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from common.data.class_names import check_class_names, composed, read_class_names
from common.data.image_file import check_size, deep_image_warning, is_ignored, list_images, load_rgb
from common.demo_data import wheels as demo_data
from common.errors import UserError, missing_hint
from common.runtime.regular_file import read_lines

__all__ = ["KINDS", "ArrayDataset", "Dataset", "FileDataset", "build_dataset"]

SPLITS = ("train", "val")
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # in any letter case
_LAYOUTS = "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which 20 % become the validation split"
CLASS_NAME_FILES = ("class_names.txt", "label_list.txt")
HELD_OUT_FRACTION = 0.2
_MAX_IDX_BYTES = 2**32
DEBIAN_DATASETS = Path("/usr/share/datasets")  # where Debian packages dataset-NAME install NAME
DIGITS = [str(digit) for digit in range(10)]
FASHION_MNIST_CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


class Dataset(ABC):
    """Labeled images.

    Attributes:
        labels: int64 [n].
        class_names: list of str, or None if the source has no class names.
        num_classes: at least ``labels.max() + 1``.
    """

    def __init__(self, labels: np.ndarray, class_names: list[str] | None, num_classes: int):
        self.labels = labels
        self.class_names = class_names
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        """Decode one image, see :func:`common.data.image_file.load_rgb`.

        Args:
            index: position in the data set.
            min_size: allow a smaller JPEG, for training only.

        Returns:
            An 8-bit RGB image.

        Raises:
            UserError: the image is missing or cannot be decoded.
        """

    @abstractmethod
    def describe(self, index: int) -> str:
        """Return the origin of an image, for messages."""

    @abstractmethod
    def names(self) -> np.ndarray:
        """Return the identity of each image, which does not depend on the place of the data: bytes [n]."""

    def warnings(self) -> list[str]:
        """Return what looks wrong but may be intended."""
        return []


class FileDataset(Dataset):
    """Images in files.

    Args:
        root: folder that ``names`` are relative to.
        names: path of each image.
        labels, class_names, num_classes: see :class:`Dataset`.
        list_name: name of the list file, if there is one.
        lines: int64 [n], line of each image in the list file.
    """

    def __init__(
        self,
        root: Path,
        names: list[str],
        labels: np.ndarray,
        class_names: list[str] | None,
        num_classes: int,
        list_name: str | None = None,
        lines: np.ndarray | None = None,
    ):
        super().__init__(labels, class_names, num_classes)
        self._root = root
        # An array, because reference counts of a million str objects would copy them into every forked worker.
        self._names = np.array([os.fsencode(name) for name in names])
        self._list_name = list_name
        self._lines = lines

    def path(self, index: int) -> Path:
        return self._root / os.fsdecode(bytes(self._names[index]))

    def describe(self, index: int) -> str:
        if self._list_name is None:
            return str(self.path(index))
        return f"{self.path(index)} ({self._list_name} line {self._lines[index]})"

    def names(self) -> np.ndarray:
        """Return the paths of the images, relative to the root."""
        return self._names

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        try:
            return load_rgb(self.path(index), min_size)
        except FileNotFoundError as error:
            raise self._missing(index) from error
        except UserError as error:
            raise UserError(f"cannot read image {self.describe(index)}: {error}") from error

    def warnings(self) -> list[str]:
        """Look for images of more than 8 bits per channel among up to 100."""
        warning = deep_image_warning([self.path(index) for index in range(len(self))])
        return [warning] if warning else []

    def check_exist(self) -> None:
        """Check that the first, the last and some random files exist; to check all takes long on network disks.

        Raises:
            UserError: one of these files is missing.
        """
        indices = np.arange(len(self))
        sample = np.random.default_rng(0).choice(indices, min(len(self), 1000), replace=False)
        for index in np.unique(np.concatenate([indices[:100], indices[-100:], sample])):
            if not self.path(index).is_file():
                raise self._missing(index)

    def _missing(self, index: int) -> UserError:
        return UserError(
            f"image file missing: {self.describe(index)}; check -data_path and the list of images"
            f"{missing_hint(self.path(index))}"
        )


class ArrayDataset(Dataset):
    """Images held in memory.

    Args:
        images: uint8 [n, height, width], gray.
        labels, class_names, num_classes: see :class:`Dataset`.
        source: origin of the images, for ``describe``.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, class_names: list[str] | None, num_classes: int, source: str
    ):
        super().__init__(labels, class_names, num_classes)
        self._images = images
        self._source = source

    def describe(self, index: int) -> str:
        return f"{self._source} image {index}"

    def names(self) -> np.ndarray:
        """Return the number and the CRC-32 of the pixels of each image."""
        return np.array([b"%d-%08x" % (index, zlib.crc32(image)) for index, image in enumerate(self._images)])

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


def build_dataset(
    name: str,
    path: str | Path | None,
    split: str,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """Build one split of a data set.

    Args:
        name: a key of ``KINDS``.
        path: folder of the data, may begin with ``~``; only ``mnist5k`` has a default (None).
        split: ``"train"`` or ``"val"``.
        num_classes: classes of the model; None takes the number of the data set.
        class_names: of the model. They number the class folders, of which a split may lack some.

    Kinds:
        imagenet2012, list: ``train_list.txt`` and ``val_list.txt`` in the folder, with lines
            ``relative/path.jpg LABEL``; empty lines and lines that begin with ``#`` are skipped. ``class_names.txt`` or
            ``label_list.txt``, one name per line, is optional.
        folder: ``train/CLASS/*`` and ``val/CLASS/*``, with subfolders; see ``SPLIT_FOLDERS`` for other names.
            The classes are the folders of ``train`` (or of ``val``, without ``train``), sorted by name. With neither
            folder, ``CLASS/*`` is split: a fixed random 20 % of each class is the validation split, at least one image
            of a class with two or more.
        idx, mnist, fashion_mnist: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
            ``t10k-``, each plain or ``.gz``.
        mnist5k: 4,000 training and 1,000 validation digits, downloaded on first use; see
            :mod:`common.demo_data.wheels`.

    Raises:
        UserError: the kind is unknown, or data is missing, malformed or contradictory.
    """
    if name not in KINDS:
        raise UserError(f"unknown dataset {name!r}: give -dataset one of {', '.join(KINDS)}")
    path = None if path is None else Path(path).expanduser()
    if name != "mnist5k":
        if path is None:
            raise UserError(f"dataset {name} needs the directory of its data: give -data_path")
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is not a folder; give the folder of the data as -data_path")
        if not path.is_dir():
            package = f", or apt-get install dataset-{path.name}" if path.parent == DEBIAN_DATASETS else ""
            hint = missing_hint(path)
            raise UserError(f"data directory {path} does not exist: give the right one as -data_path{package}{hint}")
    if name == "folder":
        return _build_folder(path, split, num_classes, class_names)
    return KINDS[name](path, split, num_classes)


def _class_count(num_classes: int | None, class_names: list[str] | None, labels: np.ndarray, source: str | Path) -> int:
    """Decide the number of classes: that of the class names, else of the model, else of the labels."""
    if class_names is None:
        return int(labels.max()) + 1 if num_classes is None else num_classes
    if num_classes not in (None, len(class_names)):
        raise UserError(
            f"{source} names {len(class_names)} classes but the model has {num_classes}: "
            f"use data of the model's classes, or train with MODEL.NUM_CLASSES {len(class_names)}"
        )
    return len(class_names)


def _check_labels(labels: np.ndarray, num_classes: int, where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"{where(first)}: label {labels[first]} is outside 0..{num_classes - 1} for {num_classes} classes: "
            "correct the label or MODEL.NUM_CLASSES"
        )


# ---- list files


def _build_list(path: Path, split: str, num_classes: int | None) -> Dataset:
    list_file = path / f"{split}_list.txt"
    names, labels, lines = _read_list(list_file)
    class_names, source = read_class_names(path, CLASS_NAME_FILES) or (None, path)
    count = _class_count(num_classes, class_names, labels, source)
    _check_labels(labels, count, lambda index: f"{list_file} line {lines[index]}")
    dataset = FileDataset(path, names, labels, class_names, count, list_file.name, lines)
    dataset.check_exist()
    return dataset


def _read_list(list_file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    names, labels, lines = [], [], []
    try:
        # A byte order mark is skipped; file names need not be UTF-8.
        for number, line in enumerate(read_lines(list_file, "utf-8-sig", "surrogateescape"), 1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, *label = line.rsplit(maxsplit=1)
            if not label:
                raise UserError(f'{list_file} line {number}: {name!r} has no label; write "relative/path.jpg LABEL"')
            if not re.fullmatch(r"-?[0-9]{1,18}", label[0]):
                raise UserError(f"{list_file} line {number}: label {label[0]!r} is not an integer: write 0, 1, 2, ...")
            names.append(name)
            labels.append(int(label[0]))
            lines.append(number)
    except OSError as error:
        raise UserError(
            f"cannot read the list file {list_file} ({error.strerror}): it must have lines "
            '"relative/path.jpg LABEL"; check -data_path'
        ) from error
    if not names:
        raise UserError(f'list file {list_file} has no images: write lines "relative/path.jpg LABEL"')
    return names, np.array(labels, np.int64), np.array(lines, np.int64)


# ---- class folders


def _build_folder(
    path: Path, split: str, num_classes: int | None, known_classes: Sequence[str] | None = None
) -> Dataset:
    trees = _split_folders(path)
    if trees and split not in trees:
        raise UserError(
            f"{path} has no folder for the {split} split: add {path / split} with one folder per class, or check "
            f"-data_path. The layouts are {_LAYOUTS}"
        )
    tree = trees.get(split, path)
    folders = _class_folders(tree)
    class_names = _number_classes(folders, trees.get("train", tree), known_classes)
    names, labels = [], []
    for label, class_name in enumerate(class_names):
        if class_name not in folders:
            continue
        folder = folders[class_name]
        files = [f"{folder.relative_to(path)}{file[len(str(folder)) :]}" for file in list_images(folder)]
        if not files and (split == "train" or not trees):
            raise UserError(f"class folder {folder} has no images: fill or remove it")
        if not trees:
            files = _select_split(files, split)
        names += files
        labels += [label] * len(files)
    if not names:
        raise UserError(f"{path} has too few images for the {split} split: each class needs at least two")
    labels = np.array(labels, np.int64)
    count = _class_count(num_classes, class_names, labels, path)
    return FileDataset(path, names, labels, class_names, count)


def _split_folders(path: Path) -> dict[str, Path]:
    """The folders of the splits, by split; empty if the folder has none."""
    trees: dict[str, Path] = {}
    for folder in sorted(path.iterdir()):
        for split, names in SPLIT_FOLDERS.items():
            if folder.name.lower() in names and folder.is_dir():
                if split in trees:
                    raise UserError(
                        f"{path} has two folders for the {split} split, {trees[split].name} and {folder.name}: "
                        "rename or remove one"
                    )
                trees[split] = folder
    return trees


def _class_folders(tree: Path) -> dict[str, Path]:
    """The class folders by their composed names, sorted by these."""
    folders: dict[str, Path] = {}
    for entry in tree.iterdir():
        if entry.is_dir() and not is_ignored(entry.name):
            name = composed(entry.name)
            if name in folders:
                raise UserError(
                    f"{tree} has two class folders {name!r} that differ only in their Unicode form, {name!a} and "
                    f"{entry.name!a}: rename or merge them"
                )
            folders[name] = entry
    if not folders:
        raise UserError(f"{tree} has no class folders: put the images in one folder per class, or check -data_path")
    check_class_names(list(folders), tree)
    return dict(sorted(folders.items()))


def _number_classes(folders: dict[str, Path], train_tree: Path, known_classes: Sequence[str] | None) -> list[str]:
    """The class names in the order of their numbers: those of the model, if it knows one of the folders.

    Args:
        folders: of the classes in a split, by name.
        train_tree: the folder with the class folders of the training split, or of this one if there is none.
        known_classes: class names of the model.

    Raises:
        UserError: a folder is none of the classes, or there is only one class.
    """
    if known_classes and set(folders) & set(known_classes):
        class_names, source = list(known_classes), "the classes of the weights or of the training split"
    else:
        class_names, source = list(_class_folders(train_tree)), str(train_tree)
    unknown = [name for name in folders if name not in class_names]
    if unknown:
        raise UserError(f"class folder {folders[unknown[0]]} is not in {source}: rename or remove it")
    if len(class_names) == 1:
        only = train_tree / class_names[0]
        raise UserError(
            f"{train_tree} has only one class folder, {only.name}. The layouts are {_LAYOUTS}. If {only} has the class "
            f"folders, give -data_path {only}"
        )
    return class_names


def _select_split(files: list[str], split: str) -> list[str]:
    held_out = 0 if len(files) < 2 else max(1, round(HELD_OUT_FRACTION * len(files)))
    # RandomState's streams are the same in every version of NumPy, so that the split never changes.
    order = np.random.RandomState(0).permutation(len(files))
    chosen = order[:held_out] if split == "val" else order[held_out:]
    return [files[index] for index in np.sort(chosen)]


# ---- IDX files (format: http://yann.lecun.com/exdb/mnist/)


def _build_idx(path: Path, split: str, num_classes: int | None, class_names: list[str] | None = None) -> Dataset:
    prefix = {"train": "train", "val": "t10k"}[split]
    image_file, images = _read_idx(path, f"{prefix}-images-idx3-ubyte", ndim=3)
    label_file, labels = _read_idx(path, f"{prefix}-labels-idx1-ubyte", ndim=1)
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} has {len(images)} images but {label_file} {len(labels)} labels: download the pair again"
        )
    try:
        check_size(*images.shape[:0:-1])
    except UserError as error:
        raise UserError(f"cannot use the images of {image_file}: {error}") from error
    labels = labels.astype(np.int64)
    count = _class_count(num_classes, class_names, labels, path)
    _check_labels(labels, count, lambda index: f"{label_file} entry {index}")
    return ArrayDataset(images, labels, class_names, count, str(image_file))


def _read_idx(path: Path, name: str, ndim: int) -> tuple[Path, np.ndarray]:
    """Read an array of unsigned bytes: magic 0, 0, 8, ndim; sizes as big-endian uint32; content in C order."""
    file = path / name
    if not file.is_file():
        file = path / f"{name}.gz"
    if not file.is_file():
        raise UserError(f"{path} has neither {name} nor {file.name}: download one of them, or check -data_path")
    header = 4 + 4 * ndim
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = stream.read(header)
            if head[:4] != bytes([0, 0, 8, ndim]):
                raise UserError(
                    f"{file} is not an IDX file of {ndim}-d unsigned bytes: it begins with {head[:4].hex()}, not "
                    f"{bytes([0, 0, 8, ndim]).hex()}; download it again"
                )
            if len(head) < header:
                raise EOFError("its header is cut off")
            shape = [int.from_bytes(head[at : at + 4], "big") for at in range(4, header, 4)]
            size = math.prod(shape)
            if not size:
                raise UserError(f"{file} is empty: its header gives the shape {shape}; download it again")
            if size > _MAX_IDX_BYTES:
                raise UserError(
                    f"{file} has {size:,} bytes according to its header {shape}, more than {_MAX_IDX_BYTES:,}: give "
                    "the images as files, with -dataset list"
                )
            content = stream.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file} ({error}): download it again") from error
    if len(content) != size:
        found = "more" if len(content) > size else f"{len(content):,}"
        raise UserError(f"{file} has {found} bytes of content but its header requires {size:,}: download it again")
    return file, np.frombuffer(content, np.uint8).reshape(shape)


# ---- 5,000 digits


def _build_mnist5k(path: Path | None, split: str, num_classes: int | None) -> Dataset:
    splits = demo_data.load_mnist5k() if path is None else demo_data.load_mnist5k(path)
    images, labels = splits[SPLITS.index(split)]
    count = _class_count(num_classes, DIGITS, labels, "mnist5k")
    return ArrayDataset(images, labels, DIGITS, count, f"mnist5k {split}")


KINDS: dict[str, Callable[[Path | None, str, int | None], Dataset]] = {
    "imagenet2012": _build_list,
    "list": _build_list,
    "folder": _build_folder,
    "idx": _build_idx,
    "mnist": partial(_build_idx, class_names=DIGITS),
    "fashion_mnist": partial(_build_idx, class_names=FASHION_MNIST_CLASSES),
    "mnist5k": _build_mnist5k,
}
