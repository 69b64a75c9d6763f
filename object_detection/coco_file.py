"""Reads COCO annotation files, and checks their structure: lists, keys, types and unique ids."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from common.data.class_names import check_class_names, composed
from common.data.image_limits import check_size
from common.errors import UserError, missing_hint
from common.schema import read_json

__all__ = [
    "ADDED",
    "check_same_categories",
    "complete_categories",
    "index_annotations",
    "is_number",
    "read_annotations",
]


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number, and not larger than any image."""
    return type(value) in (int, float) and abs(value) < 1e9  # False for NaN


ADDED = "added"  # key of a category that is not in the file
_MAX_BYTES = 1 << 32  # COCO's largest annotation file has a tenth of it

_Rule = tuple[Callable[[Any], bool], str]
_ID: _Rule = (
    lambda value: type(value) is int and abs(value) < 2**53,
    "an integer below 2**53",
)  # pycocotools keeps it in float64
# No control characters: a path cannot have NUL, and messages and label files have a line for each name.
_TEXT: _Rule = (
    lambda value: isinstance(value, str) and bool(value.strip()) and not re.search("[\x00-\x1f\x7f]", value),
    "a text of one line",
)
_PIXELS: _Rule = (lambda value: is_number(value) and value > 0 and value == int(value), "a number of pixels")
_FLAG: _Rule = (lambda value: value is None or (type(value) in (int, bool) and value in (0, 1)), "0 or 1")
_RULES: dict[str, dict[str, _Rule]] = {
    "images": {"id": _ID, "file_name": _TEXT, "width": _PIXELS, "height": _PIXELS},
    "categories": {"id": _ID, "name": _TEXT},
    "annotations": {"id": _ID, "image_id": _ID, "category_id": _ID, "iscrowd": _FLAG},
}
# Values that no two entries may share, and the remedy.
_UNIQUE = {
    "images": {"id": "give each image its own", "file_name": "put all annotations of a file under one image"},
    "categories": {"id": "give each category its own", "name": "rename one, or merge the two"},
    "annotations": {},  # check_annotations renumbers repeated ids
}


def read_annotations(path: str | Path, where: str) -> dict[str, Any]:
    """Read an annotation file and check its structure.

    Boxes and masks are checked by :func:`object_detection.check_annotations.check_annotations`.

    Args:
        path: a JSON file in COCO format.
        where: the section of the configuration that names it, for messages.

    Returns:
        The content of the file: nonempty lists of dicts under ``images``, ``annotations`` and ``categories``.

    Raises:
        UserError: the file does not exist, is not JSON, or has another structure.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(
            f"{where}: the annotations {path} do not exist; set {where}.anno_path to a JSON file in COCO format"
            f"{missing_hint(path)}"
        )
    try:
        coco = read_json(path, f"{where}: {path}", max_bytes=_MAX_BYTES)
    except OSError as error:
        raise UserError(f"{where}: cannot read {path}: {error.strerror}; give a readable JSON file") from error
    for key in _RULES:
        if not isinstance(coco, dict) or not isinstance(coco.get(key), list):
            raise UserError(f"{where}: {path} has no list of {key}; give a file in COCO format")
        if not coco[key]:
            raise UserError(f"{where}: {path}: the list of {key} is empty; there is nothing to train on or to evaluate")
        if key == "categories":
            coco[key] = [_with_composed_name(entry) for entry in coco[key]]
        _check_entries(coco[key], key, f"{where}: {path}")
    for number, image in enumerate(coco["images"]):
        try:
            check_size(int(image["width"]), int(image["height"]))  # masks are decoded before any image is opened
        except UserError as error:
            raise UserError(f"{where}: {path}: images[{number}]: {error}") from error
    check_class_names([category["name"] for category in coco["categories"]], f"{where}: {path}")
    return coco


def _with_composed_name(category: Any) -> Any:
    name = category.get("name") if isinstance(category, dict) else None
    return {**category, "name": composed(name)} if isinstance(name, str) else category


def _check_entries(entries: list[Any], key: str, where: str) -> None:
    seen: dict[str, set[Any]] = {name: set() for name in _UNIQUE[key]}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {key}[{number}] is not an object; give a file in COCO format")
        for name, (is_right, expected) in _RULES[key].items():
            if not is_right(entry.get(name)):
                state = f"is {entry[name]!r}" if name in entry else "is missing"
                raise UserError(f"{where}: {name} of {key}[{number}] {state}; write {expected}")
        for name, remedy in _UNIQUE[key].items():
            if entry[name] in seen[name]:
                raise UserError(f"{where}: {key}[{number}] repeats the {name} {entry[name]!r}; {remedy}")
            seen[name].add(entry[name])


def check_same_categories(train: Mapping[str, Any], val: Mapping[str, Any], paths: tuple[Any, Any]) -> None:
    """Compare the categories of training and validation, whose order numbers the classes.

    Args:
        train, val: from :func:`read_annotations`.
        paths: of both files, for messages.

    Raises:
        UserError: they differ.
    """
    ours, theirs = ([f"{entry['id']} {entry['name']!r}" for entry in coco["categories"]] for coco in (train, val))
    for number, (first, second) in enumerate(itertools.zip_longest(ours, theirs, fillvalue="missing"), 1):
        if first != second:
            raise UserError(
                f"category {number} is {first} in {paths[0]} and {second} in {paths[1]}; give both files the same "
                "categories in the same order"
            )


def complete_categories(annotations: dict[str, Any], class_names: Sequence[str]) -> dict[str, Any]:
    """Number the categories as a model does, where a file has only some of its classes.

    Args:
        annotations: from :func:`read_annotations`.
        class_names: of the model.

    Returns:
        The annotations with a category for each class name, new ones with the key ``ADDED``, or unchanged if they have
        as many or other categories.
    """
    own = {entry["name"]: entry for entry in annotations["categories"]}
    if len(own) >= len(class_names) or not set(own) <= set(class_names):
        return annotations
    new_ids = itertools.count(1 + max((entry["id"] for entry in own.values()), default=0))
    categories = [own.get(name) or {"id": next(new_ids), "name": name, ADDED: True} for name in class_names]
    return {**annotations, "categories": categories}


def index_annotations(annotations: Mapping[str, Any]) -> COCO:
    """Make pycocotools' ``COCO`` of annotations that are in memory."""
    coco = COCO()
    coco.dataset = dict(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco
