"""COCO annotation files: reading them, and the structure without which nothing else about them can be checked."""

from __future__ import annotations

import contextlib
import gc
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from common.errors import UserError, one_line

__all__ = ["check_same_categories", "index_annotations", "is_number", "read_annotations"]


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a finite number, and not larger than any image."""
    return type(value) in (int, float) and abs(value) < 1e9  # False for NaN


_Rules = Mapping[str, tuple[Callable[[Any], bool], str]]
_ID = (lambda value: type(value) is int and abs(value) < 2**53, "an integer")  # pycocotools keeps ids in float64
_TEXT = (lambda value: isinstance(value, str) and bool(value.strip()), "a text")
_PIXELS = (lambda value: is_number(value) and value > 0 and value == int(value), "a number of pixels")
_REQUIRED: Mapping[str, _Rules] = {
    "images": {"id": _ID, "file_name": _TEXT, "width": _PIXELS, "height": _PIXELS},
    "categories": {"id": _ID, "name": _TEXT},
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _ID,
        "iscrowd": (lambda value: value is None or (type(value) in (int, bool) and value in (0, 1)), "0 or 1"),
    },
}
# What no two entries may share, and the remedy.
_UNIQUE = {
    "images": {"id": "give each image its own", "file_name": "put all annotations of a file under one image"},
    "categories": {"id": "give each category its own", "name": "rename one, or merge the two"},
}


def read_annotations(path: str | Path, where: str) -> dict[str, Any]:
    """Read an annotation file, and check its lists, the keys and types of their entries, and that ids are unique.

    Those of annotations need not be unique. Boxes and masks are checked by
    :func:`object_detection.check_annotations.check_annotations`.

    Args:
        path: a JSON file in COCO format.
        where: the section of the configuration that names it, for messages.

    Returns:
        The content of the file: not empty lists of dicts under ``images``, ``annotations`` and ``categories``.

    Raises:
        UserError: the file does not exist, is not JSON, or has another structure.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{where}: the annotations {path} do not exist; give the path of a JSON file in COCO format")
    try:
        coco = _parse(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: {path} is not JSON ({one_line(error)}); restore it") from error
    if not isinstance(coco, dict):
        raise UserError(
            f"{where}: {path} holds a JSON {type(coco).__name__}, not an object; give a file in COCO format"
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


def index_annotations(annotations: Mapping[str, Any]) -> COCO:
    """Make pycocotools' ``COCO`` of annotations that are in memory."""
    coco = COCO()
    coco.dataset = dict(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _parse(text: bytes) -> Any:
    # The garbage collector would scan the millions of lists of COCO's files again and again: half of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text)
    finally:
        if was_enabled:
            gc.enable()


def _check_list(coco: Mapping[str, Any], key: str, rules: _Rules, where: str) -> None:
    if key not in coco:
        raise UserError(f"{where} has no {key}; give a file in COCO format")
    entries = coco[key]
    if not isinstance(entries, list):
        raise UserError(f"{where}: {key} is not a list; give a file in COCO format")
    if not entries:
        raise UserError(f"{where}: the list {key} is empty; there is nothing to train on or to evaluate")
    seen: dict[str, set[Any]] = {name: set() for name in _UNIQUE.get(key, ())}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: {key}[{number}] is not an object; give a file in COCO format")
        for name, (is_right, what) in rules.items():
            if not is_right(entry.get(name)):
                state = f"is {entry[name]!r}" if name in entry else "is missing"
                raise UserError(f"{where}: {name} of {key}[{number}] {state}; write {what}")
        for name, values in seen.items():
            if entry[name] in values:
                raise UserError(
                    f"{where}: {key}[{number}] has the {name} {entry[name]!r} of another; {_UNIQUE[key][name]}"
                )
            values.add(entry[name])
