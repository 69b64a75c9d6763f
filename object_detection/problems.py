"""The kinds of problems that annotations have, and what may be done about each: the keys of ``ON_PROBLEM``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from common.errors import UserError

__all__ = ["ACTIONS", "PROBLEMS", "Problem", "default_actions", "resolve_actions"]

# What a report says was done.
ACTIONS = {
    "error": "an error",
    "keep": "kept",
    "skip": "left out",
    "clip": "clipped to the image, or left out where nothing of it is inside",
    "drop": "polygons dropped, and objects that have no other",
    "convert": "outlined by polygons, which fill holes",
    "renumber": "renumbered",
    "fill": "filled in: no crowd, the area of the mask or the box",
}


@dataclass(frozen=True)
class Problem:
    """A kind of problem.

    Attributes:
        what: is wrong, in the plural.
        remedy: what the user can do about it.
        actions: what may be done about it, keys of ``ACTIONS``; the first is the default.
        training_only: whether evaluation keeps what training would change, because figures that others can compare
            need the file's own boxes and masks.
        training_alone: whether it is no problem at all for evaluation, which then does not even tell of it.
    """

    what: str
    remedy: str
    actions: tuple[str, ...]
    training_only: bool = False
    training_alone: bool = False


# The defaults are lenient where COCO 2017 itself needs it: it has a few boxes without area, and boxes that end a
# fraction of a pixel outside the image.
PROBLEMS: dict[str, Problem] = {
    "IMAGE_ID_DUPLICATE": Problem("images have the id of another", "give each image an id of its own", ("error",)),
    "CATEGORY_ID_DUPLICATE": Problem("categories have the id of another", "give each an id of its own", ("error",)),
    "CATEGORY_NAME_DUPLICATE": Problem(
        "categories have the name of another", "rename it, or merge the two", ("error", "keep")
    ),
    "FILE_NAME_DUPLICATE": Problem(
        "images have the file of another", "put all annotations of a file under one image", ("error", "keep")
    ),
    "ANNOTATION_ID_DUPLICATE": Problem(
        "annotations have the id of another", "give each annotation an id of its own", ("error", "renumber")
    ),
    # pycocotools takes the id for "not matched": the object would count as missed, and its detection as wrong.
    "ANNOTATION_ID_ZERO": Problem("annotations have the id 0", "count annotations from 1", ("renumber", "error")),
    "IMAGE_UNKNOWN": Problem(
        "annotations are of an image that is not in the file",
        "add the image or remove the annotation",
        ("error", "skip"),
    ),
    "CATEGORY_UNKNOWN": Problem(
        "annotations are of a category that is not in the file", "add the category or correct the id", ("error", "skip")
    ),
    "FIELD_MISSING": Problem(
        "annotations lack iscrowd or an area", "write both into each annotation", ("fill", "error")
    ),
    "BOX_INVALID": Problem(
        "boxes are not four finite numbers", "write bbox as [x, y, width, height] in pixels", ("error", "skip")
    ),
    "BOX_WITHOUT_AREA": Problem(
        "boxes have no area", "correct width and height", ("skip", "error"), training_only=True
    ),
    "BOX_OUTSIDE": Problem(
        "boxes reach more than a pixel out of their image",
        "write bbox as [x, y, width, height] in pixels of the image",
        ("clip", "skip", "keep", "error"),
        training_only=True,
    ),
    "MASK_MISSING": Problem(
        "objects have no mask", "draw it, or take a configuration without masks", ("error", "skip")
    ),
    "POLYGON_SHORT": Problem("polygons have fewer than three points", "remove or redraw it", ("drop", "error")),
    "POLYGON_INVALID": Problem(
        "polygons are not pairs of coordinates", "write segmentation as [[x, y, x, y, ...], ...]", ("error", "drop")
    ),
    "RLE_INVALID": Problem(
        "masks are run-length encoded wrongly", "encode it anew with pycocotools", ("error", "skip")
    ),
    # PaddleDetection's transforms take them, but what its mask head learns from is drawn from polygons only.
    "RLE_OF_OBJECT": Problem(
        "objects that are no crowds have a run-length encoded mask",
        "outline it by polygons",
        ("convert", "skip", "error"),
        training_only=True,
        training_alone=True,  # COCO's own evaluation takes them as they are
    ),
    "CATEGORY_UNUSED": Problem("categories have no object", "annotate objects of it, or remove it", ("keep", "error")),
    "IMAGE_MISSING": Problem("images do not exist", "restore it", ("error", "skip")),
    "IMAGE_UNREADABLE": Problem("images cannot be read", "replace it", ("error", "skip")),
    "IMAGE_SIZE": Problem(
        "images have another size than the annotations say", "correct width, height and the boxes", ("error", "skip")
    ),
    "IMAGE_DEEP": Problem(
        "images have more than 8 bits a channel, of which training keeps the upper 8",
        "convert it to 8 bits",
        ("keep", "error", "skip"),
    ),
}


def default_actions() -> dict[str, str]:
    """What is done about each kind where nobody says otherwise."""
    return {kind: problem.actions[0] for kind, problem in PROBLEMS.items()}


def resolve_actions(given: Mapping[str, str]) -> dict[str, str]:
    """Complete what a user wants done about some kinds with the defaults of the others.

    Raises:
        UserError: there is no such kind, or its action is impossible.
    """
    for kind, action in given.items():
        if kind not in PROBLEMS:
            raise UserError(f"ON_PROBLEM.{kind} is no kind of problem; choose from {', '.join(PROBLEMS)}")
        if action not in PROBLEMS[kind].actions:
            raise UserError(f"ON_PROBLEM.{kind} is {action!r}; it may be {', '.join(PROBLEMS[kind].actions)}")
    return {**default_actions(), **given}
