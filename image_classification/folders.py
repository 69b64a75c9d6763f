"""Class folders: ``train/CLASS/*`` and ``val/CLASS/*``, in archives or not; or ``CLASS/*`` with a part held out."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.class_names import check_class_names, composed
from common.data.image_file import IMAGE_SUFFIXES, is_ignored, list_images, other_files_warning
from common.errors import UserError
from image_classification.archives import ArchiveTree, compressed_hint, list_archives
from image_classification.dataset_types import Dataset, FileDataset, class_count

__all__ = ["build_folder", "refuse_output_among_classes"]

SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}  # in any letter case
_LAYOUTS = (
    "train/CLASS/*.jpg and val/CLASS/*.jpg, train.tar and val.tar (or .zip) with CLASS/*.jpg, or CLASS/*.jpg, of which "
    "about 20 % become the validation split"
)
HELD_OUT_FRACTION, MOST_HELD_OUT = 0.2, 0.3
_NAME_OF_SPLIT = re.compile(r"(train(ing)?|val(id(ation)?)?|tests?)([-_ .].*|\d*)", re.IGNORECASE)


class FolderTree:
    """The class folders of a split.

    Args:
        root: folder of the data.
        path: the folder that has the class folders.

    Attributes:
        others: files with other suffixes in the classes that :meth:`files` has listed.
    """

    def __init__(self, root: Path, path: Path):
        self.path, self._root = path, root
        self.others: list[str] = []

    def class_names(self) -> list[str]:
        """The names of the class folders, sorted."""
        entries = [entry for entry in self.path.iterdir() if not is_ignored(entry.name)]
        for entry in entries:
            if entry.is_symlink() and not entry.exists():
                raise UserError(f"{entry} is a link to {entry.readlink()}, which does not exist; restore or remove it")
        return sorted(entry.name for entry in entries if entry.is_dir())

    def files(self, class_name: str) -> list[str]:
        """The images of a class, sorted; relative to the root."""
        folder = self.path / class_name
        images = list_images(folder, others=self.others)
        return [f"{folder.relative_to(self._root)}{file[len(str(folder)) :]}" for file in images]

    def dataset(
        self, names: list[str], labels: np.ndarray, class_names: list[str] | None, num_classes: int
    ) -> FileDataset:
        """The data set of some of the images."""
        return FileDataset(self._root, names, labels, class_names, num_classes)


def build_folder(
    path: Path, split: str, num_classes: int | None, known_classes: Sequence[str] | None = None
) -> Dataset:
    """Find the images of a split.

    Classes are numbered in the order of their sorted names, as in torchvision. Names 0, 1, ..., n - 1 are the numbers
    themselves, as in list and IDX files; sorted as texts, 10 would be class 2.
    """
    trees = _find_splits(path)
    if trees and split not in trees:
        raise UserError(
            f"{path} has no {split} split: add {path / split} with one folder per class, or check -data_path. The "
            f"layouts are {_LAYOUTS}{compressed_hint(path)}"
        )
    tree = trees.get(split) or FolderTree(path, path)
    folders = _class_folders(tree)
    numbered, class_names = _number_classes(folders, trees.get("train", tree), known_classes)
    names, labels, empty = [], [], []
    for label, folder in enumerate(numbered):
        if folder not in folders:
            continue
        files = tree.files(folders[folder].name)
        if not files and (split == "train" or not trees):
            empty.append(str(folders[folder]))
        if files and not trees:
            files = _select_split(files, split)
        names += files
        labels += [label] * len(files)
    if empty:
        hint = f"; {other_files_warning(tree.others)}" if tree.others else ""
        raise UserError(f"no images in the class folders {', '.join(empty)}: fill or remove them{hint}")
    if not names and trees:
        raise UserError(f"the class folders of {tree.path} have no images: add some")
    if not names:
        raise UserError(f"{path} has too few images for the {split} split: each class needs at least two")
    labels = np.array(labels, np.int64)
    count = class_count(num_classes, class_names, labels, path)
    dataset = tree.dataset(names, labels, class_names, count)
    dataset.notes = [other_files_warning(tree.others)] if tree.others else []
    if isinstance(tree, FolderTree) and (beside := _list_beside(tree.path)):
        dataset.notes.append(
            f"{len(beside)} images beside the class folders of {tree.path} are left out, such as {min(beside)}; move "
            "them into the folder of their class"
        )
    if not trees and (splits := {name for name in class_names if _NAME_OF_SPLIT.fullmatch(name)}):
        dataset.notes.append(f"{', '.join(sorted(splits))}, a name of a split, is a class here; move it if it is none")
    if split == "val" and not trees:
        dataset.notes = [
            f"{path} has no val folder, so about {HELD_OUT_FRACTION:.0%} of each class, always the same, are the "
            "validation split"
        ]  # the training split has named the other files already
    if numbered is not class_names:
        first = next(iter(folders))
        dataset.notes.append(
            f"the class folders are taken as the numbers of the classes: {first} is {class_names[int(first)]}"
        )
    return dataset


def refuse_output_among_classes(path: Path, output: Path, flag: str) -> None:
    """Refuse an output folder that would become a class, because it is in a folder of class folders.

    Args:
        flag: chooses the output, for the message.

    Raises:
        UserError: it is in such a folder.
    """
    if not path.is_dir():
        return
    folders = [tree.path for tree in _find_splits(path).values() if isinstance(tree, FolderTree)]
    for folder in folders or [path]:
        if Path(os.path.realpath(output)).is_relative_to(os.path.realpath(folder)):
            raise UserError(f"{flag} {output} is in {folder}, and would become a class; give another {flag}")


def _find_splits(path: Path) -> dict[str, FolderTree | ArchiveTree]:
    """The splits of a folder, empty if it has none: folders of classes, or of archives, or else archives beside."""
    trees: dict[str, FolderTree | ArchiveTree] = {}
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir())
    for split, names in SPLIT_FOLDERS.items():
        own = [folder for folder in folders if folder.name.lower() in names]
        if len(own) > 1:
            raise UserError(
                f"{path} has two folders for the {split} split, {own[0].name} and {own[1].name}: rename or remove one"
            )
        if own:
            folder = FolderTree(path, own[0])
            archives = [] if folder.class_names() else list_archives(own[0])
        else:
            archives = list_archives(path, f"({'|'.join(names)})([-_.].*)?")
        if archives:
            trees[split] = ArchiveTree(path, own[0] if own else path / split, archives, names)
        elif own:
            trees[split] = folder
    return trees


def _class_folders(tree: FolderTree | ArchiveTree) -> dict[str, Path]:
    """The class folders by their composed names, in the order of these; see :func:`build_folder`."""
    folders: dict[str, Path] = {}
    for folder in tree.class_names():
        name = composed(folder)
        if name in folders:
            raise UserError(
                f"{tree.path} has two class folders {name!r} that differ only in their Unicode form, "
                f"{folders[name].name!a} and {folder!a}: rename or merge them"
            )
        folders[name] = tree.path / folder
    if not folders:
        is_split = any(tree.path.name.lower() in names for names in SPLIT_FOLDERS.values())
        raise UserError(
            f"{tree.path} has no class folders: put the images in one folder per class, or check -data_path"
            f"{'; if it is a class, rename it, because its name is that of a split' * is_split}"
            f"{compressed_hint(tree.path)}"
        )
    if len(folders) > 1 and all(any(name.lower() in names for names in SPLIT_FOLDERS.values()) for name in folders):
        raise UserError(f"{tree.path} has {' and '.join(folders)}, which are splits: give each an archive or folder")
    check_class_names(list(folders), tree.path)
    numbers = [str(number) for number in range(len(folders))]
    return {name: folders[name] for name in (numbers if folders.keys() == set(numbers) else sorted(folders))}


def _number_classes(
    folders: dict[str, Path], train_tree: FolderTree | ArchiveTree, known_classes: Sequence[str] | None
) -> tuple[list[str], list[str]]:
    """Number the classes as the model does, if it knows one of the folders, or if all are numbers of its classes.

    Args:
        folders: of the classes in a split, by name.
        train_tree: the class folders of the training split, or of this one if there is none.
        known_classes: class names of the model.

    Returns:
        The names of the folders, and those of the classes, in the order of the classes' numbers.

    Raises:
        UserError: a folder is none of the classes, or there is only one class.
    """
    class_names = list(known_classes or ())
    numbers = [str(number) for number in range(len(class_names))]
    source = "the classes of the weights or of the training split"
    if not set(folders) & set(class_names):
        if set(folders) <= set(numbers):
            return numbers, class_names
        class_names, source = list(_class_folders(train_tree)), str(train_tree.path)
    unknown = [name for name in folders if name not in class_names]
    if unknown:
        raise UserError(f"class folder {folders[unknown[0]]} is not in {source}: rename or remove it")
    if len(class_names) == 1:
        only = train_tree.path / class_names[0]
        inside = f". If {only} has the class folders, give -data_path {only}" if only.is_dir() else ""  # no archive
        raise UserError(f"{train_tree.path} has only one class folder, {only.name}. The layouts are {_LAYOUTS}{inside}")
    return class_names, class_names


def _list_beside(folder: Path) -> list[str]:
    """The images in a folder, not in its subfolders."""
    names = (entry.name for entry in folder.iterdir() if entry.is_file())
    return [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not is_ignored(name)]


def _select_split(files: list[str], split: str) -> list[str]:
    """Choose by a hash of each name, so that trained images stay so when files are added to a class of some images.

    In a small class, up to half of the hashes may be below the limit; at most 30 % of a class are taken. There, a
    trained image may be held out after files are added.
    """
    hashes = [hashlib.sha256(os.fsencode(file)).digest() for file in files]
    below = sum(value[0] < round(256 * HELD_OUT_FRACTION) for value in hashes)
    count = min(max(below, 1), max(round(MOST_HELD_OUT * len(files)), 1), len(files) - 1)
    held_out = set(sorted(hashes)[:count])
    return [file for file, value in zip(files, hashes, strict=True) if (value in held_out) == (split == "val")]
