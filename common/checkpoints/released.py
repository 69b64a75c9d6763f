"""Released weights by model name and training data."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from ..errors import UserError
from ..runtime.folders import expand_home
from ..schema import Range, check_value, read_json
from .download import download
from .file_format import SUFFIXES, locate_file

__all__ = ["ReleasedWeights", "list_weights", "local_path", "resolve_weights"]

_FOLDER = Path(__file__).parent / "released_weights"


@dataclass(frozen=True)
class ReleasedWeights:
    """One row of the table.

    Attributes:
        model: name of the variant.
        tag: the data set; ``create_model(model, pretrained=tag)``.
        location: a file of this package, an absolute path, or ``https://...#sha256=...``.
        top1: measured top-1 accuracy in percent on ``tested_on``.
        size: of the file in bytes, or None; a download of more bytes is refused.
    """

    model: str
    tag: str
    location: str
    top1: Annotated[float, Range(0, 100)]
    tested_on: str
    size: Annotated[int, Range(1, 2**53)] | None = None


# There are no official weights: the paper's authors released none, and we have not trained on ImageNet. These were
# trained by this project on a CPU; docs/results.md has the commands.
_RELEASED: tuple[ReleasedWeights, ...] = (
    ReleasedWeights("pale_nano", "mnist5k", "pale_nano_mnist5k.pdparams", 97.4, "1,000 held-out digits of MNIST-5k"),
    ReleasedWeights(
        "pale_nano", "fashion_mnist", "pale_nano_fashion_mnist.pdparams", 90.06, "10,000 test images of Fashion-MNIST"
    ),
)


def list_weights(model: str | None = None) -> list[ReleasedWeights]:
    """The released weights and those of the user's registry, of one model or of all.

    The registry is a JSON file named by ``$PALE_WEIGHTS``: a list of objects with the fields of
    :class:`ReleasedWeights`; relative locations are relative to the file.

    Raises:
        UserError: the registry cannot be read.
    """
    rows = [*_RELEASED, *_read_registry(os.environ.get("PALE_WEIGHTS", ""))]
    return [row for row in rows if model in (None, row.model)]


def resolve_weights(model: str | None, pretrained: str | Path | bool) -> str | Path:
    """Find the file or address of ``pretrained``.

    Args:
        model: name of the variant; ``None`` looks among the weights of all.
        pretrained: ``True`` for ImageNet weights, a tag of :func:`list_weights`, a path, or an address with its hash.

    Returns:
        A path or an address.

    Raises:
        UserError: there are no such weights; the message lists the known ones.
    """
    rows = {row.tag: row for row in list_weights(model)}
    if pretrained is True:
        if "imagenet" in rows:
            return _locate(rows["imagenet"])
        raise UserError(f"there are no ImageNet weights of {model}: the paper's authors released none; {_offer(rows)}")
    if str(pretrained) in rows:
        return _locate(rows[str(pretrained)])
    text = str(pretrained)
    if os.sep in text or "." in text or any(Path(text + suffix).exists() for suffix in ("", *SUFFIXES)):
        return pretrained if isinstance(pretrained, Path) else text
    others = [row.model for row in list_weights() if row.tag == text]
    if others:
        raise UserError(f"the released weights {text!r} are for {' and '.join(others)}, not {model}; {_offer(rows)}")
    raise UserError(f"{str(pretrained)!r} is neither a file nor a tag of released weights; {_offer(rows)}")


def local_path(source: str | Path) -> Path:
    """The local file of a path, with or without its suffix, or of an address, which is downloaded once.

    Raises:
        UserError: there is no such file, or the download fails.
    """
    if "://" not in str(source):
        return locate_file(source)
    sizes = {row.location: row.size for row in list_weights()}
    return download(str(source), size=sizes.get(str(source)))


def _locate(row: ReleasedWeights) -> str | Path:
    return row.location if "://" in row.location else _FOLDER / row.location


def _offer(rows: dict[str, ReleasedWeights]) -> str:
    if not rows:
        return "give the path of a .pdparams file, or extend the table with a registry ($PALE_WEIGHTS)"
    return f"there are {', '.join(rows)}, and paths of .pdparams files"


def _read_registry(file: str) -> list[ReleasedWeights]:
    if not file:
        return []
    path = Path(os.path.realpath(expand_home(file)))  # resolve() raises for a link to itself
    source = f"the registry {path} ($PALE_WEIGHTS)"
    try:
        content = read_json(path, source)
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror}") from error
    rows = check_value(content, list[ReleasedWeights], source)
    return [row if "://" in row.location else replace(row, location=str(path.parent / row.location)) for row in rows]
