"""Several valid labels for an image, as the reassessed labels (ReaL) of ImageNet have them (arXiv 2006.07159)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np

from common.errors import UserError
from common.schema import Range, check_value, read_json
from image_classification.dataset_types import Dataset, FileDataset
from image_classification.loaders import IGNORED_LABEL

__all__ = ["read_valid_labels"]

_MOST_LABELS = 100  # of an image: each is a column for all images


def read_valid_labels(path: Path, dataset: Dataset) -> np.ndarray:
    """Read the valid labels of each image from a JSON file.

    Args:
        path: of a list with a list of class numbers for each image, the images sorted by file name without folders. An
            empty list leaves the image out of the evaluation.
        dataset: the images. Its own labels are not used.

    Returns:
        int64 [n, m]: the labels of image i of the data set, then ``IGNORED_LABEL``.

    Raises:
        UserError: the file is missing or malformed, has another number of images or no label, or the names of the
            images do not order them.
    """
    try:
        content = read_json(path, str(path))
    except OSError as error:
        raise UserError(f"cannot read the labels {path} ({error.strerror}); check DATA.LABELS_JSON") from error
    label = Annotated[int, Range(0, dataset.num_classes - 1)]
    rows = check_value(content, list[list[label]], str(path), "labels")
    if len(rows) != len(dataset):
        raise UserError(
            f"{path} has labels of {len(rows)} images, but there are {len(dataset)}; use those of this data"
        )
    most = max(map(len, rows))
    if not most:
        raise UserError(f"{path} has no label; give another file as DATA.LABELS_JSON")
    if most > _MOST_LABELS:
        raise UserError(f"{path} has {most:,} labels for an image, more than {_MOST_LABELS}; give another file")
    if not isinstance(dataset, FileDataset):
        raise UserError("DATA.LABELS_JSON needs images in files, whose names order them; use -dataset list or folder")
    names = np.array([name.rpartition(b"/")[2] for name in dataset.names()])
    order = np.argsort(names, kind="stable")
    if same := np.flatnonzero(names[order][1:] == names[order][:-1]).tolist():
        pair = (dataset.describe(order[same[0] + offset]) for offset in (0, 1))
        raise UserError(f"DATA.LABELS_JSON orders the images by name, but {' and '.join(pair)} have the same name")
    labels = np.full((len(rows), most), IGNORED_LABEL, np.int64)
    for index, row in zip(order, rows, strict=True):
        labels[index, : len(row)] = row
    return labels
