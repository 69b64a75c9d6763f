"""What the training and the validation split of a data set may have in common by mistake."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from ..errors import printable

__all__ = ["split_warnings"]


def split_warnings(
    class_names: Sequence[str] | None, training: Iterable[str | bytes], validation: Iterable[str | bytes]
) -> list[str]:
    """Return what looks wrong but may be intended: classes of one name, and images in both splits.

    Images are compared by their paths, so copies of a file are not found.

    Args:
        class_names: of the data, or None.
        training, validation: paths of the images of each split, relative to the same folder.
    """
    lines = []
    for name, count in Counter(class_names or ()).items():
        if count > 1:
            numbers = [str(number) for number, other in enumerate(class_names or ()) if other == name]
            lines.append(f"classes {', '.join(numbers)} are all called {name!r}")
    shared = {os.path.normpath(path) for path in validation}.intersection(os.path.normpath(path) for path in training)
    if shared:
        lines.append(
            f"{len(shared):,} images are both in the training and in the validation data, such as "
            f"{printable(os.fsdecode(min(shared)))}; a validation on trained images says little about new ones"
        )
    return lines
