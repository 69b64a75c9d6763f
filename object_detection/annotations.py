"""Annotation files in COCO's form: reading them, and what they must have for anything else to be said about them."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError, one_line

__all__ = ["check_same_categories", "is_number", "read_annotations"]

_LARGEST_ID = 2**53  # pycocotools keeps ids in float64


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number of a size that images have."""
    return type(value) in (int, float) and abs(value) < 1e9  # which NaN is not


def _is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < _LARGEST_ID


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_length(value: Any) -> bool:
    return is_number(value) and value > 0 and value == int(value)


def _is_crowd_flag(value: Any) -> bool:
    return value is None or (type(value) in (int, bool) and value in (0, 1))


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
_REQUIRED: Mapping[str, _Rules] = {
    "images": {
        "id": (_is_id, "an integer"),
        "file_name": (_is_text, "the path of the image in the folder of images"),
        "width": (_is_length, "the width in pixels"),
        "height": (_is_length, "the height in pixels"),
    },
    "categories": {"id": (_is_id, "an integer"), "name": (_is_text, "the name of the class")},
    "annotations": {
        "id": (_is_id, "an integer"),
        "image_id": (_is_id, "the id of an image, an integer"),
        "category_id": (_is_id, "the id of a category, an integer"),
        "iscrowd": (_is_crowd_flag, "0 or 1"),
    },
}


def read_annotations(path: str | Path, where: str) -> dict[str, Any]:
    """Read an annotation file, and see that it has the lists and keys without which it cannot be checked.

    Args:
        path: of a JSON file in COCO's form.
        where: the section of the configuration that names it, for messages.

    Returns:
        What is in the file: lists of dicts under ``images``, ``annotations`` and ``categories``, none of them empty,
        with ids that are integers, names and sizes.

    Raises:
        UserError: the file is missing, is no JSON, or lacks something.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{where}: the annotations {path} do not exist; give the path of a JSON file in COCO's form")
    try:
        coco = _parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {path} is no JSON ({one_line(error)}); restore it") from error
    if not isinstance(coco, dict):
        raise UserError(
            f"{where}: {path} holds a JSON {type(coco).__name__}, not an object; give a file in COCO's form"
        )
    for key, rules in _REQUIRED.items():
        _check_list(coco, key, rules, f"{where}: {path}")
    return coco


def check_same_categories(train: Mapping[str, Any], val: Mapping[str, Any], paths: tuple[Any, Any]) -> None:
    """Compare the categories of training and validation, whose order numbers the classes.

    Args:
        train, val: from :func:`read_annotations`.
        paths: of both files, for messages.

    Raises:
        UserError: they differ.
    """
    ours, theirs = ([(entry["id"], entry["name"]) for entry in coco["categories"]] for coco in (train, val))
    if ours == theirs:
        return
    for number in range(max(len(ours), len(theirs))):
        pair = [f"{part[number][0]} {part[number][1]!r}" if number < len(part) else "none" for part in (ours, theirs)]
        if pair[0] != pair[1]:
            raise UserError(
                f"category {number + 1} is {pair[0]} in {paths[0]} and {pair[1]} in {paths[1]}; give both files the "
                "same categories in the same order"
            )


def _parse(text: bytes) -> Any:
    # The garbage collector would look at the millions of lists of COCO's files again and again: half of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if was_enabled:
            gc.enable()


def _check_list(coco: Mapping[str, Any], key: str, rules: _Rules, where: str) -> None:
    if key not in coco:
        raise UserError(f"{where} has no {key}; give a file in COCO's form")
    entries = coco[key]
    if not isinstance(entries, list):
        raise UserError(f"{where}: {key} is no list; give a file in COCO's form")
    if not entries:
        raise UserError(f"{where}: the list {key} is empty; there is nothing to learn or to evaluate")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {key}[{number}] is no object; give a file in COCO's form")
        for name, (is_right, what) in rules.items():
            if not is_right(entry.get(name)):
                state = f"is {entry[name]!r}" if name in entry else "is missing"
                raise UserError(f"{where}: {name} of {key}[{number}] {state}; write {what}")
