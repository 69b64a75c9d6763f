"""Where the images come from: list files, class folders, IDX (MNIST) files and 5,000 digits of MNIST.

Every dataset yields Pillow RGB images; turning them into arrays is the business of ``transforms``. One split is built
at a time, so that evaluation needs no training set.
"""

import gzip
import os
import re
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.data.class_names import read_class_names
from common.demo_data import wheels as demo_data
from common.errors import UserError, one_line
from common.inference.predictor import IMAGE_SUFFIXES

SPLITS = ("train", "val")
CLASS_NAME_FILES = ("class_names.txt", "label_list.txt")
HELD_OUT_FRACTION = 0.2
DEBIAN_DATASETS = Path("/usr/share/datasets")  # where its packages dataset-* put theirs, each in a folder of its name
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any common mode to 8-bit RGB; one that is RGB is returned itself, decoded.

    Alpha is dropped, not blended, as torchvision and timm do: their published accuracies are measured that way.
    16-bit grey is rescaled to 8 bits (Pillow's own conversion saturates at 255).

    Raises:
        ValueError: floating-point pixels, whose range is not defined.
    """
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise ValueError("its floating-point pixels have no defined range; save it with 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;16"):
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # Pillow warns of the direct way to RGB
    return image.convert("RGB")


class Dataset:
    """Labelled images.

    Attributes:
        labels: np.int64 [n].
        class_names: list of str, or None when the source does not name its classes.
        num_classes: int, at least ``labels.max() + 1``.
    """

    def __init__(self, labels: np.ndarray, class_names: list[str] | None, num_classes: int):
        self.labels = labels
        self.class_names = class_names
        self.num_classes = num_classes

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        """Decode one image.

        Args:
            index: position in the dataset.
            min_size: pixels; allows a JPEG to be decoded at a half, quarter or eighth of its size as long as both sides
                keep at least so many. It changes the pixels: meant for training, not for evaluation.

        Returns:
            An RGB image, 8 bits per channel. EXIF orientation is not applied, as is usual for ImageNet.

        Raises:
            UserError: the image is missing or cannot be decoded.
        """
        raise NotImplementedError

    def describe(self, index: int) -> str:
        """Say where image ``index`` comes from, for messages."""
        raise NotImplementedError

    def names(self) -> np.ndarray:
        """What identifies each image, wherever the data lies: bytes [n]."""
        raise NotImplementedError


class FileDataset(Dataset):
    """Images in separate files.

    Args:
        root: directory that ``names`` are relative to.
        names: path of each image.
        labels: np.int64 [n].
        class_names: as in Dataset.
        num_classes: as in Dataset.
        list_name: name of the list file that the images were read from, if any.
        lines: np.int64 [n], the line of each image in the list file.
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
        # One array, not a million str objects: reference counts would copy those into every forked worker.
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
        """The paths of the images, relative to the root."""
        return self._names

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        try:
            with Image.open(self.path(index)) as image:
                if min_size is not None:
                    image.draft(None, (min_size, min_size))
                return to_rgb(image)
        except FileNotFoundError as error:
            raise self._missing(index) from error
        except Exception as error:  # on broken data Pillow's decoders raise nearly any type
            if isinstance(error, UnidentifiedImageError):
                reason = "no image format that Pillow knows"
            else:
                reason = one_line(error)
            raise UserError(f"cannot read image {self.describe(index)}: {reason}; replace or remove it") from error

    def check_exist(self, ends: int = 100, sample: int = 1000) -> None:
        """Look for the first, the last and a random sample of the files: looking for all is slow on network disks.

        Raises:
            UserError: one of these files is missing.
        """
        n = len(self)
        picked = np.random.default_rng(0).choice(n, min(n, sample), replace=False)
        for index in np.unique(np.concatenate([np.arange(n)[:ends], np.arange(n)[-ends:], picked])):
            if not self.path(index).is_file():
                raise self._missing(index)

    def _missing(self, index: int) -> UserError:
        return UserError(f"image file missing: {self.describe(index)}; check -data_path and the list of images")


class ArrayDataset(Dataset):
    """Images held in memory.

    Args:
        images: np.uint8 [n, height, width], grey.
        labels: np.int64 [n].
        class_names: as in Dataset.
        num_classes: as in Dataset.
        source: what ``describe`` calls the origin of the images.
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
        """The number of each image and, since any data has such numbers, the CRC-32 of its pixels."""
        return np.array([b"%d-%08x" % (index, zlib.crc32(image)) for index, image in enumerate(self._images)])

    def load(self, index: int, min_size: int | None = None) -> Image.Image:
        return Image.fromarray(self._images[index]).convert("RGB")


def build_dataset(name: str, path: str | Path | None, split: str, num_classes: int | None = None) -> Dataset:
    """Build one split of a dataset.

    Args:
        name: a key of KINDS.
        path: directory of the data, ``~`` allowed. Only ``mnist5k`` has a default (None).
        split: "train" or "val".
        num_classes: classes of the model; None takes the dataset's own number.

    Kinds:
        imagenet2012, list: ``train_list.txt`` and ``val_list.txt`` under path, each line ``relative/path.jpg LABEL``;
            blank lines and lines that begin with ``#`` are skipped. ``class_names.txt`` or ``label_list.txt``, one
            name per line, is optional.
        folder: ``path/train/CLASS/*`` and ``path/val/CLASS/*``, deeper folders included. The classes are those of the
            train tree sorted by name, or of the val tree when it is alone. With neither folder, ``path/CLASS/*``
            is split: a fixed random 20 % of each class is "val", at least one image of any class with two or more.
        idx, mnist, fashion_mnist: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and their ``t10k-``
            counterparts, each plain or ``.gz``.
        mnist5k: 4,000 training and 1,000 test digits, downloaded on first use; see ``common.demo_data.wheels``.

    Raises:
        UserError: an unknown kind; anything missing, malformed or contradictory in the data.
        ValueError: an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if name not in KINDS:
        raise UserError(f"unknown dataset {name!r}: give -dataset one of {', '.join(KINDS)}")
    path = None if path is None else Path(path).expanduser()
    if name != "mnist5k":
        if path is None:
            raise UserError(f"dataset {name} needs the directory of its data: give -data_path")
        if not path.is_dir():
            package = f", or apt-get install dataset-{path.name}" if path.parent == DEBIAN_DATASETS else ""
            raise UserError(f"data directory {path} does not exist: give the right one as -data_path{package}")
    return KINDS[name](path, split, num_classes)


def _class_count(num_classes: int | None, class_names: list[str] | None, labels: np.ndarray, source: str | Path) -> int:
    """Settle the number of classes among what the model, the class names and the labels say."""
    if class_names is None:
        return int(labels.max()) + 1 if num_classes is None else num_classes
    if num_classes not in (None, len(class_names)):
        raise UserError(
            f"{source} names {len(class_names)} classes but the model has {num_classes}: "
            f"set MODEL.NUM_CLASSES to {len(class_names)}"
        )
    return len(class_names)


def _check_labels(labels: np.ndarray, num_classes: int, where: Callable[[int], str]) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        first = wrong[0]
        raise UserError(
            f"{where(first)}: label {labels[first]} is outside 0..{num_classes - 1} for {num_classes} classes: "
            "correct it or MODEL.NUM_CLASSES"
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
        # The marker that some Windows editors put first is skipped; file names need not be UTF-8.
        with list_file.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                line = line.strip()
                if not line or line.startswith("#"):
                    continue
                name, *label = line.rsplit(maxsplit=1)
                if not label:
                    raise UserError(
                        f'{list_file} line {number}: {name!r} has no label; write "relative/path.jpg LABEL"'
                    )
                if not re.fullmatch(r"-?[0-9]{1,18}", label[0]):
                    raise UserError(f"{list_file} line {number}: label {label[0]!r} is not an integer 0, 1, 2, ...")
                names.append(name)
                labels.append(int(label[0]))
                lines.append(number)
    except OSError as error:
        raise UserError(
            f'cannot read list file {list_file} ({error.strerror}): it holds one "relative/path.jpg LABEL" a line; '
            "check -data_path"
        ) from error
    if not names:
        raise UserError(f'list file {list_file} has no images: write one "relative/path.jpg LABEL" a line')
    return names, np.array(labels, np.int64), np.array(lines, np.int64)


# ---- class folders


def _build_folder(path: Path, split: str, num_classes: int | None) -> Dataset:
    trees = {name: path / name for name in SPLITS if (path / name).is_dir()}
    if trees and split not in trees:
        raise UserError(f"{path / split} is missing: add it with one folder per class, or check -data_path")
    tree = trees.get(split, path)
    class_names = _class_folders(trees.get("train", tree))
    class_index = {name: index for index, name in enumerate(class_names)}
    names, labels = [], []
    for class_name in _class_folders(tree):
        if class_name not in class_index:
            raise UserError(
                f"class folder {tree / class_name} has no counterpart in {trees['train']}: rename or remove it"
            )
        files = _image_files(tree / class_name, path)
        if not files:
            raise UserError(f"class folder {tree / class_name} has no images: fill or remove it")
        if not trees:
            files = _select_split(files, split)
        names += files
        labels += [class_index[class_name]] * len(files)
    if not names:
        raise UserError(f"{path} leaves no images for the {split} split: give the classes two or more images each")
    labels = np.array(labels, np.int64)
    return FileDataset(path, names, labels, class_names, _class_count(num_classes, class_names, labels, path))


def _class_folders(tree: Path) -> list[str]:
    folders = sorted(entry.name for entry in tree.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise UserError(f"{tree} has no class folders: put the images in one folder per class, or check -data_path")
    return folders


def _image_files(folder: Path, root: Path) -> list[str]:
    """List the images below ``folder``, relative to ``root``; in str, since a million Path objects take long."""
    found = []
    for where, subfolders, files in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        prefix = Path(where).relative_to(root)
        images = (name for name in files if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES)
        found += [f"{prefix}{os.sep}{name}" for name in images if not name.startswith(".")]
    return sorted(found)


def _select_split(files: list[str], split: str) -> list[str]:
    held_out = 0 if len(files) < 2 else max(1, round(HELD_OUT_FRACTION * len(files)))
    # RandomState, because its streams are the same in every version of numpy: the split must never move.
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
    labels = labels.astype(np.int64)
    count = _class_count(num_classes, class_names, labels, path)
    _check_labels(labels, count, lambda index: f"{label_file} entry {index}")
    return ArrayDataset(images, labels, class_names, count, str(image_file))


def _read_idx(path: Path, name: str, ndim: int) -> tuple[Path, np.ndarray]:
    """Read an array of unsigned bytes: magic 0, 0, 8, ndim; big-endian uint32 sizes; the content in C order."""
    file = path / name
    if not file.is_file():
        file = path / f"{name}.gz"
    if not file.is_file():
        raise UserError(f"neither {path / name} nor {file.name} exists there: download it or check -data_path")
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file} ({error}): download it again") from error
    header = 4 + 4 * ndim
    if content[:4] != bytes([0, 0, 8, ndim]):
        raise UserError(
            f"{file} is no IDX file of {ndim}-d unsigned bytes: it begins with {content[:4].hex()}, not "
            f"{bytes([0, 0, 8, ndim]).hex()}; download it again"
        )
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    expected = header + int(np.prod([int(size) for size in shape], dtype=object))
    if len(content) != expected:
        raise UserError(f"{file} holds {len(content)} bytes but its header means {expected}: download it again")
    if expected == header:
        raise UserError(f"{file} is empty, its header says {shape}: download it again")
    return file, np.frombuffer(content, np.uint8, offset=header).reshape(shape)


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
