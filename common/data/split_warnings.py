"""What the training and the validation split of a data set may have in common by mistake."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from ..errors import printable
from ..runtime.distributed import is_main_process
from ..runtime.regular_file import open_regular

__all__ = ["normalization_warning", "split_warnings"]

_MOST_COMPARED = 50_000  # images: on a network disk, each takes up to a millisecond


def split_warnings(
    class_names: Sequence[str] | None,
    training: Iterable[str | bytes],
    validation: Iterable[str | bytes],
    root: str | Path = "",
    labels: tuple[Iterable[int], Iterable[int]] = ((), ()),
) -> list[str]:
    """Return what looks wrong but may be intended: classes of one name, and images that are repeated.

    Up to 50,000 images are also compared by the contents of their files.

    Args:
        class_names: of the data, or None.
        training, validation: paths of the images of each split, relative to the same folder.
        root: that folder. Images that are no files in it are compared by their paths only.
        labels: of the images of each split, if each has one; equal images of different classes are named.
    """
    lines = []
    for name, count in Counter(class_names or ()).items():
        if count > 1:
            numbers = [str(number) for number, other in enumerate(class_names or ()) if other == name]
            lines.append(f"classes {', '.join(numbers)} are all called {name!r}")
    of_train, of_val = ([os.fsdecode(os.path.normpath(path)) for path in split] for split in (training, validation))
    train, val = set(of_train), set(of_val)
    few = is_main_process() and len(train) + len(val) <= _MOST_COMPARED
    groups = _equal_files(train | val, root) if few else []
    lines += _repeated("training", of_train, labels[0], groups, class_names)
    lines += _repeated("validation", of_val, labels[1], groups, class_names)
    splits = [zip(paths, numbers, strict=False) for paths, numbers in zip((of_train, of_val), labels, strict=True)]
    lines += _folders_of_other_classes(class_names, *splits)
    advice = "a validation on trained images says little about new ones"
    if shared := train & val:
        lines.append(
            f"{len(shared):,} images are both in the training and in the validation data, such as "
            f"{printable(min(shared))}; {advice}"
        )
    originals = {path: min(train & group) for group in groups if train & group for path in group - train}
    if originals:
        copy, original = map(printable, min(originals.items()))
        lines.append(
            f"{len(originals):,} images of the validation data are copies of training images, such as {copy} of "
            f"{original}; {advice}"
        )
    return lines


def _folders_of_other_classes(
    names: Sequence[str] | None, training: Iterable[tuple[str, int]], validation: Iterable[tuple[str, int]]
) -> list[str]:
    """Name a folder whose images have other labels in the other split, or a class of another name.

    Args:
        names: of the classes.
        training, validation: paths of images and their labels. They count if each label has a folder of its own.
    """
    by_folder = []
    for split in (training, validation):
        paths = {(path.rpartition(os.sep)[0], label) for path, label in split}
        pairs = {(path.rpartition(os.sep)[2], label) for path, label in paths}
        folders = dict(pairs)
        by_folder.append(folders if len(pairs) == len(folders) == len(set(folders.values())) > 1 else {})
    of_train, of_val = by_folder
    lines = []
    if other := [folder for folder in sorted(of_train.keys() & of_val.keys()) if of_train[folder] != of_val[folder]]:
        lines.append(
            f"images in folders called {printable(other[0])} have the label {of_train[other[0]]} in the training data "
            f"and {of_val[other[0]]} in the validation data; number the classes alike"
        )
    numbers = {name: number for number, name in enumerate(names or ())}
    for folder, label in sorted({**of_val, **of_train}.items()):
        if names and numbers.get(folder, label) != label < len(names):
            lines.append(
                f"images in folders called {printable(folder)} have the label {label}, which is called "
                f"{printable(names[label])}; check the order of the class names"
            )
            break
    return lines


def normalization_warning(training: tuple[ArrayLike, ArrayLike], validation: tuple[ArrayLike, ArrayLike]) -> list[str]:
    """A warning if the images of the splits are normalized with other means or standard deviations."""
    (mean, std), (val_mean, val_std) = (
        [np.round(np.asarray(values), 4) for values in split] for split in (training, validation)
    )
    pairs = ((mean, val_mean), (std, val_std))
    if all((a.shape == b.shape or 1 in (a.size, b.size)) and np.all(a == b) for a, b in pairs):
        return []
    return [
        f"training images are normalized with mean {mean.tolist()} and std {std.tolist()}, validation images with mean "
        f"{val_mean.tolist()} and std {val_std.tolist()}, which predictions and exports use as well; make them equal"
    ]


def _repeated(
    split: str, paths: Sequence[str], labels: Iterable[int], groups: Iterable[set[str]], names: Sequence[str] | None
) -> list[str]:
    """Name images that a split has more than once, by path or as copies, and one of them with several classes."""
    lines = []
    again = [path for path, times in Counter(paths).items() if times > 1]
    if again:
        lines.append(f"{len(again):,} images are more than once in the {split} data, such as {printable(min(again))}")
    present = set(paths)
    copies = sorted(sorted(present & group) for group in groups if len(present & group) > 1)
    if copies:
        count = sum(map(len, copies)) - len(copies)
        original, copy, *_ = map(printable, copies[0])
        lines.append(f"{count:,} images of the {split} data are copies of others there, such as {copy} of {original}")
    classes: dict[str, set[int]] = {path: set() for group in [*copies, again] for path in group}
    for path, label in zip(paths, labels, strict=False):
        if path in classes:
            classes[path].add(label)
    for group in [*copies, *([path] for path in again)]:
        numbers = sorted(set().union(*map(classes.__getitem__, group)))
        if len(numbers) > 1:
            found = ", ".join(printable(names[number]) if names else str(number) for number in numbers)
            lines.append(f"the {split} data has {printable(group[0])}, itself or a copy, in several classes: {found}")
            break
    return lines


def _equal_files(paths: Iterable[str], root: str | Path) -> list[set[str]]:
    """The groups of files with equal contents."""
    groups = [set(paths)]
    for length in (4096, -1):  # the first bytes, and then all of the few files that agree in them
        equal: dict[bytes | None, set[str]] = defaultdict(set)
        for path in itertools.chain(*groups):
            equal[_digest(Path(root, path), length)].add(path)
        equal.pop(None, None)
        groups = [group for group in equal.values() if len(group) > 1]
    return groups


def _digest(path: Path, length: int) -> bytes | None:
    """The SHA-256 of the size and the first bytes of a file; None if there is none."""
    try:
        with open_regular(path, "rb") as file:
            return hashlib.sha256(b"%d " % os.fstat(file.fileno()).st_size + file.read(length)).digest()
    except (OSError, ValueError):
        return None
