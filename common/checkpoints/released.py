"""Released weights by model name and training data."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..runtime.folders import expand_home
from ..schema import Range, check_value, read_json
from .download import download
from .file_format import SUFFIXES, locate_file

__all__ = ["ReleasedWeights", "list_tags", "list_weights", "local_path", "resolve_weights"]

_FOLDER = Path(__file__).parent / "released_weights"


@dataclass(frozen=True)
class ReleasedWeights:
    """One row of the table.

    Attributes:
        model: name of the variant.
        tag: the data set; ``create_model(model, pretrained=tag)``. Weights of several tasks may have the same tag.
        location: a file of this package, an absolute path, or ``https://...#sha256=...``.
        metric: the name of the metric that was measured on ``tested_on``, such as ``top1``, ``mIoU`` or ``box_AP50``.
        value: of the metric, in percent.
        size: of the file in bytes, or None; a download of more bytes is refused.
        task: folder of the task that they were trained for.
    """

    model: str
    tag: str
    location: str
    metric: str
    value: Annotated[float, Range(0, 100)]
    tested_on: str
    size: Annotated[int, Range(1, 2**53)] | None = None
    task: str = "image_classification"


# There are no official weights: the paper's authors released none, and we have not trained on ImageNet. These were
# trained by this project on a CPU; docs/results.md has the commands.
_RELEASED: tuple[ReleasedWeights, ...] = (
    ReleasedWeights(
        "pale_nano", "mnist5k", "pale_nano_mnist5k.pdparams", "top1", 97.4, "1,000 held-out digits of MNIST-5k"
    ),
    ReleasedWeights(
        "pale_nano",
        "fashion_mnist",
        "pale_nano_fashion_mnist.pdparams",
        "top1",
        90.06,
        "10,000 test images of Fashion-MNIST",
    ),
    ReleasedWeights(
        "pale_nano",
        "nuclei",
        "upernet_pale_nano_nuclei.pdparams",
        "mIoU",
        92.9,
        "the right quarter of one micrograph; the rest is the training data",
        task="semantic_segmentation",
    ),
    ReleasedWeights(
        "pale_nano",
        "he_nuclei",
        "upernet_pale_nano_he.pdparams",
        "mIoU",
        50.9,
        "the left quarter of one tissue image; the rest is the training data",
        task="semantic_segmentation",
    ),
    ReleasedWeights(
        "pale_nano",
        "nuclei",
        "mask_rcnn_pale_nano_nuclei.pdparams",
        "box_AP50",
        82.0,
        "the right quarter of one micrograph; the rest is the training data",
        task="object_detection",
    ),
)


def list_weights(model: str | None = None) -> list[ReleasedWeights]:
    """The released weights and those of the user's registry, of one model or of all.

    The registry is a JSON file named by ``$PALE_WEIGHTS``: a list of objects with the fields of
    :class:`ReleasedWeights`; relative locations are relative to the file.

    Raises:
        UserError: the registry cannot be read.
    """
    rows = [*_read_registry(os.environ.get("PALE_WEIGHTS", "")), *_RELEASED]
    return [row for row in rows if model in (None, row.model)]


def list_tags(model: str | None = None) -> list[str]:
    """What selects each of :func:`list_weights`: its tag, or ``TASK/TAG`` if an earlier one has the same tag."""
    rows = list_weights(model)
    return [row.tag if _find(rows, row.tag) is row else f"{row.task}/{row.tag}" for row in rows]


def resolve_weights(model: str | None, pretrained: str | Path | bool, task: str = "") -> str | Path:
    """Find the file or address of ``pretrained``.

    Args:
        model: name of the variant; ``None`` looks among the weights of all.
        pretrained: ``True`` for ImageNet weights, a tag of :func:`list_weights`, ``TASK/TAG``, a path, or an address
            with its hash.
        task: folder of the task whose weights are taken, if those of several have the tag; else the first are.

    Returns:
        A path or an address.

    Raises:
        UserError: there are no such weights; the message lists the known ones.
    """
    text = "imagenet" if pretrained is True else str(pretrained)
    if found := _find(list_weights(model), text, task):
        return found.location if "://" in found.location else _FOLDER / found.location
    offer = _offer(list_tags(model))
    if pretrained is True:
        raise UserError(f"there are no ImageNet weights of {model}: the paper's authors released none; {offer}")
    if os.sep in text or "." in text or any(Path(text + suffix).exists() for suffix in ("", *SUFFIXES)):
        return pretrained if isinstance(pretrained, Path) else text
    if others := {row.model for row in list_weights() if row.tag == text}:
        raise UserError(f"the released weights {text!r} are for {' and '.join(sorted(others))}, not {model}; {offer}")
    raise UserError(f"{text!r} is neither a file nor a tag of released weights; {offer}")


def local_path(source: str | Path) -> Path:
    """The local file of a path, with or without its suffix, or of an address, which is downloaded once.

    Raises:
        UserError: there is no such file, or the download fails.
    """
    if "://" not in str(source):
        return locate_file(source)
    sizes = {row.location: row.size for row in list_weights()}
    return download(str(source), size=sizes.get(str(source)))


def _find(rows: Sequence[ReleasedWeights], name: str, task: str = "") -> ReleasedWeights | None:
    found = [row for row in rows if name in (row.tag, f"{row.task}/{row.tag}")]
    return next((row for row in found if row.task == task), found[0] if found else None)


def _offer(tags: Sequence[str]) -> str:
    if not tags:
        return "give the path of a .pdparams file, or add rows of your own ($PALE_WEIGHTS)"
    return f"there are {', '.join(tags)}, and paths of .pdparams files"


def _read_registry(file: str) -> list[ReleasedWeights]:
    if not file:
        return []
    path = Path(os.path.realpath(expand_home(file)))  # resolve() raises for a link to itself
    source = f"the registry {path} ($PALE_WEIGHTS)"
    try:
        content = read_json(path, source)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    for row in content if isinstance(content, list) else []:
        if isinstance(row, dict) and "top1" in row:  # of version 0.1.0
            row |= {"metric": "top1", "value": row.pop("top1")}
    rows = check_value(content, list[ReleasedWeights], source)
    if paths := [row.tag for row in rows if re.search(r"[/\\]|\.(pdparams|safetensors)$", row.tag)]:
        raise UserError(f"{source}: the tag {paths[0]!r} would stand for a file of this name; give another")
    return [
        row if "://" in row.location else replace(row, location=str(path.parent / expand_home(row.location)))
        for row in rows
    ]
