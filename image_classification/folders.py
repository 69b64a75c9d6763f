"""Class folders: ``train/CLASS/*`` and ``val/CLASS/*``, or ``CLASS/*``, of which a part is held out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.class_names import check_class_names
from common.data.image_file import is_ignored, list_images
from common.errors import UserError
from image_classification.dataset_types import Dataset, FileDataset, class_count

__all__ = ["build_folder"]

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # in any letter case
_LAYOUTS = "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg, of which 20 % become the validation split"
HELD_OUT_FRACTION = 0.2


def build_folder(
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
        folder = tree / class_name
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
    count = class_count(num_classes, class_names, labels, path)
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


def _class_folders(tree: Path) -> list[str]:
    folders = sorted(entry.name for entry in tree.iterdir() if entry.is_dir() and not is_ignored(entry.name))
    if not folders:
        raise UserError(f"{tree} has no class folders: put the images in one folder per class, or check -data_path")
    check_class_names(folders, tree)
    return folders


def _number_classes(folders: Sequence[str], train_tree: Path, known_classes: Sequence[str] | None) -> list[str]:
    """The class names in the order of their numbers: those of the model, if it knows one of the folders.

    Args:
        folders: of the classes in a split.
        train_tree: the folder with the class folders of the training split, or of this one if there is none.
        known_classes: class names of the model.

    Raises:
        UserError: a folder is none of the classes, or there is only one class.
    """
    if known_classes and set(folders) & set(known_classes):
        class_names, source = list(known_classes), "the classes of the weights or of the training split"
    else:
        class_names, source = _class_folders(train_tree), str(train_tree)
    unknown = [name for name in folders if name not in class_names]
    if unknown:
        raise UserError(f"class folder {unknown[0]} is not in {source}: rename or remove it")
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
