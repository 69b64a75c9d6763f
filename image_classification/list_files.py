"""List files: lines ``relative/path.jpg LABEL``, as in PaddleViT."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from common.data.class_names import read_class_names
from common.errors import UserError
from common.runtime.regular_file import read_lines
from image_classification.dataset_types import Dataset, FileDataset, check_labels, class_count

__all__ = ["CLASS_NAME_FILES", "build_list"]

CLASS_NAME_FILES = ("class_names.txt", "label_list.txt", "labels.txt")


def build_list(path: Path, split: str, num_classes: int | None) -> Dataset:
    list_file = path / f"{split}_list.txt"
    names, labels, lines = _read_list(list_file)
    class_names, source = read_class_names(path, CLASS_NAME_FILES) or (None, path)
    count = class_count(num_classes, class_names, labels, source)
    check_labels(labels, count, lambda index: f"{list_file} line {lines[index]}")
    dataset = FileDataset(path, names, labels, class_names, count, list_file.name, lines)
    dataset.check_exist()
    return dataset


def _read_list(list_file: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    names, labels, lines = [], [], []
    try:
        # A byte order mark is skipped; file names need not be UTF-8.
        for number, line in enumerate(read_lines(list_file, "utf-8-sig", "surrogateescape"), 1):
            line = line.strip()
            if not line or line.startswith("# "):  # a comment; files may be called #1.jpg
                continue
            name, *label = line.rsplit(maxsplit=1)
            if not label:
                raise UserError(f'{list_file} line {number}: {name!r} has no label; write "relative/path.jpg LABEL"')
            if not re.fullmatch(r"-?[0-9]{1,18}", label[0]):
                raise UserError(
                    f"{list_file} line {number}: label {label[0]!r} is not an integer: write "
                    '"relative/path.jpg LABEL", with the label 0, 1, 2, ...'
                )
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
