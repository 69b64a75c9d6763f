"""What the training and the validation split of a data set may have in common by mistake."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import printable
from ..runtime.distributed import is_main_process
from ..runtime.regular_file import open_regular

__all__ = ["split_warnings"]

_MOST_COMPARED = 50_000  # images: on a network disk, each takes up to a millisecond


def split_warnings(
    class_names: Sequence[str] | None,
    training: Iterable[str | bytes],
    validation: Iterable[str | bytes],
    root: str | Path = "",
) -> list[str]:
    """Return what looks wrong but may be intended: classes of one name, and images that are repeated.

    Up to 50,000 images are also compared by the contents of their files.

    Args:
        class_names: of the data, or None.
        training, validation: paths of the images of each split, relative to the same folder.
        root: that folder. Images that are no files in it are compared by their paths only.
    """
    lines = []
    for name, count in Counter(class_names or ()).items():
        if count > 1:
            numbers = [str(number) for number, other in enumerate(class_names or ()) if other == name]
            lines.append(f"classes {', '.join(numbers)} are all called {name!r}")
    counts = [Counter(os.fsdecode(os.path.normpath(path)) for path in paths) for paths in (training, validation)]
    for split, found in zip(("training", "validation"), counts, strict=True):
        if repeated := [path for path, times in found.items() if times > 1]:
            lines.append(
                f"{len(repeated):,} images are more than once in the {split} data, such as {printable(min(repeated))}"
            )
    train, val = map(set, counts)
    advice = "a validation on trained images says little about new ones"
    if shared := train & val:
        lines.append(
            f"{len(shared):,} images are both in the training and in the validation data, such as "
            f"{printable(min(shared))}; {advice}"
        )
    if is_main_process() and len(train) + len(val) <= _MOST_COMPARED and (copies := _copies(train, val - shared, root)):
        copy, original = map(printable, min(copies.items()))
        lines.append(
            f"{len(copies):,} images of the validation data are copies of training images, such as {copy} of "
            f"{original}; {advice}"
        )
    return lines


def _copies(train: Iterable[str], val: Iterable[str], root: str | Path) -> dict[str, str]:
    """The validation images whose files equal those of training images, and one such training image for each."""
    for length in (4096, -1):  # the first bytes, and then all of the few files that agree in them
        of_train, of_val = ({path: _digest(Path(root, path), length) for path in paths} for paths in (train, val))
        same = set(of_train.values()) & set(of_val.values()) - {None}
        train, val = ([path for path, digest in found.items() if digest in same] for found in (of_train, of_val))
    originals = {of_train[path]: path for path in train}
    return {path: originals[of_val[path]] for path in val}


def _digest(path: Path, length: int) -> bytes | None:
    """The SHA-256 of the size and the first bytes of a file; None if there is none."""
    try:
        with open_regular(path, "rb") as file:
            return hashlib.sha256(b"%d " % os.fstat(file.fileno()).st_size + file.read(length)).digest()
    except (OSError, ValueError):
        return None
