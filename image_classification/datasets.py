"""The data sets of labeled images by their kinds: files, class folders, archives, IDX files and 5,000 digits of MNIST.

A data set gives Pillow RGB images; ``transforms`` turns them into arrays. One split is built at a time, so that
evaluation needs no training data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from common.demo_data import wheels as demo_data
from common.errors import UserError, missing_hint
from common.runtime.folders import expand_home
from image_classification.dataset_types import ArrayDataset, Dataset, class_count
from image_classification.folders import build_folder
from image_classification.idx_files import build_idx
from image_classification.list_files import build_list

__all__ = ["KINDS", "build_dataset"]

SPLITS = ("train", "val")
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
        class_names: of the model. They number the class folders, of which a split may lack some; so do folders whose
            names are all numbers of these classes.

    Kinds:
        imagenet2012, list: ``train_list.txt`` and ``val_list.txt`` in the folder, with lines
            ``relative/path.jpg LABEL``; empty lines and comments (``# ...``) are skipped. ``class_names.txt``,
            ``label_list.txt`` or ``labels.txt``, one name per line, is optional.
        folder: ``train/CLASS/*`` and ``val/CLASS/*``, with subfolders; see ``SPLIT_FOLDERS`` for other names.
            The classes are the folders of ``train`` (or of ``val``, without ``train``), sorted by name. Without one of
            these folders, or with no class folder in it, archives take its place: ``train.tar``, ``train-*.tar`` or
            ``train/*.tar``, or ``.zip``, see :class:`image_classification.archives.ArchiveTree`. With neither,
            ``CLASS/*`` is split: a fixed random 20 % of each class is the validation split, at least one image of a
            class with two or more.
        idx, mnist, fashion_mnist: ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the same with
            ``t10k-``, each plain or ``.gz``; for idx, the names of the classes as for lists.
        mnist5k: 4,000 training and 1,000 validation digits, downloaded on first use; see
            :mod:`common.demo_data.wheels`.

    Raises:
        UserError: the kind is unknown, or data is missing, malformed or contradictory.
    """
    if name not in KINDS:
        raise UserError(f"unknown dataset {name!r}: give -dataset one of {', '.join(KINDS)}")
    path = None if path is None else expand_home(Path(path))
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
        return build_folder(path, split, num_classes, class_names)
    return KINDS[name](path, split, num_classes)


def _build_mnist5k(path: Path | None, split: str, num_classes: int | None) -> Dataset:
    splits = demo_data.load_mnist5k() if path is None else demo_data.load_mnist5k(path)
    images, labels = splits[SPLITS.index(split)]
    count = class_count(num_classes, DIGITS, labels, "mnist5k")
    return ArrayDataset(images, labels, DIGITS, count, f"mnist5k {split}")


KINDS: dict[str, Callable[[Path | None, str, int | None], Dataset]] = {
    "imagenet2012": build_list,
    "list": build_list,
    "folder": build_folder,
    "idx": build_idx,
    "mnist": partial(build_idx, class_names=DIGITS),
    "fashion_mnist": partial(build_idx, class_names=FASHION_MNIST_CLASSES),
    "mnist5k": _build_mnist5k,
}
